"""Images of what runs predicted, where their data set is on this machine and is the one they saw."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.text import printable
from pipeline.data import datasets
from pipeline.data.dataset import Image
from pipeline.data.options import FolderOptions
from pipeline.features.originals import Originals
from pipeline.output import thumbnails
from pipeline.output.results import RunResults

log = logging.getLogger("pipeline")

Place = tuple[str, int]  # a split, and a row of it


@dataclass(frozen=True)
class RunImages:
    """Images of what a run predicted, by their positions in its predictions."""

    originals: Originals
    places: list[Place | None]  # None of what is not in the data set any more
    folder: Path

    def pixels(self, position: int) -> Image | None:
        """An image; None when there is no such any more."""
        place = self.places[position]
        return None if place is None else self.originals.pixels(*place)

    def link(self, position: int) -> str:
        """Where the file of an image is, as a URL; "" where the images are not files."""
        place = self.places[position]
        if place is None or not self.originals.names:
            return ""
        split, row = place
        return (self.folder / self.originals.names[split][row]).as_uri()


@dataclass(frozen=True)
class PageImages:
    """All that a page shows; ``shown`` has the id of each by its data URI: it is on the page once."""

    data_dir: Path
    shown: dict[str, str] = field(default_factory=dict)
    _uris: dict[tuple[int, Place | None], str] = field(default_factory=dict)
    _known: dict[tuple[str, str], tuple[Originals, dict[str, Place]]] = field(default_factory=dict)

    def of(self, run: RunResults) -> RunImages:
        """Images of what a run predicted."""
        about, predictions = run.metrics["dataset"], run.predictions
        key = about.get("folder", about["name"]), about["digest"]
        if key not in self._known:
            self._known[key] = self._find(about["name"], about.get("reading", {}), *key)
        originals, files = self._known[key]
        places: list[Place | None] = []
        if files:  # a cache leaves rows out whose images cannot be used, so its numbers are not the data set's
            places = [files.get(file) for file in predictions.get("file", [""] * len(predictions["index"]))]
        elif not originals.absent:
            before = run.metrics["images"]["rows"]["train"] if run.metrics.get("cross_validation") else 0
            rows = [("train", row) if row < before else ("test", row - before) for row in predictions["index"].tolist()]
            places = [(split, row) if row < len(originals.images[split]) else None for split, row in rows]
        return RunImages(originals, places, Path(key[0]).resolve())

    def id_of(self, images: RunImages, position: int) -> str:
        """The id of an image, or of a placeholder when there is no such image any more."""
        place = id(images.originals), images.places[position]  # one folder may have been read in several ways
        if place not in self._uris:
            self._uris[place] = thumbnails.uri(images.pixels(position))
        return self.shown.setdefault(self._uris[place], f"i{len(self.shown)}")

    def _find(
        self, name: str, reading: Mapping[str, Any], where: str, digest: str
    ) -> tuple[Originals, dict[str, Place]]:
        """The images of a data set, and the place of each file."""
        level = log.level
        log.setLevel(logging.ERROR)  # whoever made the run was told about the data then
        try:
            how = FolderOptions(**reading)
            dataset = datasets.load_dataset(where, self.data_dir, download=False, how=how)
        except UserError as error:
            log.setLevel(level)
            log.info("no images of %s on the page: %s", name, error)
            absent = f"No images are shown, because {name} was not on the machine where this page was made."
            return Originals({}, {}, absent), {}
        finally:
            log.setLevel(level)
        members = dataset.members or {}
        if dataset.digest != digest:
            place = where if members else f"{name} in {self.data_dir}"
            return Originals({}, {}, f"The {place} is not the one that this run saw, so no images are shown."), {}
        names = {split: who.names for split, who in members.items()}
        files = {printable(file): (split, row) for split, own in names.items() for row, file in enumerate(own)}
        return Originals({split: dataset.splits[split].images for split in ("train", "test")}, names), files

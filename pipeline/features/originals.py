"""The images that rows of a cache were computed from, where they still are, and are what they were."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.text import printable
from pipeline.data import datasets
from pipeline.data.dataset import Image
from pipeline.data.image_files import ImageFiles
from pipeline.features import store
from pipeline.features.layout import SPLITS

log = logging.getLogger("pipeline")


@dataclasses.dataclass(frozen=True)
class Originals:
    """Images of each split; none, and a sentence that says why, where they cannot be had."""

    images: Mapping[str, Any]
    names: Mapping[str, tuple[str, ...]]  # of files; empty where rows are numbers
    absent: str = ""

    def pixels(self, split: str, row: int) -> Image | None:
        """An image at its own size; None, and a warning, where it cannot be had any more."""
        if self.absent:
            return None
        try:
            found: Image = self.images[split][row]
        except UserError as error:
            log.warning("warning: %s", error)
            return None
        return found

    def name(self, split: str, row: int) -> str:
        """What a row is called: the path of its file, else its split and number."""
        return printable(self.names[split][row]) if self.names else f"{split}:{row}"


def originals(cache: store.Cache, data_dir: Path) -> Originals:
    """Find the images of a cache: files by their names and digests, others in the data set of its name."""
    spec, source = cache.spec, Path(str(cache.provenance["dataset_source"]))
    if cache.has_members:
        members = {split: cache.members(split) for split in SPLITS}
        names = {split: who.names for split, who in members.items()}
        if not source.is_dir():
            return Originals({}, names, f"The images are not shown: there is no folder {source} here.")
        return Originals(
            {split: ImageFiles([source / name for name in who.names], who) for split, who in members.items()}, names
        )
    try:
        dataset = datasets.load_dataset(spec.dataset, data_dir, download=False)
        if dataset.digest != spec.dataset_digest:
            raise UserError(f"{spec.dataset} in {data_dir} is another than was used.")
        return Originals({split: dataset.splits[split].images for split in SPLITS}, {})
    except UserError as error:
        return Originals({}, {}, f"The images are not shown: {error}")

"""What a run leaves: its folder in output/, its two files in models/, and finding both again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import atomic
from pipeline.common.keys import safe_name
from pipeline.common.text import to_json

PICTURES = ("history.png", "learning_curve.png", "confusion_matrix.png", "calibration.png")
RUN_FILES = ("report.txt", "metrics.json", "history.csv", "learning_curve.csv", "predictions.csv", *PICTURES)
DRAWINGS = tuple(name.replace(".png", ".svg") for name in PICTURES)  # the same for the page; earlier runs have none
PRINTS = tuple(name.replace(".png", ".pdf") for name in PICTURES)  # where they were asked for
# What the classifier fitted on the 90 % says of validation rows, and of some that it learnt from: for `ensemble`.
PROBABILITIES = "probabilities.npz"
OPTIONAL_FILES = ("skipped.csv", PROBABILITIES, *DRAWINGS, *PRINTS)  # the first of data sets that are folders


@dataclass(frozen=True)
class RunFolder:
    """A run by its name: where its results are, or will be, in the folders of outputs and of models."""

    name: str
    output_dir: Path
    models_dir: Path

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.output_dir / safe_name(self.name)

    @property
    def model(self) -> Path:
        """The fitted pipeline, for joblib."""
        return self.models_dir / f"{safe_name(self.name)}.joblib"

    @property
    def description(self) -> Path:
        """What the model file holds."""
        return self.model.with_suffix(".json")

    @property
    def card(self) -> Path:
        """What a person must know before using the model."""
        return self.model.with_suffix(".md")

    def load(self) -> dict[str, Any] | None:
        """Metrics of a run that is complete; None when anything of it is missing or was changed."""
        try:
            metrics = json.loads((self.folder / "metrics.json").read_bytes())
            description = json.loads(self.description.read_bytes())
            with open(self.model, "rb") as stream:
                intact = hashlib.file_digest(stream, "sha256").hexdigest() == description["sha256"]
            complete = all((self.folder / name).is_file() for name in RUN_FILES)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        same_run = metrics.get("run") == description.get("run") == self.name
        # --force replaces model and folder one after the other: a crash in between leaves two runs' halves.
        if not (intact and complete and same_run and metrics.get("created") == description.get("created")):
            return None
        return dict(metrics)

    def prepare(self) -> None:
        """Make both folders, prove that they can be written to, and clear away what killed runs left; or OSError."""
        for folder in (self.models_dir, self.output_dir):
            atomic.make_folder(folder)
            probe = atomic.temporary_path(folder / safe_name(self.name))
            atomic.write_atomically(probe, b"")
            atomic.unlink(probe)
            for entry in folder.glob(f".{safe_name(self.name)}.*"):
                if entry.is_dir():
                    atomic.remove_folder(entry)
                else:
                    atomic.unlink(entry)

    def save(self, contents: Mapping[str, bytes], model: bytes, description: Mapping[str, Any], card: str = "") -> None:
        """Write a run into folders that `prepare` has made: the model, its description, then the folder, complete.

        A run is found by its folder, so one that was killed on the way here does not exist. ``contents`` are the bytes
        of each of `RUN_FILES`; the model's sha256 and the run's name are added to its description. Raises OSError when
        the file system refuses.
        """
        if set(contents) - set(OPTIONAL_FILES) != set(RUN_FILES):
            raise AssertionError(f"a run leaves {RUN_FILES}, not {tuple(contents)}")
        digest = hashlib.sha256(model).hexdigest()
        atomic.write_atomically(self.model, model)
        atomic.write_atomically(self.card, card.encode("utf-8"))
        atomic.write_atomically(self.description, to_json({"run": self.name, **description, "sha256": digest}))
        with atomic.new_folder(self.folder) as folder:
            for name, content in contents.items():
                atomic.write_atomically(folder / name, content)

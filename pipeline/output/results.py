"""What a run found, for notebooks and scripts.

>>> import pipeline
>>> run = pipeline.load_run("cifar10-logistic-1a2b3c4d")  # doctest: +SKIP
>>> run.metrics["accuracy"]["test"]  # doctest: +SKIP
0.8504
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import safe_name
from pipeline.common.text import did_you_mean

_TEXTS, _COUNTS = ("label", "predicted", "file"), ("index", "rows", "seed")
Columns = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class RunResults:
    """A run. Its tables are dicts of arrays, one for each column, which ``pandas.DataFrame`` takes as they are.

    Attributes
    ----------
    folder : Path
    metrics : mapping
        All of ``metrics.json``.
    """

    folder: Path
    metrics: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"<RunResults {self.name}>"

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.metrics["run"])

    @property
    def converged(self) -> bool:
        """Whether the classifier converged; runs from before this was recorded count as if."""
        return bool(self.metrics.get("converged", True))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        return tuple(self.metrics["per_class"])

    @cached_property
    def history(self) -> Columns:
        """Loss (nats) and accuracy, of training and validation, after every step; the first column counts these."""
        return self._read("history.csv")

    @cached_property
    def learning_curve(self) -> Columns:
        """Accuracy of training and validation for each number of training rows, and each seed."""
        return self._read("learning_curve.csv")

    @cached_property
    def predictions(self) -> Columns:
        """The row, label, predicted class and its confidence of each test image; of one's own images, its file."""
        return self._read("predictions.csv")

    @cached_property
    def confusion_matrix(self) -> NDArray[np.int64]:
        """How many test images of each class (rows) were taken for each class (columns), int (classes, classes)."""
        from sklearn.metrics import confusion_matrix

        found = self.predictions
        counts: NDArray[np.int64] = confusion_matrix(found["label"], found["predicted"], labels=list(self.class_names))
        return counts

    def _read(self, name: str) -> Columns:
        path = self.folder / name
        with file_errors("read the run", path), open(path, encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        columns = zip(*rows, strict=True) if rows else [()] * len(header)
        kinds = dict.fromkeys(_TEXTS, np.str_) | dict.fromkeys(_COUNTS, np.int64)
        return {
            title: np.array(cells, kinds.get(title, np.float64)) for title, cells in zip(header, columns, strict=True)
        }


def read_run(folder: Path) -> RunResults:
    """Read a run; raises OSError, or ValueError, LookupError or TypeError when the folder's file is not a run's."""
    run = RunResults(folder, json.loads((folder / "metrics.json").read_bytes(), parse_constant=_refuse))
    if safe_name(run.name) != folder.name:
        raise ValueError(f"it is of the run {run.name!r}, not of its folder's")
    return run


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds {constant}")


def load_run(name: str, output_dir: str | Path = "output") -> RunResults:
    """Find a run by its name.

    Parameters
    ----------
    name : str
        As `train` prints it, and `runs` lists it.
    output_dir : str or Path

    Raises
    ------
    UserError
        When there is no such run, or it cannot be read.
    """
    folder = Path(output_dir) / safe_name(name)
    path = folder / "metrics.json"
    if not path.is_file():
        near = did_you_mean(name, (each.parent.name for each in Path(output_dir).glob("[!.]*/metrics.json")))
        raise UserError(f"There is no run {name} in {output_dir}.{near} pipeline.runs() lists all runs.")
    with file_errors("read the run", path):
        try:
            return read_run(folder)
        except (ValueError, LookupError, TypeError) as error:
            raise UserError(
                f"The run {folder} cannot be read: {path.name} was edited or damaged, or its folder renamed ({error}). "
                f"Give the folder its name again, or train it again."
            ) from error

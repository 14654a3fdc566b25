"""What a sweep remembers: one small file for each candidate, written at once and whole.

output/candidates/<data set>-<classifier>-<key>.json    scores of a candidate
output/candidates/<data set>-<classifier>-<key>.npy     where the next one on its path may start

The key covers all that a candidate's outcome depends on: the features, the classifier and all its parameters, the
seed, the rows it was fitted on and the protocol. Where a solver started is not in it: the objective is strictly
convex, so that the start moves the end by no more than the tolerance, which is a parameter, allows.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.keys import digest_of, safe_name

log = logging.getLogger("pipeline")

FOLDER = "candidates"
PROTOCOL = 2  # part of a run's key: raise it when the same inputs give another result


@dataclass(frozen=True)
class Record:
    """Outcome of a candidate on validation.

    Attributes
    ----------
    log_loss, accuracy : float
        On validation; nats, and between 0 and 1.
    train_log_loss, train_accuracy : float
        On the rows it was fitted on.
    reason : str or None
        Why it did not converge; None when it did.
    seconds : float
        That the fit took.
    """

    log_loss: float
    accuracy: float
    train_log_loss: float
    train_accuracy: float
    reason: str | None
    seconds: float


def place(output_dir: Path, run: RunSpec, rows: int) -> Path:
    """Where the record of a candidate, fitted on so many rows, is or will be."""
    key = digest_of([run.key(), rows])
    return output_dir / FOLDER / f"{safe_name(run.dataset)}-{run.classifier}-{key[:16]}.json"


def read(path: Path) -> Record | None:
    """Read a record; None when there is none, or none that can be used, which is said."""
    try:
        fields = json.loads(path.read_bytes())
        outcome = fields["outcome"]
        found = Record(**outcome)
        numbers = (found.log_loss, found.accuracy, found.train_log_loss, found.train_accuracy, found.seconds)
        if not all(isinstance(number, (int, float)) for number in numbers) or fields["name"] != path.stem:
            raise ValueError("it is not what was written under that name")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("warning: the record %s cannot be used (%s): that candidate is fitted again", path, error)
        return None
    return found


def write(path: Path, record: Record, candidate: Mapping[str, Any], state: NDArray[np.float32] | None) -> None:
    """Write a record, durably; where the next one may start comes first, so that a record never lacks it."""
    atomic.make_folder(path.parent)
    if state is not None:
        buffer = io.BytesIO()
        np.save(buffer, state, allow_pickle=False)
        atomic.write_atomically(path.with_suffix(".npy"), buffer.getvalue())
    fields = {"name": path.stem, "candidate": dict(candidate), "outcome": record.__dict__}
    atomic.write_atomically(path, (json.dumps(fields, indent=2, allow_nan=False) + "\n").encode("utf-8"))


def read_state(path: Path) -> NDArray[np.float32] | None:
    """Where the candidate of a record ended, float32; None when that is not there any more."""
    try:
        state = np.load(path.with_suffix(".npy"), allow_pickle=False)
    except (OSError, ValueError):
        return None
    return state if state.dtype == np.float32 and state.ndim == 2 else None


def drop_state(path: Path) -> None:
    """Remove where a candidate ended, once nothing will start there."""
    atomic.unlink(path.with_suffix(".npy"))


@dataclass(frozen=True)
class RunSpec:
    """Every input that changes a stage-two result.

    Attributes
    ----------
    features : str
        `FeatureSpec.key` of the features used (of exactly the taps used, whatever the file holds besides).
    dataset : str
        The data set's name.
    classifier : str
        The classifier's name.
    options : dict
        As `classifiers.resolve` gives them.
    seed : int
        Seed of the split, of the initial weights and of the shuffling.
    protocol : int
        Version of the selection protocol; another number means that the same inputs give another result.
    """

    features: str
    dataset: str
    classifier: str
    options: Mapping[str, Any]
    seed: int
    protocol: int

    def key(self) -> str:
        """sha256, in hex, over the canonical JSON of all fields."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return digest_of({**fields, "options": dict(self.options)})

    @property
    def name(self) -> str:
        """The run's name: data set, classifier, 8 hex digits of the run key."""
        return f"{safe_name(self.dataset)}-{self.classifier}-{self.key()[:8]}"

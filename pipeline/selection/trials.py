"""What a sweep tries and remembers: one small file for each trial, written at once and whole.

output/candidates/<data set>-<classifier>-<key>.json    what came of a trial

The key covers all that a trial's outcome depends on: the features, the classifier and all its parameters, the seed,
the rows it was fitted on and the protocol. What it was fitted beside is not in it: that changes nothing.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import atomic
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.text import to_json
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps

log = logging.getLogger("pipeline")

FOLDER = "candidates"


@dataclass(frozen=True)
class Trial:
    """One set of everything that is varied."""

    classifier: str
    taps: tuple[str, ...]  # in network order
    params: Mapping[str, Any]  # every option of the classifier, none left to choose
    seed: int
    rows: int = 0  # how many distinct images to fit on, from the beginning; 0 until that is known

    def describe(self) -> str:
        """The trial in a few words, for progress."""
        tuned = classifiers.get(self.classifier).tuned_option
        return f"{self.classifier} {classifiers.describe({tuned: self.params[tuned]})}, {describe_taps(self.taps)}"


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial."""

    log_loss: float  # on validation, in nats
    accuracy: float
    train_log_loss: float  # on the rows it was fitted on
    train_accuracy: float
    reason: str | None  # why it did not converge; None when it did
    seconds: float  # that the fit took
    criterion: float  # what the best is chosen by: the validation loss, with classes weighed as they are in fitting

    @property
    def rank(self) -> tuple[float, bool, float]:
        """What trials are sorted by, the best first."""
        return self.criterion, self.reason is not None, -self.accuracy


Table = list[tuple[Trial, TrialResult]]


@dataclass(frozen=True)
class TrialRecords:
    """The records of trials on the features of one data set, whatever their taps, under one protocol."""

    output_dir: Path
    features: FeatureSpec
    protocol: int
    among: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # what else an outcome depends on

    def path(self, trial: Trial) -> Path:
        """Where the record of a trial is or will be."""
        features = dataclasses.replace(self.features, taps=trial.taps)
        options = {**trial.params, **self.among}
        run = RunSpec(features.key(), features.dataset, trial.classifier, options, trial.seed, self.protocol)
        key = digest_of([run.key(), trial.rows])
        return self.output_dir / FOLDER / f"{safe_name(run.dataset)}-{run.classifier}-{key[:16]}.json"

    def read(self, trial: Trial) -> TrialResult | None:
        """Read a record; None when there is none, or none that can be used, which is said."""
        path = self.path(trial)
        try:
            fields = json.loads(path.read_bytes())
            outcome = fields["outcome"]
            found = TrialResult(**{"criterion": outcome["log_loss"], **outcome})
            numbers = (found.log_loss, found.accuracy, found.train_log_loss, found.train_accuracy, found.seconds)
            if not all(isinstance(number, (int, float)) for number in numbers) or fields["name"] != path.stem:
                raise ValueError("it is not what was written under that name")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError) as error:
            log.warning("warning: the record %s cannot be used (%s): that candidate is fitted again", path, error)
            return None
        return found

    def write(self, trial: Trial, params: Mapping[str, Any], result: TrialResult) -> None:
        """Write a record, durably; ``params`` are the trial's, and what was found besides."""
        path = self.path(trial)
        atomic.make_folder(path.parent)
        described = {**dataclasses.asdict(trial), "params": dict(params)}
        fields = {"name": path.stem, "candidate": described, "outcome": dataclasses.asdict(result)}
        atomic.write_atomically(path, to_json(fields))


@dataclass(frozen=True)
class RunSpec:
    """Every input that changes a stage-two result."""

    features: str  # `FeatureSpec.key` of exactly the taps used, whatever the file holds besides
    dataset: str
    classifier: str
    options: Mapping[str, Any]  # as `classifiers.resolve` gives them
    seed: int  # of the split, of the initial weights and of the shuffling
    protocol: int  # version of the selection; another number means that the same inputs give another result

    def key(self) -> str:
        """sha256, in hex, over the canonical JSON of all fields."""
        return digest_of(dataclasses.asdict(self))

    @property
    def name(self) -> str:
        """The run's name: data set, classifier, 8 hex digits of the run key."""
        return f"{safe_name(self.dataset)}-{self.classifier}-{self.key()[:8]}"

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
    """One set of everything that is varied.

    Attributes
    ----------
    classifier : str
    taps : tuple of str
        In network order.
    params : mapping
        Every option of the classifier, none left to choose.
    seed : int
    rows : int
        How many distinct images to fit on, from the beginning; 0 until that is known.
    """

    classifier: str
    taps: tuple[str, ...]
    params: Mapping[str, Any]
    seed: int
    rows: int = 0

    def describe(self) -> str:
        """The trial in a few words, for progress."""
        tuned = classifiers.get(self.classifier).tuned_option
        return f"{self.classifier} {classifiers.describe({tuned: self.params[tuned]})}, {describe_taps(self.taps)}"


@dataclass(frozen=True)
class TrialResult:
    """Outcome of a trial.

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
    criterion : float
        What the best is chosen by: the validation loss, with classes weighed as they are in fitting.
    """

    log_loss: float
    accuracy: float
    train_log_loss: float
    train_accuracy: float
    reason: str | None
    seconds: float
    criterion: float


@dataclass(frozen=True)
class TrialRecords:
    """The records of trials on the features of one data set, whatever their taps, under one protocol.

    ``among`` says what else an outcome depends on.
    """

    output_dir: Path
    features: FeatureSpec
    protocol: int
    among: Mapping[str, Any] = dataclasses.field(default_factory=dict)

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

"""Loss and accuracy after every step of a fit, on the rows it learns from and on rows it does not.

A step is a solver iteration, a pass over the rows or, of a classifier that is fitted in one step, a value of the
parameter searched. The loss is the mean cross-entropy, without the penalty, in nats: the same number for both
sets of rows, and for every classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.text import to_csv

Scores = tuple[float, float]  # loss in nats, accuracy


@dataclass(frozen=True)
class Samples:
    """Rows to learn from or to score: float32 (n, columns) and labels (n,).

    Equal ``groups`` (n,) are of rows that must not be parted, such as copies of an image; without, none are.
    """

    features: NDArray[np.float32]
    labels: NDArray[Any]
    groups: NDArray[np.intp] | None = None

    @property
    def grouping(self) -> NDArray[np.intp]:
        """The groups, each row one of its own where there are none."""
        return np.arange(len(self.labels)) if self.groups is None else self.groups

    def taken(self, rows: NDArray[np.intp]) -> Samples:
        """Copies of some rows, in their order."""
        return Samples(self.features[rows], self.labels[rows], None if self.groups is None else self.groups[rows])


@dataclass(frozen=True)
class Step:
    """One row of a history."""

    step: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float


@dataclass
class History:
    """All steps of a fit.

    Attributes
    ----------
    unit : str
        ``iteration``, ``epoch``, or the name of the parameter searched.
    steps : list of Step
    kept : float
        The ``step`` of the one whose model was kept.
    """

    unit: str
    steps: list[Step] = field(default_factory=list)
    kept: float = 0

    def to_csv(self) -> bytes:
        """The steps as CSV, the first column named after the unit."""
        rows = ([f"{step.step:g}", *(f"{value:.6f}" for value in astuple(step)[1:])] for step in self.steps)
        return to_csv((self.unit, *(item.name for item in fields(Step)[1:])), rows)


Watch = Callable[[Step], None]


def scores(estimator: Any, data: Samples) -> Scores:
    """Mean cross-entropy in nats and accuracy of a fitted estimator."""
    probabilities = estimator.predict_proba(data.features)
    return cross_entropy(probabilities, data.labels), float(np.mean(probabilities.argmax(axis=1) == data.labels))


def cross_entropy(probabilities: NDArray[Any], labels: NDArray[Any]) -> float:
    """Mean of `row_losses`, in nats."""
    return float(row_losses(probabilities, labels).mean()) + 0.0  # 0, not -0


def row_losses(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """-log p of the right class (n,), in nats; p is clipped at float32's resolution as log_loss does.

    Parameters
    ----------
    probabilities : ndarray, float (n, classes)
    labels : ndarray, int (n,)
        Class numbers from 0: the columns of the probabilities.
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(right, np.finfo(probabilities.dtype).eps))
    return losses

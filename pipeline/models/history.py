"""Loss and accuracy after every step of a fit, on the rows it learns from and on rows it does not.

A step is a solver iteration, a pass over the rows or, of a classifier that is fitted in one step, a value of the
parameter searched. The loss is the mean cross-entropy, without the penalty, in nats: the same number for both
sets of rows, and for every classifier.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.text import to_csv
from pipeline.features.rows import FeatureRows, Scale

SCORED_TOGETHER = 2048  # rows

Scores = tuple[float, float]  # loss in nats, accuracy


@dataclass(frozen=True)
class Samples:
    """Rows to learn from or to score."""

    features: FeatureRows  # not standardised
    labels: NDArray[Any]  # (n,)
    groups: NDArray[np.intp]  # (n,): rows of equal ones must not be parted
    images: NDArray[np.intp]  # (n,): rows of equal ones, which are of one group too, are copies of one image

    def taken(self, rows: NDArray[np.intp]) -> Samples:
        """Some rows, in ascending order whatever that of their numbers; no copy."""
        rows = np.sort(rows)
        return Samples(self.features.take(rows), self.labels[rows], self.groups[rows], self.images[rows])


@dataclass(frozen=True)
class FitAndValidation:
    """Which rows to fit on, which to validate on, int (rows,) numbers both, and what standardises them."""

    data: Samples  # all rows
    fit: NDArray[np.intp]
    held_out: NDArray[np.intp]
    scale: Scale
    # (groups,): how many rows of ``fit`` its first groups have, images and their copies where there are no others.
    # However many groups are taken, they are a stratified subset. Empty where no subset is wanted.
    ends: NDArray[np.intp] = field(default_factory=lambda: np.empty(0, np.intp))

    @property
    def train(self) -> Samples:
        """What is fitted on."""
        return self.data.taken(self.fit)

    @property
    def validation(self) -> Samples:
        """What is validated on."""
        return self.data.taken(self.held_out)

    def first(self, groups: int) -> FitAndValidation:
        """The same with a stratified subset of the groups to fit on."""
        return replace(self, fit=self.fit[: self.ends[groups - 1]], ends=self.ends[:groups])

    def columns(self, chosen: Sequence[slice]) -> FitAndValidation:
        """The same with some of the columns."""
        data = replace(self.data, features=self.data.features.columns(chosen))
        kept = np.r_[*chosen]
        return replace(self, data=data, scale=Scale(self.scale.mean[kept], self.scale.variance[kept], self.scale.rows))


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
    """All steps of a fit."""

    unit: str  # ``iteration``, ``epoch``, or the name of the parameter searched
    steps: list[Step] = field(default_factory=list)
    kept: float = 0  # the ``step`` of the one whose model was kept

    def to_csv(self) -> bytes:
        """The steps as CSV, the first column named after the unit."""
        rows = ([f"{step.step:g}", *(f"{value:.6f}" for value in astuple(step)[1:])] for step in self.steps)
        return to_csv((self.unit, *(item.name for item in fields(Step)[1:])), rows)


def predict(estimator: Any, features: FeatureRows, scale: Scale | None = None) -> NDArray[Any]:
    """Probabilities (n, classes) by an estimator of features, or of standardised ones if it is told by what."""
    if not features.shape[0]:
        return np.zeros((0, len(estimator.classes_)))
    pieces = np.array_split(np.arange(features.shape[0]), -(-features.shape[0] // SCORED_TOGETHER))
    block = np.empty((len(pieces[0]), features.shape[1]), np.float32)
    return np.vstack([estimator.predict_proba(features.read(piece, scale, block)) for piece in pieces])


def scores(estimator: Any, data: Samples, scale: Scale) -> Scores:
    """Mean cross-entropy in nats and accuracy of a fitted estimator of standardised features."""
    return scores_of(predict(estimator, data.features, scale), data.labels)


def scores_of(probabilities: NDArray[Any], labels: NDArray[Any]) -> Scores:
    """The same of probabilities (n, classes)."""
    loss = float(row_losses(probabilities, labels).mean()) + 0.0  # 0, not -0
    return loss, float(np.mean(probabilities.argmax(axis=1) == labels))


def row_losses(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """-log p of the right class (n,), in nats, of probabilities (n, classes) and their columns, int (n,) labels.

    p is clipped at float32's resolution as log_loss does.
    """
    right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: NDArray[np.float64] = -np.log(np.maximum(right, np.finfo(probabilities.dtype).eps))
    return losses

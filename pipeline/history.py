"""Loss and accuracy after every step of a fit, on the rows it learns from and on rows it does not.

A step is a solver iteration (`fit_iterations`) or a pass over the rows (`fit_epochs`). The loss is the
mean cross-entropy, without the penalty, in nats: the same number for both sets of rows, and for every
classifier.
"""

from __future__ import annotations

import csv
import io
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import astuple, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning

Scores = tuple[float, float]  # loss in nats, accuracy


@dataclass(frozen=True)
class Data:
    """Rows to learn from or to score: float32 (n, columns) and labels (n,)."""

    features: NDArray[np.float32]
    labels: NDArray[Any]


@dataclass(frozen=True)
class Step:
    """One row of a history."""

    step: int
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
        ``iteration`` or ``epoch``.
    steps : list of Step
    kept : int
        Number of the step whose model was kept.
    """

    unit: str
    steps: list[Step] = field(default_factory=list)
    kept: int = 0

    def to_csv(self) -> str:
        """The steps as CSV, the first column named after the unit."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([self.unit, *(item.name for item in fields(Step)[1:])])
        writer.writerows([step.step, *(f"{value:.6f}" for value in astuple(step)[1:])] for step in self.steps)
        return text.getvalue()


Watch = Callable[[Step], None]


def scores(estimator: Any, data: Data) -> Scores:
    """Mean cross-entropy in nats and accuracy of a fitted estimator."""
    probabilities = estimator.predict_proba(data.features)
    return cross_entropy(probabilities, np.searchsorted(estimator.classes_, data.labels)), float(
        np.mean(estimator.classes_[probabilities.argmax(axis=1)] == data.labels)
    )


def cross_entropy(probabilities: NDArray[Any], columns: NDArray[Any]) -> float:
    """Mean of -log p of the right class, in nats; p is clipped at float32's resolution as log_loss does.

    Parameters
    ----------
    probabilities : ndarray, float (n, classes)
    columns : ndarray, int (n,)
        Column of each row's right class.
    """
    right = probabilities[np.arange(len(columns)), columns].astype(np.float64)
    return float(-np.log(np.maximum(right, np.finfo(probabilities.dtype).eps)).mean())


class _Callback:
    """What scikit-learn asks of a callback, doing nothing."""

    def setup(self, estimator: Any, context: Any) -> None:
        """Called before a fit."""

    def teardown(self, estimator: Any, context: Any) -> None:
        """Called after a fit."""

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Called before a fit and before every iteration."""


class _Recorder(_Callback):
    """Scores the model after every solver iteration."""

    def __init__(self, history: History, train: Data, validation: Data, watch: Watch) -> None:
        self._history, self._train, self._validation, self._watch = history, train, validation, watch

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any = None) -> None:
        """Score the model as it stands after this iteration."""
        if context.task_name != "lbfgs-iter" or fitted_estimator is None:
            return
        number = len(self._history.steps) + 1
        step = Step(number, *scores(fitted_estimator, self._train), *scores(fitted_estimator, self._validation))
        self._history.steps.append(step)
        self._watch(step)


class _Ticker(_Callback):
    """Counts solver iterations, for progress."""

    def __init__(self, tick: Callable[[int], None]) -> None:
        self._tick, self._count = tick, 0

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Count."""
        if context.task_name == "lbfgs-iter":
            self._count += 1
            self._tick(self._count)


def _fit_with(callback: _Callback, estimator: Any, train: Data) -> None:
    estimator.set_callbacks(callback)
    try:
        with warnings.catch_warnings():
            # How the solver ended is in the history, where it can be seen and not only read.
            warnings.simplefilter("ignore", ConvergenceWarning)
            estimator.fit(train.features, train.labels)
    finally:
        estimator.set_callbacks()  # a fitted model must not carry the data with it


def fit_iterations(estimator: Any, train: Data, validation: Data, watch: Watch) -> History:
    """Fit a LogisticRegression (lbfgs), scoring it after every solver iteration.

    The last iteration is the one kept: the objective is convex, so there is nothing to stop early.

    Parameters
    ----------
    estimator : LogisticRegression
        Fitted in place.
    train, validation : Data
    watch : callable
        Told every step.
    """
    history = History("iteration")
    _fit_with(_Recorder(history, train, validation, watch), estimator, train)
    history.kept = len(history.steps)
    return history


def fit_quietly(estimator: Any, train: Data, tick: Callable[[int], None]) -> None:
    """Fit a LogisticRegression (lbfgs) without scoring; ``tick`` is told the number of every iteration."""
    _fit_with(_Ticker(tick), estimator, train)


def fit_epochs(
    estimator: Any, train: Data, validation: Data, watch: Watch, *, max_epochs: int, patience: int
) -> History:
    """Fit an estimator pass by pass, stopping early on validation, and keep the best epoch's model.

    MLPClassifier's own early stopping splits off rows of its own and keeps no validation loss; one
    `partial_fit` is one epoch, so both can be had from outside.

    Parameters
    ----------
    estimator : MLPClassifier
        Fitted in place; ends as it was after the epoch with the lowest validation loss.
    train, validation : Data
    watch : callable
        Told every step.
    max_epochs : int
    patience : int
        Epochs without a lower validation loss before stopping.
    """
    history = History("epoch")
    best: dict[str, Any] = {}
    lowest = np.inf
    classes = np.unique(train.labels)
    for epoch in range(1, max_epochs + 1):
        estimator.partial_fit(train.features, train.labels, classes=classes)
        step = Step(epoch, *scores(estimator, train), *scores(estimator, validation))
        history.steps.append(step)
        watch(step)
        if step.validation_loss < lowest:
            lowest, history.kept = step.validation_loss, epoch
            best = {name: deepcopy(getattr(estimator, name)) for name in ("coefs_", "intercepts_")}
        elif epoch - history.kept >= patience:
            break
    for name, value in best.items():
        setattr(estimator, name, value)
    return history


def fit_fixed_epochs(estimator: Any, train: Data, epochs: int, tick: Callable[[int], None]) -> None:
    """Fit an MLPClassifier for exactly so many epochs; ``tick`` is told the number of every one."""
    classes = np.unique(train.labels)
    for epoch in range(1, epochs + 1):
        estimator.partial_fit(train.features, train.labels, classes=classes)
        tick(epoch)

"""Fitting one set of parameters, each classifier in its own way, with its history.

What is fitted here is fitted on a part of the training rows and scored on validation; `refit` makes the model
that is kept.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.linalg import LinAlgWarning
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import ConvergenceWarning
from sklearn.frozen import FrozenEstimator

from pipeline.common.errors import UserError
from pipeline.models import classifiers, history, logistic
from pipeline.models.history import History, Samples, Scores, Step, Watch

IMPROVEMENT = 1e-3  # of the validation loss that patience is renewed for: averaged models creep on for ever


@dataclass(frozen=True)
class Fitted:
    """A set of parameters, fitted and scored.

    Attributes
    ----------
    params : dict
        All of them; of a classifier that learns in epochs with ``epochs``, the number that was best.
    history : History
    train, validation : tuple of float
        Loss in nats and accuracy on either.
    not_converged : str or None
        Why it did not converge; None when it did.
    model : object
        `logistic.LinearModel` of the logistic regression, else an estimator that gives probabilities.
    """

    params: dict[str, Any]
    history: History
    train: Scores
    validation: Scores
    not_converged: str | None
    model: Any = field(compare=False, repr=False)


def fit_classifier(
    name: str,
    params: Mapping[str, Any],
    train: Samples,
    validation: Samples,
    seed: int,
    *,
    start: logistic.LinearModel | None = None,
    watch: Watch = lambda step: None,
) -> Fitted:
    """Fit one set of parameters and score it on both sets of rows.

    Parameters
    ----------
    name : str
        The classifier's.
    params : mapping
        All its parameters.
    train, validation : Samples
        Standardised. No class of the latter is missing in the former.
    seed : int
    start : LinearModel, optional
        Where an iterative solver begins; ignored by classifiers without one.
    watch : callable
        Told every step.

    Raises
    ------
    UserError
        When the parameters are so extreme that nothing finite comes out.
    """
    if len(np.unique(train.labels)) <= max(train.labels.max(), validation.labels.max()):
        raise AssertionError("the rows to fit on lack a class: other rows of it would be scored as the next one")
    kind = classifiers.get(name).solver_kind
    with _overflow_as_user_error(name, params):
        if kind == "iterations":
            return _fit_iterations(dict(params), train, validation, start, watch)
        return (_fit_epochs if kind == "epochs" else _fit_once)(name, dict(params), train, validation, seed, watch)


def _is_overflow(error: ValueError) -> bool:
    """Whether scikit-learn, scipy or numpy complains of numbers that are not finite."""
    return re.search(r"finite|\binf|NaN|too large", str(error)) is not None


@contextmanager
def _overflow_as_user_error(name: str, params: Mapping[str, Any]) -> Iterator[None]:
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is said below
            yield
    except ValueError as error:
        if not _is_overflow(error):
            raise
        raise UserError(
            f"The classifier {name} cannot be fitted with {classifiers.describe(params)}: its numbers overflow. "
            f"Choose less extreme values."
        ) from error


def _fit_iterations(
    params: dict[str, Any], train: Samples, validation: Samples, start: logistic.LinearModel | None, watch: Watch
) -> Fitted:
    """By L-BFGS. The last iteration is kept: the objective is convex, so there is nothing to stop early."""
    steps: list[Step] = []

    def after(number: int, weights: logistic.LinearModel, loss: float, accuracy: float) -> None:
        steps.append(Step(number, loss, accuracy, *_score_weights(weights, validation)))
        watch(steps[-1])

    found = logistic.fit(train.features, train.labels, **params, start=start, watch=after)
    reason = found.not_converged
    if not steps:
        steps.append(Step(0, *_score_weights(found.weights, train), *_score_weights(found.weights, validation)))
        if start is not None:
            reason = (
                f"where it started, at the end of another fit, the gradient was below tol={params['tol']:g} already"
            )
    last = steps[-1]
    return Fitted(
        params,
        History("iteration", steps, last.step),
        (last.train_loss, last.train_accuracy),
        (last.validation_loss, last.validation_accuracy),
        reason,
        found.weights,
    )


def _score_weights(weights: logistic.LinearModel, data: Samples) -> Scores:
    _, loss, right = logistic.residuals(weights.scores(data.features), data.labels.astype(np.intp))
    return loss / len(data.labels), right / len(data.labels)


def _run_epoch(estimator: Any, train: Samples, classes: np.typing.NDArray[Any]) -> None:
    """One epoch. MLPClassifier takes an interrupt for the end of its training and warns; it is one again here."""
    swallowed = "Training interrupted by user"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", swallowed)
        try:
            estimator.partial_fit(train.features, train.labels, classes=classes)
        except UserWarning as warning:
            if swallowed not in str(warning):
                raise
            raise KeyboardInterrupt from warning


def _fit_epochs(
    name: str, params: dict[str, Any], train: Samples, validation: Samples, seed: int, watch: Watch
) -> Fitted:
    """Pass by pass, stopping early on validation; the epoch with the lowest validation loss is kept.

    MLPClassifier's own early stopping splits off rows of its own and keeps no validation loss; one
    `partial_fit` is one epoch, so both can be had from outside.
    """
    classifier = classifiers.get(name)
    estimator = classifier.make(params, seed, train.features.shape)
    classes = np.unique(train.labels)
    steps = History("epoch")
    best: Any = None
    better, lowest = 0, np.inf  # the last epoch that counts as an improvement, and its loss
    reason: str | None = f"the validation loss was still falling at max_epochs={params['max_epochs']}"
    for epoch in range(1, params["max_epochs"] + 1):
        try:
            _run_epoch(estimator, train, classes)
        except ValueError as error:
            if best is None or not _is_overflow(error):
                raise
            reason = f"it diverged in epoch {epoch}"
            break
        model = estimator if classifier.probabilities else _with_temperature(estimator, validation)
        step = Step(epoch, *history.scores(model, train), *history.scores(model, validation))
        steps.steps.append(step)
        watch(step)
        if best is None or step.validation_loss < steps.steps[int(steps.kept) - 1].validation_loss:
            steps.kept, best = epoch, deepcopy(model)
        if step.validation_loss < lowest * (1 - IMPROVEMENT):
            better, lowest = epoch, step.validation_loss
        elif epoch - better >= params["patience"]:
            reason = None
            break
    kept = steps.steps[int(steps.kept) - 1]
    return Fitted(
        {**params, "epochs": int(steps.kept)},
        steps,
        (kept.train_loss, kept.train_accuracy),
        (kept.validation_loss, kept.validation_accuracy),
        reason,
        best,
    )


def _fit_once(
    name: str, params: dict[str, Any], train: Samples, validation: Samples, seed: int, watch: Watch
) -> Fitted:
    """In one step; its history is a single point, which a search joins to a validation curve."""
    classifier = classifiers.get(name)
    estimator = classifier.make(params, seed, train.features.shape)
    reason = _convergence_warnings(lambda: estimator.fit(train.features, train.labels))
    model = estimator if classifier.probabilities else _with_temperature(estimator, validation)
    rows = slice(classifier.max_scored_rows)
    sample = Samples(train.features[rows], train.labels[rows])
    fitted, held_out = history.scores(model, sample), history.scores(model, validation)
    value = params[classifier.tuned_option]
    step = Step(value, *fitted, *held_out)
    watch(step)
    return Fitted(params, History(classifier.tuned_option, [step], value), fitted, held_out, reason, model)


def _convergence_warnings(work: Callable[[], Any]) -> str | None:
    """Do something; return what scikit-learn or scipy warned of, None when all went well."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        warnings.simplefilter("always", LinAlgWarning)
        work()
    troubles = [str(item.message) for item in caught if issubclass(item.category, ConvergenceWarning | LinAlgWarning)]
    return " ".join(troubles[0].split()) if troubles else None


def _with_temperature(estimator: Any, validation: Samples) -> Any:
    """Give a fitted estimator probabilities: softmax of its decision values over a temperature.

    The temperature is fitted on the validation split: one number, which changes no prediction. Source: Guo et
    al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    everything = np.arange(len(validation.labels))
    calibrated = CalibratedClassifierCV(
        FrozenEstimator(estimator), method="temperature", cv=[(everything, everything)], ensemble=False
    )
    return calibrated.fit(validation.features, validation.labels)


def refit(name: str, train: Samples, seed: int, chosen: Fitted, tick: Callable[[], None]) -> tuple[Any, str | None]:
    """Fit the chosen parameters on all training rows.

    Parameters
    ----------
    name : str
        The classifier's.
    train : Samples
        All training rows, standardised.
    seed : int
    chosen : Fitted
        On the 90 %: its parameters, where a solver may start, and the temperature. Used up.
    tick : callable
        Called after every iteration or epoch.

    Returns
    -------
    estimator : object
        From standardised features to labels and probabilities.
    not_converged : str or None
        Why it did not converge; None when it did.
    """
    classifier, params = classifiers.get(name), chosen.params
    if classifier.solver_kind == "iterations":
        found = logistic.fit(
            train.features, train.labels, **params, start=chosen.model, watch=lambda *_: tick()
        )  # fmt: skip
        return logistic.finish(train.features, train.labels, params, found)
    estimator = classifier.make(params, seed, train.features.shape)
    reason = None
    with _overflow_as_user_error(name, params):
        if classifier.solver_kind == "epochs":
            classes = np.unique(train.labels)
            for _ in range(params["epochs"]):
                _run_epoch(estimator, train, classes)
                tick()
        else:
            reason = _convergence_warnings(lambda: estimator.fit(train.features, train.labels))
            tick()
    if classifier.probabilities:
        return estimator, reason
    # The temperature stays the one fitted on validation: there are no rows left that this model has not seen.
    calibrated, frozen = chosen.model, FrozenEstimator(estimator)
    calibrated.set_params(estimator=frozen, cv=None)
    calibrated.calibrated_classifiers_[0].estimator = frozen
    return calibrated, reason

"""What is to be fitted, what came of it, and what all ways of fitting have in common."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.utils.class_weight import compute_sample_weight

from pipeline.common.errors import UserError
from pipeline.models import classifiers
from pipeline.models.history import FitAndValidation, History, Scores, Step
from pipeline.models.logistic import LinearModel

GIVEN_UP = "given up after step {:g}: others were ahead on validation"
TEMPERATURE_ROWS = 5000  # of validation that the temperature, one number, is fitted on at most

Watch = Callable[[int, Step], object]  # told which job, and its last step


@dataclass(frozen=True)
class Job:
    """Parameters to fit, all of them, and on which rows; where an iterative solver begins, if not at zeros."""

    params: Mapping[str, Any]
    rows: FitAndValidation
    seed: int
    start: LinearModel | None = None


@dataclass(frozen=True)
class Fitted:
    """A set of parameters, fitted and scored."""

    params: dict[str, Any]  # all; of a classifier that learns in epochs with ``epochs``, the number that was best
    history: History
    train: Scores
    validation: Scores
    not_converged: str | None  # why it did not converge; None when it did
    # `LinearModel` of the logistic regression, else an estimator that gives probabilities.
    model: Any = field(compare=False, repr=False)
    criterion: float  # what the best is chosen by: the validation loss, with classes weighed as they are in fitting


def row_weights(params: Mapping[str, Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Weights (n,) of rows: ones, or such that all classes weigh the same if that is asked for."""
    weights: NDArray[np.float64] = compute_sample_weight(params.get("class_weight"), labels)
    return weights


def criterion_of(params: Mapping[str, Any], losses: NDArray[Any], labels: NDArray[Any]) -> float:
    """What parameters are chosen by, from the losses of the validation rows (n,)."""
    return float(np.average(losses, weights=row_weights(params, labels)))


def is_overflow(error: ValueError) -> bool:
    """Whether scikit-learn, scipy or numpy complains of numbers that are not finite."""
    return re.search(r"finite|\binf|NaN|too large", str(error)) is not None


@contextmanager
def overflow_as_user_error(name: str, params: Mapping[str, Any]) -> Iterator[None]:
    """Turn what parameters so extreme that nothing finite comes out make of a fit into `UserError`."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):  # what comes of it is said below
            yield
    except ValueError as error:
        if not is_overflow(error):
            raise
        raise UserError(
            f"The classifier {name} cannot be fitted with {classifiers.describe(params)}: its numbers overflow. "
            f"Choose less extreme values."
        ) from error


def with_temperature(estimator: Any, rows: FitAndValidation) -> Any:
    """Give a fitted estimator probabilities: softmax of its decision values over a temperature.

    The temperature is fitted on the validation split: one number, which changes no prediction. Source: Guo et
    al. 2017, https://arxiv.org/abs/1706.04599, section 4.2.
    """
    chosen = rows.held_out[:TEMPERATURE_ROWS]
    everything = np.arange(len(chosen))
    calibrated = CalibratedClassifierCV(
        FrozenEstimator(estimator), method="temperature", cv=[(everything, everything)], ensemble=False
    )
    return calibrated.fit(rows.data.features.read(chosen, rows.scale), rows.data.labels[chosen])

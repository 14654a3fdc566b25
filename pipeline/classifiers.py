"""Named scikit-learn classifiers: standardised features into one estimator, and where to search.

Their options are in `pipeline.spec`, which loads without scikit-learn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

SCALE_ROWS = 4096  # rows that go through the scaler together: bounds its float64 copies
EARLY_STOPPING = ("max_epochs", "patience", "epochs")  # ours, not MLPClassifier's


def _search_C(columns: int) -> list[float]:  # noqa: N802 - scikit-learn's name
    """Inverse L2 strengths from ``0.03 / sqrt(columns)`` up in steps of 2.5, most regularised first.

    On CIFAR-10's validation split 0.003 had the lowest log loss for 6,016 columns and 0.01 for 512, which is
    ``0.2 / sqrt(columns)``, the third of these. scikit-learn's default of 1 is far off for either.
    """
    centre = 0.2 / math.sqrt(columns)
    return [_round(centre * 2.5**power) for power in range(-2, 8)]


def _search_alpha(columns: int) -> list[float]:
    """L2 strengths around ``sqrt(columns) / 80``, most regularised first: 1 for 6,016 columns."""
    centre = math.sqrt(columns) / 80
    return [_round(centre * factor) for factor in (3, 1, 1 / 3)]


def _round(value: float) -> float:
    """Two significant digits: enough for a regularisation strength, and readable."""
    return float(f"{value:.1e}")


_SEARCH: dict[str, Callable[[int], list[float]]] = {"C": _search_C, "alpha": _search_alpha}


def candidates(options: Mapping[str, Any], columns: int) -> list[dict[str, Any]]:
    """Parameter sets to choose from on validation, most regularised first.

    Parameters
    ----------
    options : mapping
        As `spec.classifier_options` gives them; the one that is None is searched.
    columns : int
        Of the features: the more there are, the stronger the regularisation must be.
    """
    searched = [name for name, value in options.items() if value is None]
    if not searched:
        return [dict(options)]
    (name,) = searched
    return [{**options, name: value} for value in _SEARCH[name](columns)]


def make(name: str, params: Mapping[str, Any], seed: int) -> Any:
    """An unfitted estimator of a classifier, for features that are already standardised."""
    if name == "logistic":
        # L2 is its default penalty. A warm start makes a path of several C cheap; the optimum is the same.
        return LogisticRegression(**params, solver="lbfgs", warm_start=True)
    own = {key: value for key, value in params.items() if key not in EARLY_STOPPING}
    # A generator, not a number: each partial_fit would shuffle alike from the same number.
    return MLPClassifier(**own, solver="adam", random_state=np.random.RandomState(seed))


def fit_scaler(features: NDArray[np.float32]) -> StandardScaler:
    """Means and deviations of float32 (n, columns), gathered in float64 a few thousand rows at a time."""
    scaler = StandardScaler()
    for start in range(0, len(features), SCALE_ROWS):
        scaler.partial_fit(features[start : start + SCALE_ROWS])
    return scaler


def standardise(scaler: StandardScaler, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Standardise float32 (n, columns) in place, which spares a gigabyte, and return it."""
    for start in range(0, len(features), SCALE_ROWS):
        rows = slice(start, start + SCALE_ROWS)
        features[rows] = scaler.transform(features[rows])
    return features


def assemble(name: str, scaler: StandardScaler, estimator: Any, seed: int) -> Pipeline:
    """One fitted pipeline, raw features to class labels, of a fitted scaler and a fitted estimator."""
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)
    return Pipeline([("scale", scaler), (name, estimator)])

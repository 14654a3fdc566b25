"""Standardising features: means and deviations in float64, the arrays themselves in float32, in place."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

SCALE_ROWS = 4096  # rows that go through the scaler together: bounds its float64 copies


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
        estimator.set_params(random_state=seed)  # a number again: a generator's state is nobody's parameter
    return Pipeline([("scale", scaler), (name, estimator)])

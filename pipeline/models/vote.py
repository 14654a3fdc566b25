"""Soft votes: the mean of several models' probabilities, each with a weight that validation gave it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelEncoder

from pipeline.features.spec import FeatureSpec
from pipeline.models.persistence import Model
from pipeline.network.taps import columns_among

STEPS, SMALL = 10_000, 1e-7  # at most, and a change of the weights that ends them


def weigh(probabilities: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Weights (models,) whose mean of the models' probabilities has the lowest cross-entropy; their sum is 1.

    They are the shares of a mixture of known components, whose likelihood has one maximum, found by expectation
    maximisation: Dempster, Laird & Rubin 1977, https://doi.org/10.1111/j.2517-6161.1977.tb01600.x, section 4.3. The
    probabilities (models, n, classes) are of rows that no model has learnt from, whose labels are (n,) ints.
    """
    right = probabilities[:, np.arange(len(labels)), labels].astype(np.float64)
    right = np.maximum(right, np.finfo(np.float32).eps)
    weights = np.full(len(right), 1 / len(right))
    for _ in range(STEPS):
        shares = weights[:, None] * right
        before, weights = weights, (shares / shares.sum(axis=0)).mean(axis=1)
        if np.abs(weights - before).max() < SMALL:
            break
    return weights


def voters(models: Mapping[str, Model], weights: Mapping[str, float], spec: FeatureSpec) -> VotingClassifier:
    """A classifier of features of ``spec`` that is the weighted mean of models, each of some of its columns."""
    members = {}
    for name, model in models.items():
        caches = [spec.sizes.index(size) for size in model.spec.sizes]
        own = np.r_[*columns_among(model.spec.taps, spec.taps, caches)].tolist()
        chosen = ColumnTransformer([("own", "passthrough", own)]).fit(np.zeros((1, spec.columns), np.float32))
        members[name] = Pipeline([("columns", chosen), ("model", model.estimator)])
    vote = VotingClassifier(list(members.items()), voting="soft", weights=[weights[name] for name in members])
    # Fitted as they are: VotingClassifier itself would fit them again.
    vote.estimators_, vote.named_estimators_ = list(members.values()), members
    vote.le_ = LabelEncoder().fit(next(iter(models.values())).estimator.classes_)
    vote.classes_ = vote.le_.classes_
    return vote

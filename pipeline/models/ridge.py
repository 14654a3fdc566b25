"""Ridge regression on the classes, for every strength from one matrix: of products of columns, or of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_factor, cho_solve, lstsq
from scipy.linalg.blas import dger, dsyrk
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import LabelBinarizer

from pipeline.common.errors import UserError
from pipeline.common.memory import free_memory
from pipeline.common.progress import format_bytes
from pipeline.features.rows import FeatureRows, Scale

GRAM_ROWS = 512  # that are multiplied together


def check_memory(name: str, what: str, needed: int) -> None:
    """Raise UserError when a classifier needs more bytes than are free."""
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"The classifier {name} needs {format_bytes(needed)} for {what}, and {format_bytes(free)} are free. Choose "
            f"fewer --taps (those that end in .cov have most columns, then .avg2x2), fewer sizes, or --classifier "
            f"logistic or mlp, whose memory does not grow like that."
        )


def fit(
    rows: FeatureRows,
    labels: NDArray[Any],
    weights: NDArray[np.float64],
    scale: Scale,
    estimators: Sequence[RidgeClassifier],
    before: Pipeline | None = None,
) -> None:
    """Fit scikit-learn's estimators, of which only ``alpha`` differs, all in one pass.

    Parameters
    ----------
    rows : FeatureRows
        Not standardised; ``scale`` does that to the columns.
    labels : ndarray, int (n,)
    weights : ndarray, float (n,)
        Of the rows.
    before : Pipeline, optional
        What is fitted already and makes of standardised rows the columns to fit on.

    Raises
    ------
    UserError
        When the products do not fit into memory.
    """
    count, columns = len(labels), rows.shape[1] if before is None else len(before.get_feature_names_out())
    few = count < columns  # then products of rows with each other are fewer, and tell the same
    what = f"the products of {count:,} rows" if few else f"the products of {columns:,} columns"
    needed = 8 * count * (2 * count + columns) if few else 2 * 8 * columns**2
    check_memory("ridge" if before is None else "kernel", what, needed)
    binarizer = LabelBinarizer(neg_label=-1).fit(labels)
    targets = binarizer.transform(labels).astype(np.float64)
    total, means = weights.sum(), weights @ targets / weights.sum()
    targets = np.sqrt(weights)[:, None] * (targets - means)
    everything = np.empty((count if few else 0, columns))
    products = np.zeros((0 if few else columns,) * 2, order="F")  # its lower half
    moments, right = np.zeros(columns), np.zeros((columns, targets.shape[1]))
    for here, block in rows.blocks(GRAM_ROWS):
        wide = scale.standardise(block)
        wide = (wide if before is None else before.transform(wide)).astype(np.float64)
        moments += weights[here] @ wide
        wide *= np.sqrt(weights[here])[:, None]
        if few:
            everything[here] = wide
            continue
        right += wide.T @ targets[here]
        products = dsyrk(1.0, wide.T, beta=1.0, c=products, lower=1, overwrite_c=1)
    if few:
        root = np.sqrt(weights)
        dger(-1.0, moments / total, root, a=everything.T, overwrite_a=1)  # in place: that memory was asked for once
        # Centring took a direction away, without which there is no inverse. Targets have nothing of it either, so that
        # it may be anything.
        products = np.outer(root, root).T
        products = dsyrk(1.0, everything.T, beta=1.0, c=products, trans=1, lower=1, overwrite_c=1)
        right = targets
    else:
        products = dsyrk(-1 / total, moments[:, None], beta=1.0, c=products, lower=1, overwrite_c=1)
    strengthened = np.empty_like(products)
    for estimator in estimators:
        strengthened[...] = products
        strengthened[np.diag_indices(len(products))] += estimator.alpha
        try:
            coef = cho_solve(cho_factor(strengthened, lower=True, overwrite_a=True, check_finite=False), right)
        except LinAlgError:  # alpha is 0, and some column follows from others
            coef = lstsq(np.tril(products) + np.tril(products, -1).T, right)[0]
        coef = everything.T @ coef if few else coef
        intercept = (means - moments @ coef / total).astype(np.float32)
        # Of two classes scikit-learn keeps one vector and one number.
        estimator.coef_ = (coef[:, 0] if coef.shape[1] == 1 else coef.T).astype(np.float32)
        estimator.intercept_ = intercept
        estimator._label_binarizer, estimator.classes_ = binarizer, binarizer.classes_
        estimator.n_features_in_, estimator.n_iter_, estimator.solver_ = columns, None, "cholesky"

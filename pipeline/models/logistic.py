"""Multinomial logistic regression on wide float32 features, by L-BFGS, scored at every iteration.

scikit-learn's own solver computes a gradient as ``residuals.T @ features``, which BLAS libraries do several
times slower than the equal ``(features.T @ residuals).T`` when there are few classes and many columns, and it
does not give away the loss that it computes at every iteration. Here both are had: the same objective, the
same minimiser (scipy's L-BFGS-B), the same meaning of ``C``, ``tol`` and ``max_iter``. `finish` then hands
the optimum to scikit-learn, whose own solver has the last word on whether it is one.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import OptimizeResult, minimize
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

BLOCK_ROWS = 256  # float32 rows of a few thousand columns that stay in the processor's cache between both products
HEADROOM = 0.9  # of the tolerance: scikit-learn's own check, which rounds otherwise, then agrees


@dataclass(frozen=True)
class LinearModel:
    """A linear model: float32 (outputs, columns) and (outputs,); one output when there are two classes."""

    coef: NDArray[np.float32]
    intercept: NDArray[np.float32]

    def scores(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """Decision values, float32 (n, outputs)."""
        values: NDArray[np.float32] = features @ self.coef.T + self.intercept
        return values


@dataclass(frozen=True)
class Fit:
    """Where the solver ended.

    Attributes
    ----------
    weights : LinearModel
    iterations : int
    not_converged : str or None
        Why it ended before the tolerance was met; None when it was met.
    """

    weights: LinearModel
    iterations: int
    not_converged: str | None


Watch = Callable[[int, LinearModel, float, float], None]  # iteration, weights, mean loss in nats, accuracy


def residuals(scores: NDArray[np.float32], labels: NDArray[np.intp]) -> tuple[NDArray[np.float32], float, int]:
    """Gradient of the cross-entropy by the decision values, its sum in nats, and how many rows are right.

    Parameters
    ----------
    scores : ndarray, float32 (n, outputs)
        Decision values; one output, that of class 1, when there are two classes. Overwritten.
    labels : ndarray, int (n,)
        Class numbers from 0.
    """
    if scores.shape[1] == 1:
        # With a second output of zero the softmax of two is the logistic function of one.
        gradient, loss, right = residuals(np.hstack([np.zeros_like(scores), scores]), labels)
        return gradient[:, 1:], loss, right
    rows = np.arange(len(labels))
    right = int(np.count_nonzero(scores.argmax(axis=1) == labels))
    scores -= scores.max(axis=1, keepdims=True)
    picked = scores[rows, labels].astype(np.float64)
    np.exp(scores, out=scores)
    total = scores.sum(axis=1, keepdims=True)
    loss = float(np.log(total[:, 0].astype(np.float64)).sum() - picked.sum())
    scores /= total
    scores[rows, labels] -= 1
    return scores, loss, right


class _Objective:
    """Mean cross-entropy plus the L2 penalty, and its gradient, for flat float64 parameters.

    The rows go through in blocks that fit into the cache, each used for both products while it is there, so
    that memory is read once and not twice; a thread for each core takes a contiguous share of the rows.
    """

    def __init__(self, features: NDArray[np.float32], labels: NDArray[np.intp], outputs: int, strength: float) -> None:
        self._features, self._labels, self._strength = features, labels, strength
        self._shape = (features.shape[1], outputs)
        self._threads = max(1, min(cores(), len(features) // BLOCK_ROWS))
        self._bounds = np.linspace(0, len(features), self._threads + 1).astype(int)
        self.pool = ThreadPoolExecutor(self._threads)
        self.last: tuple[NDArray[np.float64], float, float] | None = None  # parameters, loss, accuracy

    def weights(self, flat: NDArray[np.float64]) -> LinearModel:
        """The model of flat parameters."""
        columns, outputs = self._shape
        coef = np.ascontiguousarray(flat[: columns * outputs].reshape(columns, outputs).T, dtype=np.float32)
        return LinearModel(coef, flat[columns * outputs :].astype(np.float32))

    def flat(self, weights: LinearModel) -> NDArray[np.float64]:
        """The flat parameters of a model."""
        return np.concatenate([weights.coef.T.ravel(), weights.intercept]).astype(np.float64)

    def __call__(self, flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Objective and gradient."""
        columns, outputs = self._shape
        size, rows = columns * outputs, len(self._features)
        coef = flat[:size].reshape(columns, outputs).astype(np.float32)
        intercept = flat[size:].astype(np.float32)
        shares = [
            self.pool.submit(self._share, coef, intercept, int(start), int(stop))
            for start, stop in zip(self._bounds[:-1], self._bounds[1:], strict=True)
        ]
        gradient = np.zeros_like(flat)
        loss, right = 0.0, 0
        for share in shares:  # in their order, so that equal inputs give equal bits
            by_coef, by_intercept, part, count = share.result()
            gradient[:size] += by_coef.ravel()
            gradient[size:] += by_intercept
            loss, right = loss + part, right + count
        gradient /= rows
        gradient[:size] += self._strength * flat[:size]
        self.last = (flat.copy(), loss / rows, right / rows)
        return loss / rows + 0.5 * self._strength * float(flat[:size] @ flat[:size]), gradient

    def _share(
        self, coef: NDArray[np.float32], intercept: NDArray[np.float32], start: int, stop: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], float, int]:
        by_coef, by_intercept = np.zeros(self._shape), np.zeros(self._shape[1])
        loss, right = 0.0, 0
        for first in range(start, stop, BLOCK_ROWS):
            rows = slice(first, min(first + BLOCK_ROWS, stop))
            block = self._features[rows]
            gradient, part, count = residuals(block @ coef + intercept, self._labels[rows])
            by_coef += block.T @ gradient
            by_intercept += gradient.sum(axis=0, dtype=np.float64)
            loss, right = loss + part, right + count
        return by_coef, by_intercept, loss, right


def cores() -> int:
    """Processor cores that this process may use; fewer when the environment says so, as joblib's workers are told."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(available, int(limit)) if limit.isdigit() and int(limit) else available


def fit(
    features: NDArray[np.float32],
    labels: NDArray[Any],
    *,
    C: float,  # noqa: N803 - scikit-learn's name
    tol: float,
    max_iter: int,
    start: LinearModel | None,
    watch: Watch,
) -> Fit:
    """Minimise the mean cross-entropy plus ``|coef|² / (2 C n)``, as LogisticRegression defines it.

    Parameters
    ----------
    features : ndarray, float32 (n, columns)
        Standardised.
    labels : ndarray, int (n,)
        Class numbers from 0; every one up to the highest must occur.
    C, tol, max_iter
        As LogisticRegression's: inverse L2 strength, largest gradient component to stop at, iterations at most.
    start : LinearModel, optional
        Where to begin; zeros when None. The objective is strictly convex, so it changes the way, not the end.
    watch : callable
        Told the number of each iteration, the model after it, and its loss and accuracy on these very rows.
    """
    classes = int(labels.max()) + 1
    outputs = 1 if classes == 2 else classes
    objective = _Objective(features, labels.astype(np.intp), outputs, 1.0 / (C * len(features)))
    zeros = LinearModel(np.zeros((outputs, features.shape[1]), np.float32), np.zeros(outputs, np.float32))
    count = 0

    def after(intermediate_result: OptimizeResult) -> None:
        nonlocal count
        count += 1
        flat = np.asarray(intermediate_result.x)
        if objective.last is None or not np.array_equal(objective.last[0], flat):
            objective(flat)  # the line search ended on another point than it accepted
        if objective.last is None:
            raise AssertionError("an iteration without an evaluation")
        watch(count, objective.weights(flat), objective.last[1], objective.last[2])

    with objective.pool, threadpool_limits(1, user_api="blas"):
        end = minimize(
            objective,
            objective.flat(start or zeros),
            method="L-BFGS-B",
            jac=True,
            callback=after,
            # As scikit-learn sets them: the tolerance alone decides, not the objective's last digits.
            options={"maxiter": max_iter, "maxls": 50, "gtol": HEADROOM * tol, "ftol": 64 * np.finfo(float).eps},
        )
    reason = None
    if count >= max_iter and not end.success:
        reason = f"the solver stopped at max_iter={max_iter} before its gradient was below tol={tol:g}"
    elif not end.success:
        reason = f"the solver stopped early: {end.message}"
    return Fit(objective.weights(np.asarray(end.x)), count, reason)


def finish(
    features: NDArray[np.float32], labels: NDArray[Any], params: dict[str, Any], found: Fit
) -> tuple[LogisticRegression, str | None]:
    """Let scikit-learn fit from the optimum found: it agrees at once, or goes on.

    Returns
    -------
    estimator : LogisticRegression
        Fitted; its ``n_iter_`` counts the iterations of both.
    not_converged : str or None
        Why it did not converge; None when scikit-learn says that it did.
    """
    left = max(1, params["max_iter"] - found.iterations)
    estimator = LogisticRegression(**{**params, "max_iter": left}, solver="lbfgs", warm_start=True)
    estimator.classes_ = np.unique(labels)
    estimator.coef_, estimator.intercept_ = found.weights.coef, found.weights.intercept
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        estimator.fit(features, labels)
    estimator.set_params(max_iter=params["max_iter"], warm_start=False)
    estimator.n_iter_ = estimator.n_iter_ + found.iterations
    unsettled = any(issubclass(item.category, ConvergenceWarning) for item in caught)
    return estimator, (found.not_converged or "scikit-learn's solver did not converge either") if unsettled else None

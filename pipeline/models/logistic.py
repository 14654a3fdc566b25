"""Multinomial logistic regression in few passes over float16 rows, many fits in each pass.

The objective is scikit-learn's: the mean cross-entropy, weighted if rows are, plus ``|coef|² / (2 C sum of weights)``
over standardised columns, the intercept free. So are the meanings of ``C``, ``tol`` and ``max_iter``. It is minimised
by L-BFGS (Nocedal & Wright, Numerical Optimization, 2006, algorithm 7.4) with two changes that make a pass over the
rows count:

- The initial Hessian of each step is ``a X'X / n + 1 / (C n)``, by the leading eigenvectors of a sample of the rows
  (a Nyström preconditioner; Frangella, Tropp & Udell 2023, https://doi.org/10.1137/21M1466244), the curvature ``a``
  being half of what it is at zero weights: a few dozen iterations, not hundreds, for any C, with no matrix of
  columns × columns.
- Fits of the same rows go in lockstep, each with row weights of its own (values of C, folds, subsets): widening a
  block of rows costs as much as the products of one fit, and is done once for all.

Standardising is folded into the weights, ``x·w/σ − μ·w/σ``, so there is no standardised copy of the rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from sklearn.utils.extmath import randomized_svd

from pipeline.features.rows import FeatureRows, Scale
from pipeline.models.history import Step

Floats = NDArray[np.float64]

TIGHT = 1e-5  # tolerance below which blocks are float64: float32's rounding would end the search before it is met
MEMORY = 8  # pairs of steps and gradients that L-BFGS keeps
SAMPLE_ROWS, RANK = 1500, 100  # of the preconditioner: more of either saved no pass (CIFAR-10, 6,016 columns)
SIDE_BY_SIDE = 128  # outputs of all fits in lockstep: beyond, the gradients leave the processor's cache
FLUSH = 16  # blocks whose gradients are summed up in float32, before they are added in float64
BACKTRACKS = 20
DUAL_ROWS = 1024  # rows up to which, where columns are four times as many, the fit is in the space of the rows


@dataclass(frozen=True)
class LinearModel:
    """Decision values of standardised columns: float (outputs, columns) and (outputs,); one output for two classes."""

    coef: Floats
    intercept: Floats

    def predict_proba(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """Probabilities (n, classes) of standardised rows."""
        scores = features @ self.coef.T + self.intercept
        if scores.shape[1] == 1:
            scores = np.hstack([np.zeros_like(scores), scores])
        found: NDArray[np.float64] = softmax(scores, axis=1)
        return found


@dataclass(frozen=True)
class Problem:
    """One fit among those in lockstep."""

    C: float  # inverse of the L2 strength
    weights: Floats  # (n,), of the rows; those of weight 0 are held out: only scored
    # Where to begin; at zeros when None. The objective is strictly convex: it changes the way, not the end.
    start: LinearModel | None = None


@dataclass
class Fit:
    """Where a fit ended."""

    model: LinearModel
    # Loss and accuracy on the rows learnt from and on those held out (NaN where there are none), without weights, after
    # each iteration; of the start alone where that was the optimum already.
    steps: list[Step] = field(default_factory=list)
    iterations: int = 0
    not_converged: str | None = None  # why it ended before the tolerance was met; None when it was met


# Told which problem, and how far it is; text that it returns is why to give that one up.
Watch = Callable[[int, Fit], object]


def fit(
    rows: FeatureRows,
    labels: NDArray[Any],
    scale: Scale,
    problems: Sequence[Problem],
    *,
    tol: float,
    max_iter: int,
    watch: Watch = lambda number, fit: None,
) -> list[Fit]:
    """Fit all problems.

    Parameters
    ----------
    rows : FeatureRows
        Not standardised; ``scale`` does that to the columns.
    labels : ndarray, int (n,)
        Class numbers from 0; every one up to the highest must occur among the rows that each problem learns from.
    tol, max_iter
        As LogisticRegression's: largest gradient component to stop at, iterations at most.
    watch : callable
        Told every iteration of every problem.
    """
    classes = int(labels.max()) + 1
    outputs = 1 if classes == 2 else classes
    curvature = 0.5 * (0.25 if outputs == 1 else 1 / classes)
    dtype = np.float64 if tol < TIGHT else np.float32
    weights = np.column_stack([problem.weights for problem in problems]).astype(np.float64)
    learnt = np.flatnonzero(weights.any(axis=1))
    turn = None
    if len(learnt) <= min(DUAL_ROWS, rows.shape[1] // 4):
        rows, scale, turn = _row_space(rows, scale, learnt)
    vectors, values = _leading(rows, scale, learnt, weights.mean(axis=1))
    fits: list[Fit] = []
    size = max(1, SIDE_BY_SIDE // outputs)
    for first in range(0, len(problems), size):
        group = problems[first : first + size]
        solvers = []
        for problem in group:
            strength = 1 / (problem.C * problem.weights.sum())
            point = np.zeros((rows.shape[1] + 1, outputs))
            if problem.start is not None:
                point[:-1] = problem.start.coef.T if turn is None else turn.T @ problem.start.coef.T
                point[-1] = problem.start.intercept
            inverse = _Preconditioner(vectors, values, curvature, strength)
            # From zeros the first step is Newton's, as far as the preconditioner tells.
            solvers.append(_Solver(strength, point, inverse, 1.0 if problem.start else 0.5))

        own = weights[:, first : first + size]
        fits += _lockstep(rows, labels, scale, solvers, own, dtype, tol, max_iter, turn, watch, first)
    return fits


def _lockstep(
    rows: FeatureRows,
    labels: NDArray[Any],
    scale: Scale,
    solvers: Sequence[_Solver],
    weights: Floats,
    dtype: Any,
    tol: float,
    max_iter: int,
    turn: Floats | None,
    watch: Watch,
    first: int,
) -> list[Fit]:
    fits = [Fit(LinearModel(np.empty(0), np.empty(0))) for _ in solvers]
    active = list(range(len(solvers)))
    while active:
        points = [solvers[number].trial for number in active]
        losses, right, gradients = _evaluate(rows, labels, scale, points, weights[:, active], dtype)
        for place, number in enumerate(list(active)):
            solver, found, own = solvers[number], fits[number], weights[:, number]
            loss = float(own @ losses[:, place]) / own.sum()
            if solver.told(loss, gradients[place] / own.sum()):
                scores = _scores(losses[:, place], right[:, place], own)
                largest = float(np.abs(solver.gradient).max())
                if solver.iterations or largest <= tol:
                    found.steps.append(Step(solver.iterations, *scores))
                if largest > tol and solver.iterations >= max_iter:
                    found.not_converged = (
                        f"the solver stopped at max_iter={max_iter} before its gradient was below tol={tol:g}"
                    )
                ended = largest <= tol or found.not_converged is not None
            else:
                ended = solver.backtracks > BACKTRACKS
                if ended:
                    found.not_converged = f"the solver stopped early: no step made the loss smaller at tol={tol:g}"
            if solver.backtracks == 0 or ended:
                given_up = watch(first + number, found)
                if isinstance(given_up, str) and not ended:
                    ended, found.not_converged = True, given_up
            if ended:
                active.remove(number)
                coef = solver.point[:-1]
                found.model = LinearModel((coef if turn is None else turn @ coef).T, solver.point[-1])
                found.iterations = solver.iterations
    return fits


def _scores(losses: NDArray[Any], right: NDArray[Any], weights: Floats) -> tuple[float, float, float, float]:
    found: list[float] = []
    for chosen in (weights > 0, weights == 0):
        count = int(np.count_nonzero(chosen))
        loss, correct = (float(values[chosen].sum(dtype=np.float64)) for values in (losses, right))
        found += [loss / count, correct / count] if count else [np.nan, np.nan]
    return found[0], found[1], found[2], found[3]


def _evaluate(
    rows: FeatureRows,
    labels: NDArray[Any],
    scale: Scale,
    points: Sequence[Floats],
    weights: Floats,
    dtype: Any,
) -> tuple[NDArray[Any], NDArray[np.bool_], list[Floats]]:
    """Cross-entropy of each row in nats, whether it is right, both (n, fits), and gradients of the weighted sums."""
    count, outputs = len(points), points[0].shape[1]
    coef = np.hstack([point[:-1] * scale.gain[:, None] for point in points]).astype(dtype)
    # Of the rounded weights, so that both sides of the difference are of the same.
    intercept = (np.hstack([point[-1] for point in points]) - scale.mean @ coef).astype(dtype)
    losses = np.empty((len(labels), count), dtype)
    right = np.empty((len(labels), count), bool)
    shares = weights.astype(dtype)
    codes = labels.astype(np.intp)

    def visit(here: slice, block: NDArray[Any], sums: _Sums) -> None:
        scores = block @ coef
        scores += intercept
        residuals, losses[here], right[here] = residuals_of(scores.reshape(len(block), count, outputs), codes[here])
        residuals *= shares[here, :, None]
        sums.add(residuals.reshape(len(block), -1), block)

    states = rows.reduce(visit, lambda: _Sums(coef.shape, dtype), dtype)
    total, bias = sum(state.total() for state in states), sum(state.bias for state in states)
    gradient = (total - np.outer(scale.mean, bias)) * scale.gain[:, None]
    stacked = np.vstack([gradient, bias])
    return losses, right, [stacked[:, first : first + outputs] for first in range(0, count * outputs, outputs)]


class _Sums:
    """Gradients by the raw columns (columns, outputs) and by the intercepts, of one thread's blocks."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self._wide, self._part, self._product = np.zeros(shape[::-1]), *np.zeros((2, *shape[::-1]), dtype)
        self.bias = np.zeros(shape[1])
        self._blocks = 0

    def add(self, residuals: NDArray[Any], block: NDArray[Any]) -> None:
        # This way round BLAS is several times faster than `block.T @ residuals`, when outputs are few.
        np.matmul(residuals.T, block, out=self._product)
        self._part += self._product
        self.bias += residuals.sum(axis=0, dtype=np.float64)
        self._blocks += 1
        if self._blocks % FLUSH == 0:
            self._flush()

    def total(self) -> Floats:
        self._flush()
        return self._wide.T

    def _flush(self) -> None:
        self._wide += self._part
        self._part[:] = 0


def score(
    rows: FeatureRows, labels: NDArray[Any], scale: Scale, models: Sequence[LinearModel]
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Cross-entropy of each row in nats and whether it is right, both (n, models)."""
    points = [np.vstack([model.coef.T, model.intercept]) for model in models]
    return _evaluate(rows, labels, scale, points, np.zeros((len(labels), len(models))), np.float32)[:2]


def residuals_of(scores: NDArray[Any], codes: NDArray[np.intp]) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.bool_]]:
    """Gradients of the cross-entropy by the decision values (b, fits, outputs), its values and what is right (b, fits).

    ``scores`` is overwritten; of two classes there is one output, that of class 1.
    """
    if scores.shape[2] == 1:
        signs = (1 - 2 * codes)[:, None].astype(scores.dtype)
        margins = scores[:, :, 0] * signs  # negative when right
        losses = np.logaddexp(0, margins)
        return (signs * np.exp(margins - losses))[:, :, None], losses, (scores[:, :, 0] > 0) == codes[:, None]
    picked = (np.arange(len(codes))[:, None], np.arange(scores.shape[1]), codes[:, None])
    right = scores.argmax(axis=2) == codes[:, None]
    scores -= scores.max(axis=2, keepdims=True)
    own = scores[picked]
    np.exp(scores, out=scores)
    total = scores.sum(axis=2, keepdims=True)
    scores /= total
    scores[picked] -= 1
    return scores, np.log(total[:, :, 0]) - own, right


class _Preconditioner:
    """The inverse of ``a V diag(values) V' + a · last value · (1 - V V') + strength``, the intercepts' apart."""

    def __init__(self, vectors: NDArray[np.float32], values: Floats, curvature: float, strength: float) -> None:
        self._vectors, self._curvature = vectors, curvature
        # What the leading eigenvectors leave varies less than the last of them; nothing, where they are all there are.
        rest = values[-1] if len(values) < len(vectors) else 0.0
        self._rest = 1 / (curvature * rest + strength)
        self._gains = (1 / (curvature * values + strength) - self._rest).astype(np.float32)[:, None]

    def __call__(self, gradient: Floats) -> Floats:
        result = gradient * self._rest
        coef = gradient[:-1].astype(np.float32)
        result[:-1] += self._vectors @ (self._gains * (self._vectors.T @ coef))
        result[-1] = gradient[-1] / self._curvature
        return result


class _Solver:
    """L-BFGS that asks for values and gradients at ``trial``, and is told them."""

    def __init__(self, strength: float, start: Floats, inverse: _Preconditioner, first: float) -> None:
        self._strength, self._inverse = strength, inverse
        self.trial = self.point = start
        self.gradient = np.full_like(start, np.inf)
        self.iterations = -1  # the start is none
        self.backtracks = 0
        self._value, self._slope, self._step = np.inf, 0.0, 1.0
        self._direction: Floats = np.zeros_like(start)
        self._gain = first
        self._pairs: deque[tuple[Floats, Floats, float]] = deque(maxlen=MEMORY)

    def told(self, loss: float, gradient: Floats) -> bool:
        """Take mean loss and its gradient at the trial; whether that is the next point, else there is another trial."""
        coef = self.trial[:-1]
        gradient = gradient + self._strength * np.vstack([coef, np.zeros_like(coef[:1])])
        value = loss + 0.5 * self._strength * float(np.vdot(coef, coef))
        if self.iterations >= 0:
            slope = float(np.vdot(gradient, self._direction))
            # A value smaller in proportion (Armijo) or, where rounding hides that, a flatter slope (Hager & Zhang
            # 2005, https://doi.org/10.1137/030601880).
            smaller = value <= self._value + 1e-4 * self._step * self._slope
            flatter = value <= self._value + 1e-6 * abs(self._value) and abs(slope) <= 0.8 * abs(self._slope)
            if not (smaller or flatter):
                self.backtracks += 1
                share = self._slope / (self._slope - slope) if slope > self._slope else 0.5
                self._step *= min(max(share, 0.1), 0.6)
                self.trial = self.point + self._step * self._direction
                return False
            step, change = self.trial - self.point, gradient - self.gradient
            curvature = float(np.vdot(step, change))
            if curvature > 0:
                self._pairs.append((step, change, curvature))
                self._gain = curvature / float(np.vdot(change, self._inverse(change)))
        self.point, self.gradient, self._value = self.trial, gradient, value
        self.iterations, self.backtracks = self.iterations + 1, 0
        self._direction = self._next_direction()
        self._slope = float(np.vdot(self._direction, gradient))
        self._step = 1.0
        self.trial = self.point + self._direction
        return True

    def _next_direction(self) -> Floats:
        found = -self.gradient
        shares = []
        for step, change, curvature in reversed(self._pairs):
            shares.append(float(np.vdot(step, found)) / curvature)
            found -= shares[-1] * change
        found = self._gain * self._inverse(found)
        for (step, change, curvature), share in zip(self._pairs, reversed(shares), strict=True):
            found += (share - float(np.vdot(change, found)) / curvature) * step
        return found


def _standardised(rows: FeatureRows, scale: Scale, dtype: Any) -> NDArray[Any]:
    """A standardised copy of few rows."""
    result = np.empty(rows.shape, dtype)
    for here, block in rows.blocks(256):
        result[here] = (block - scale.mean) * scale.gain
    return result


def _leading(
    rows: FeatureRows, scale: Scale, learnt: NDArray[np.intp], weights: Floats
) -> tuple[NDArray[np.float32], Floats]:
    """Eigenvectors (columns, rank) and eigenvalues of ``X'X / n``, largest first, by a sample of the rows."""
    places = np.unique(np.linspace(0, len(learnt) - 1, SAMPLE_ROWS).round().astype(int))
    sample = _standardised(rows.take(learnt[places]), scale, np.float32)
    own = weights[learnt[places]]
    sample *= np.sqrt(own / own.sum()).astype(np.float32)[:, None]
    rank = min(RANK, *sample.shape)
    _, values, transposed = randomized_svd(sample, rank, n_oversamples=10, n_iter=2, random_state=0)
    vectors = np.where(scale.gain > 0, transposed, 0).T  # exactly no weight to a constant column
    return np.ascontiguousarray(vectors, np.float32), values.astype(np.float64) ** 2


def _row_space(rows: FeatureRows, scale: Scale, learnt: NDArray[np.intp]) -> tuple[FeatureRows, Scale, Floats]:
    """All rows in an orthonormal basis (columns, rank) of the standardised rows learnt from.

    The optimum lies in their space (the representer theorem), so that a fit of few rows by many columns is one of
    as few columns: the dual problem.
    """
    everything = _standardised(rows, scale, np.float64)
    values, vectors = np.linalg.eigh(everything[learnt] @ everything[learnt].T)
    kept = values > values[-1] * len(learnt) * np.finfo(float).eps
    basis = everything[learnt].T @ (vectors[:, kept] / np.sqrt(values[kept]))
    unit = Scale(np.zeros(basis.shape[1]), np.ones(basis.shape[1]), scale.rows)
    return FeatureRows([everything @ basis]), unit, basis

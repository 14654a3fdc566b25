"""Fitting sets of parameters side by side, each classifier in its own way, with their histories.

What is fitted here is fitted on a part of the training rows and scored on validation; `refit` makes the model
that is kept.
"""

from __future__ import annotations

import itertools
import math
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager
from copy import copy, deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.neural_network._stochastic_optimizers import AdamOptimizer, BaseOptimizer  # of MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from threadpoolctl import threadpool_limits

from pipeline.common.errors import UserError
from pipeline.features.rows import Scale, cores
from pipeline.models import classifiers, history, logistic, ridge
from pipeline.models.history import FitAndValidation, History, Samples, Scores, Step

IMPROVEMENT = 1e-3  # of the validation loss that patience is renewed for: averaged models creep on for ever
BATCHES_ROWS = 2048  # rows that are standardised together for a classifier that learns in small batches
# Epochs after which half of the rivals go on, then again after twice as many: successive halving, Jamieson & Talwalkar
# 2016, https://arxiv.org/abs/1502.07943.
FIRST_RUNG = 4
# Iterations, all of which are of all rivals, after which those are given up whose validation loss is larger than that
# of the best by such a share: near its end it changes by less.
FAIR_ITERATIONS, FAR_BEHIND = 12, 0.05
# Where the end is wanted roughly, as for a point of a learning curve: the solver's tolerance, for about 0.2 points of
# validation accuracy (CIFAR-10, 6,016 columns), and the improvement that an epoch must bring to be followed by another.
BRIEF_TOLERANCE, BRIEF_IMPROVEMENT = 1e-3, 1e-2
# Epochs in which the step size of Adam falls to zero along a cosine (Loshchilov & Hutter 2017,
# https://arxiv.org/abs/1608.03983), and updates that these have at least; half as many where the end is wanted roughly.
# A constant step took more epochs to a validation accuracy 1 point lower (CIFAR-10 at 32 px, 512 columns).
ANNEALED_EPOCHS, ANNEALED_UPDATES = 12, 500
TEMPERATURE_ROWS = 5000  # of validation that the temperature, one number, is fitted on at most


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
    criterion : float
        What the best is chosen by: the validation loss, with classes weighed as they are in fitting.
    """

    params: dict[str, Any]
    history: History
    train: Scores
    validation: Scores
    not_converged: str | None
    model: Any = field(compare=False, repr=False)
    criterion: float


@dataclass(frozen=True)
class Job:
    """Parameters to fit, all of them, and on which rows; where an iterative solver begins, if not at zeros."""

    params: Mapping[str, Any]
    rows: FitAndValidation
    seed: int
    start: logistic.LinearModel | None = None


Watch = Callable[[int, Step, bool], object]  # which job, its last step, and whether it has ended


def fit_side_by_side(
    name: str,
    jobs: Sequence[Job],
    *,
    rivals: bool = False,
    brief: bool = False,
    watch: Watch = lambda number, step, ended: None,
) -> list[Fitted]:
    """Fit sets of parameters and score each on both of its sides.

    Parameters
    ----------
    name : str
        The classifier's.
    jobs : sequence of Job
        On the same data, standardised alike. No class of a validation side is missing on its fit side.
    rivals : bool
        Whether only the best one is wanted, so that others may be given up; they did not converge then.
    brief : bool
        Whether only the end is wanted, not validation scores on the way, and that end roughly.
    watch : callable
        Told every step of each.

    Raises
    ------
    UserError
        When the parameters are so extreme that nothing finite comes out.
    """
    for job in jobs:
        if len(np.unique(job.rows.data.labels[job.rows.fit])) <= job.rows.data.labels.max():
            raise AssertionError("the rows to fit on lack a class: other rows of it would be scored as the next one")
    kind = classifiers.get(name).solver_kind
    if kind == "iterations":
        return _fit_iterations(jobs, rivals, brief, watch)
    if kind == "epochs":
        return _fit_epochs(name, jobs, rivals, brief, watch)
    return _fit_once(name, jobs, watch)


def row_weights(params: Mapping[str, Any], labels: NDArray[Any]) -> NDArray[np.float64]:
    """Weights (n,) of rows: ones, or such that all classes weigh the same if that is asked for."""
    weights: NDArray[np.float64] = compute_sample_weight(params.get("class_weight"), labels)
    return weights


def _criterion(params: Mapping[str, Any], losses: NDArray[Any], labels: NDArray[Any]) -> float:
    """What parameters are chosen by, from the losses of the validation rows (n,)."""
    return float(np.average(losses, weights=row_weights(params, labels)))


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


def _given_up(last: Step) -> str:
    return f"given up after step {last.step:g}: others were ahead on validation"


# --- by iterations ----------------------------------------------------------------------------


def _fit_iterations(jobs: Sequence[Job], rivals: bool, brief: bool, watch: Watch) -> list[Fitted]:
    """By L-BFGS. The last iteration is kept: the objective is convex, so there is nothing to stop early."""
    data, scale = jobs[0].rows.data, jobs[0].rows.scale
    sides = [job.rows.fit if brief else np.concatenate([job.rows.fit, job.rows.held_out]) for job in jobs]
    used = np.unique(np.concatenate(sides))
    problems = []
    for job in jobs:
        weights = np.zeros(len(used))
        weights[np.searchsorted(used, job.rows.fit)] = row_weights(job.params, data.labels[job.rows.fit])
        problems.append(logistic.Problem(job.params["C"], weights, job.start))

    latest, given_up = np.full(len(jobs), np.inf), set[int]()  # validation losses; those behind
    params = jobs[0].params
    weighed = params.get("class_weight") is not None  # then these are not what is chosen by

    def after(number: int, found: logistic.Fit, ended: bool) -> str | None:
        if not found.steps:
            return None
        step = found.steps[-1]
        watch(number, step, ended)
        latest[number] = step.validation_loss
        behind = (
            rivals
            and not weighed
            and step.step >= FAIR_ITERATIONS
            and step.validation_loss > latest.min() * (1 + FAR_BEHIND)
        )
        if not behind:
            return None
        given_up.add(number)
        latest[number] = np.inf  # so that the last one left is behind no one
        return _given_up(step)

    tol = max(params["tol"], BRIEF_TOLERANCE) if brief else params["tol"]
    found = logistic.fit(
        data.features.take(used), data.labels[used], scale, problems, tol=tol, max_iter=params["max_iter"], watch=after
    )
    ends = [(fit.steps[-1].validation_loss, fit.steps[-1].validation_accuracy) for fit in found]
    criteria = [loss for loss, _ in ends]
    if brief or weighed:
        used = np.unique(np.concatenate([job.rows.held_out for job in jobs]))
        losses, right = logistic.score(
            data.features.take(used), data.labels[used], scale, [fit.model for fit in found]
        )  # fmt: skip
        for number, job in enumerate(jobs):
            own = np.searchsorted(used, job.rows.held_out)
            ends[number] = float(losses[own, number].mean(dtype=np.float64)), float(right[own, number].mean())
            criteria[number] = _criterion(job.params, losses[own, number], data.labels[job.rows.held_out])
    fitted = []
    for job, fit, end, criterion in zip(jobs, found, ends, criteria, strict=True):
        last, reason = fit.steps[-1], fit.not_converged
        if fit.iterations == 0 and job.start is not None:
            reason = f"where it started, at the end of another fit, the gradient was below tol={tol:g} already"
        steps = History("iteration", fit.steps, last.step)
        train = (last.train_loss, last.train_accuracy)
        fitted.append(Fitted(dict(job.params), steps, train, end, reason, fit.model, criterion))
    # On few rows a validation loss may rise again, and one that was given up be ahead after all: that one goes on, too.
    lowest = min(criteria[number] for number in range(len(jobs)) if number not in given_up)
    again = [number for number in given_up if criteria[number] < lowest]
    if again:
        whole = [jobs[number] for number in again]
        ended = _fit_iterations(whole, False, brief, lambda at, step, last: watch(again[at], step, last))
        for number, each in zip(again, ended, strict=True):
            fitted[number] = each
    return fitted


# --- by epochs --------------------------------------------------------------------------------


class _AdamInPieces(BaseOptimizer):  # type: ignore[misc]
    """scikit-learn's Adam on some of the weights after the other, so that what it makes of them stays in the cache.

    An update of three million weights takes less than half as long as all at once.
    """

    SIZE = 1 << 16  # weights

    def __init__(self) -> None:
        super().__init__()
        self._each: list[AdamOptimizer] = []

    def update_params(self, params: Sequence[NDArray[Any]], gradients: Sequence[NDArray[Any]]) -> None:
        """Update weights, in place, as scikit-learn asks its own optimizers to."""
        pieces, theirs = self._pieces(params), self._pieces(gradients)
        self._each = self._each or [AdamOptimizer([piece]) for piece in pieces]
        for each, piece, gradient in zip(self._each, pieces, theirs, strict=True):
            each.learning_rate_init = self.learning_rate_init
            each.update_params([piece], [gradient])

    def _pieces(self, arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        flat = [array.reshape(-1) for array in arrays]
        return [each[at : at + self.SIZE] for each in flat for at in range(0, len(each), self.SIZE)]


class _Learner:
    """An estimator on its way, epoch after epoch, in a thread of its own."""

    def __init__(self, name: str, job: Job, stop: threading.Event, brief: bool = False) -> None:
        self._classifier, self._job, self._stop = classifiers.get(name), job, stop
        self._features = job.rows.data.features.take(np.sort(job.rows.fit))
        self._labels = job.rows.data.labels[np.sort(job.rows.fit)]
        self._weights = row_weights(job.params, self._labels)
        self._generator = np.random.RandomState(job.seed)
        self.estimator = self._classifier.make(job.params, job.seed, self._features.shape)
        self._epochs, self._annealed, self._adam = 0, np.inf, _AdamInPieces()
        if self._classifier.annealed:
            updates = len(self._labels) / self.estimator.batch_size
            self._annealed = max(ANNEALED_EPOCHS, math.ceil(ANNEALED_UPDATES / updates)) // (2 if brief else 1)
        self._most = min(job.params["max_epochs"], self._annealed)

    def epoch(self) -> None:
        """Learn from every row once, in random order."""
        classes = np.arange(self._labels.max() + 1)
        extra = {} if self._job.params.get("class_weight") is None else {"sample_weight": self._weights}
        if self._classifier.annealed:
            share = 0.5 * (1 + math.cos(math.pi * self._epochs / self._most))
            self._adam.learning_rate_init = share * self._job.params["learning_rate_init"]
            self.estimator._optimizer = self._adam
        self._epochs += 1
        pieces = self._features.shuffled(self._generator, BATCHES_ROWS)
        with ThreadPoolExecutor(1) as ahead:
            coming = ahead.submit(self._features.read, pieces[0], self._job.rows.scale)
            for rows, following in itertools.zip_longest(pieces, pieces[1:]):
                if self._stop.is_set():
                    return
                features = coming.result()
                if following is not None:
                    coming = ahead.submit(self._features.read, following, self._job.rows.scale)
                given = {key: value[rows] for key, value in extra.items()}
                self.estimator.partial_fit(features, self._labels[rows], classes=classes, **given)


def _as_it_is(estimator: Any) -> Any:
    """A copy, without what only the next update needs."""
    found = copy(estimator)
    vars(found).pop("_optimizer", None)
    return deepcopy(found)


class _EarlyStopped(_Learner):
    """One that is scored after its epochs, stopped when validation no longer improves, and whose best is kept.

    MLPClassifier's own early stopping splits off rows of its own and keeps no validation loss.
    """

    def __init__(
        self, name: str, job: Job, stop: threading.Event, brief: bool, watch: Callable[[Step], object]
    ) -> None:
        super().__init__(name, job, stop, brief)
        self._name, self._brief, self._watch = name, brief, watch
        # On few rows, to score validation after each epoch would take longer than to learn.
        self._between = -(-len(job.rows.held_out) // len(job.rows.fit)) if brief else 1
        self._sample = job.rows.data.taken(job.rows.fit[: self._classifier.max_scored_rows])
        self._better, self.lowest = 0, np.inf  # the last epoch that counts as an improvement, and its loss
        self.least = np.inf
        self.best: Any = None
        self.history = History("epoch")
        self.ended = self.behind = False
        self.reason: str | None = None

    def learn(self) -> None:
        """Go on by an epoch."""
        with _overflow_as_user_error(self._name, self._job.params):
            self._next()

    def goes_on(self, until: int) -> bool:
        """Whether there is another epoch to learn, up to that one."""
        return len(self.history.steps) < until and not self.ended and not self._stop.is_set()

    def _next(self) -> None:
        params, steps, rows = self._job.params, self.history.steps, self._job.rows
        try:
            for _ in range(min(self._between, self._most - self._epochs)):
                self.epoch()
        except ValueError as error:
            if self.best is None or not _is_overflow(error):
                raise
            self.ended, self.reason = True, f"it diverged in epoch {self._epochs}"
            return
        model = self.estimator if self._classifier.probabilities else _with_temperature(self.estimator, rows)
        # A brief fit leaves its training scores to the end.
        train = (np.nan, np.nan) if self._brief else history.scores(model, self._sample, rows.scale)
        validation = rows.validation
        probabilities = history.predict(model, validation.features, rows.scale)
        steps.append(Step(self._epochs, *train, *history.scores_of(probabilities, validation.labels)))
        # Where classes are weighed, learning the rare ones makes the plain loss rise from the beginning.
        now = _criterion(params, history.row_losses(probabilities, validation.labels), validation.labels)
        if self.best is None or now < self.least:
            self.history.kept, self.best, self.least = self._epochs, _as_it_is(model), now
        if now < self.lowest * (1 - (BRIEF_IMPROVEMENT if self._brief else IMPROVEMENT)):
            self._better, self.lowest = len(steps), now
        elif len(steps) - self._better >= (1 if self._brief else params["patience"]):
            self.ended = True
        if not self.ended and self._epochs == self._most:
            self.ended = True
            if self._most < self._annealed:
                self.reason = f"the validation loss was still falling at max_epochs={params['max_epochs']}"
        self._watch(steps[-1])

    def give_up(self) -> None:
        """End, others being ahead."""
        if not self.ended:
            self.ended, self.behind, self.reason = True, True, _given_up(self.history.steps[-1])

    def fitted(self) -> Fitted:
        """What came of it."""
        rows, kept = self._job.rows, next(each for each in self.history.steps if each.step == self.history.kept)
        train = (kept.train_loss, kept.train_accuracy)
        return Fitted(
            {**self._job.params, "epochs": int(kept.step)},
            self.history,
            train if self.behind else history.scores(self.best, rows.train, rows.scale),
            (kept.validation_loss, kept.validation_accuracy),
            self.reason,
            self.best,
            self.least,
        )


def _fit_epochs(name: str, jobs: Sequence[Job], rivals: bool, brief: bool, watch: Watch) -> list[Fitted]:
    """A thread for each core, each with one job at a time: small products gain little by more."""
    with _workers(len(jobs)) as (pool, stop):

        def learner(number: int, job: Job) -> _EarlyStopped:
            return _EarlyStopped(name, job, stop, brief, lambda step: watch(number, step, contestants[number].ended))

        contestants = [learner(number, job) for number, job in enumerate(jobs)]
        contest, until = list(contestants), FIRST_RUNG
        while going := [each for each in contest if not each.ended]:
            last = not rivals or len(contest) == 1
            with threadpool_limits(max(1, cores() // len(going)), user_api="blas"):
                _take_turns(pool, going, 1 << 30 if last else until)
            best = sorted(contest, key=lambda each: each.least)
            contest = best if last else best[: -(-len(best) // 2)]
            for each in best[len(contest) :]:
                each.give_up()
            until *= 2
    return [each.fitted() for each in contestants]


def _take_turns(pool: ThreadPoolExecutor, learners: Sequence[_EarlyStopped], until: int) -> None:
    """Let learners go on epoch by epoch, so that no core is idle where they are more than there are cores."""
    running = {pool.submit(each.learn): each for each in learners}
    while running:
        for done in wait(running, return_when=FIRST_COMPLETED).done:
            each = running.pop(done)
            done.result()
            if each.goes_on(until):
                running[pool.submit(each.learn)] = each


@contextmanager
def _workers(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, threading.Event]]:
    """Threads that share the cores, and what stops them.

    In a thread of its own MLPClassifier never takes an interrupt for the end of its training, as it would.
    """
    stop = threading.Event()
    with ThreadPoolExecutor(min(cores(), jobs)) as pool:
        try:
            yield pool, stop
        finally:
            stop.set()


# --- in one step ------------------------------------------------------------------------------


def _fit_once(name: str, jobs: Sequence[Job], watch: Watch) -> list[Fitted]:
    """Each history is a single point, which a search joins to a validation curve."""
    classifier, fitted = classifiers.get(name), []
    estimators: list[Any] = []
    for number, job in enumerate(jobs):
        rows, params = job.rows, dict(job.params)
        if number == len(estimators):  # of the same rows as many as follow each other
            alike = list(itertools.takewhile(lambda each: each.rows is rows, jobs[number:]))  # noqa: B023
            estimators += _estimators(name, [each.params for each in alike], rows, job.seed)
        model = estimators[number]
        if not classifier.probabilities:
            model = _with_temperature(model, rows)
        sample = rows.data.taken(rows.fit[: classifier.max_scored_rows])
        probabilities, labels = history.predict(model, rows.validation.features, rows.scale), rows.validation.labels
        train, validation = history.scores(model, sample, rows.scale), history.scores_of(probabilities, labels)
        criterion = _criterion(params, history.row_losses(probabilities, labels), labels)
        value = params[classifier.tuned_option]
        step = Step(value, *train, *validation)
        watch(number, step, True)
        points = History(classifier.tuned_option, [step], value)
        fitted.append(Fitted(params, points, train, validation, None, model, criterion))
    return fitted


def _estimators(name: str, params: Sequence[Mapping[str, Any]], rows: FitAndValidation, seed: int) -> Iterator[Any]:
    """Fitted estimators of standardised features."""
    classifier, train = classifiers.get(name), rows.train
    estimators = [classifier.make(each, seed, train.features.shape) for each in params]
    if classifier.solver_kind == "products":
        weights, before = row_weights(params[0], train.labels), None
        if isinstance(estimators[0], Pipeline):
            before = estimators[0][:-1]
            drawn = np.random.RandomState(seed).permutation(len(train.labels))[: classifiers.SAMPLED_ROWS]
            before.fit(train.features.read(drawn, rows.scale))
        ends = [each if before is None else each[-1] for each in estimators]
        ridge.fit(train.features, train.labels, weights, rows.scale, ends, before)
        yield from ends if before is None else (Pipeline([*before.steps, ("ridge", end)]) for end in ends)
        return
    ridge.check_memory(
        name,
        f"{len(train.labels):,} rows of {train.features.shape[1]:,} columns",
        2 * 4 * math.prod(train.features.shape),
    )
    features = train.features.read(np.arange(len(train.labels)), rows.scale)  # all of them: memory grows with rows
    for each, estimator in zip(params, estimators, strict=True):
        with _overflow_as_user_error(name, each):
            yield estimator.fit(features, train.labels)


def _with_temperature(estimator: Any, rows: FitAndValidation) -> Any:
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


# --- what is kept -----------------------------------------------------------------------------


def refit(
    name: str, data: Samples, scale: Scale, seed: int, chosen: Fitted, tick: Callable[[], object]
) -> tuple[Pipeline, str | None]:
    """Fit the chosen parameters on all training rows.

    Parameters
    ----------
    name : str
        The classifier's.
    data : Samples
        All training rows.
    scale : Scale
        Of these.
    seed : int
    chosen : Fitted
        On the 90 %: its parameters, where a solver may start, and the temperature. Used up.
    tick : callable
        Called after every iteration or epoch.

    Returns
    -------
    model : Pipeline
        From features to labels and probabilities.
    not_converged : str or None
        Why it did not converge; None when it did.
    """
    classifier, reason = classifiers.get(name), None
    everything = np.arange(len(data.labels))
    job = Job(chosen.params, FitAndValidation(data, everything, everything[:0], everything + 1, scale), seed)
    if classifier.solver_kind == "iterations":
        estimator, reason = _refit_iterations(classifier, replace(job, start=chosen.model), tick)
    elif classifier.solver_kind == "epochs":
        with _workers(1) as (pool, stop), _overflow_as_user_error(name, chosen.params):
            learner = _Learner(name, job, stop)
            for _ in range(chosen.params["epochs"]):
                pool.submit(learner.epoch).result()
                tick()
        estimator = _as_it_is(learner.estimator)
        if "random_state" in estimator.get_params():
            estimator.set_params(random_state=seed)  # a number again: a generator's state is nobody's parameter
    else:
        (estimator,) = _estimators(name, [chosen.params], job.rows, seed)
        tick()
    if not classifier.probabilities:
        # The temperature stays the one fitted on validation: there are no rows left that this model has not seen.
        calibrated, frozen = chosen.model, FrozenEstimator(estimator)
        calibrated.set_params(estimator=frozen, cv=None)
        calibrated.calibrated_classifiers_[0].estimator = frozen
        estimator = calibrated
    return Pipeline([("scale", _scaler(scale)), (name, estimator)]), reason


def _scaler(scale: Scale) -> StandardScaler:
    """The same as scikit-learn's transformer."""
    scaler = StandardScaler()
    scaler.mean_, scaler.var_, scaler.n_samples_seen_ = scale.mean, scale.variance, np.int64(scale.rows)
    scaler.scale_ = np.where(scale.variance > 0, np.sqrt(scale.variance), 1.0)
    scaler.n_features_in_ = len(scale.mean)
    return scaler


def _refit_iterations(classifier: Any, job: Job, tick: Callable[[], object]) -> tuple[Any, str | None]:
    params, data = job.params, job.rows.data
    problem = logistic.Problem(params["C"], row_weights(params, data.labels), job.start)
    (found,) = logistic.fit(
        data.features, data.labels, job.rows.scale, [problem], tol=params["tol"], max_iter=params["max_iter"],
        watch=lambda number, fit, ended: tick(),
    )  # fmt: skip
    estimator = classifier.make(params, job.seed, data.features.shape)
    estimator.classes_ = np.unique(data.labels)
    estimator.coef_ = found.model.coef.astype(np.float32)
    estimator.intercept_ = found.model.intercept.astype(np.float32)
    estimator.n_iter_ = np.array([found.iterations], np.int32)
    estimator.n_features_in_ = data.features.shape[1]
    return estimator, found.not_converged

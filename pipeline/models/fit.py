"""Fitting sets of parameters side by side, each classifier in its own way, with their histories.

What is fitted here is fitted on a part of the training rows and scored on validation; `refit` makes the model
that is kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.features.rows import Scale
from pipeline.models import classifiers, epochs, history, logistic, ridge
from pipeline.models.history import FitAndValidation, History, Samples, Step
from pipeline.models.jobs import (
    GIVEN_UP,
    Fitted,
    Job,
    Watch,
    criterion_of,
    overflow_as_user_error,
    row_weights,
    with_temperature,
)

# Iterations, all of which are of all rivals, after which those are given up whose validation loss is larger than that
# of the best by such a share: near its end it changes by less.
FAIR_ITERATIONS, FAR_BEHIND = 12, 0.05
# The solver's tolerance where the end is wanted roughly, as for a point of a learning curve: for about 0.2 points of
# validation accuracy (CIFAR-10, 6,016 columns).
BRIEF_TOLERANCE = 1e-3


def fit_side_by_side(
    name: str,
    jobs: Sequence[Job],
    *,
    rivals: bool = False,
    brief: bool = False,
    watch: Watch = lambda number, step: None,
) -> list[Fitted]:
    """Fit sets of parameters of a classifier and score each on both of its sides.

    Raises UserError when the parameters are so extreme that nothing finite comes out.

    Parameters
    ----------
    jobs : sequence of Job
        On the same data, standardised alike. No class of a validation side is missing on its fit side.
    rivals : bool
        Whether only the best one is wanted, so that others may be given up; they did not converge then.
    brief : bool
        Whether only the end is wanted, not validation scores on the way, and that end roughly.
    watch : callable
        Told every step of each.
    """
    for job in jobs:
        if len(np.unique(job.rows.data.labels[job.rows.fit])) <= job.rows.data.labels.max():
            raise AssertionError("the rows to fit on lack a class: other rows of it would be scored as the next one")
    kind = classifiers.get(name).solver_kind
    if kind == "iterations":
        return _fit_iterations(jobs, rivals, brief, watch)
    if kind == "epochs":
        return epochs.fit(name, jobs, rivals, brief, watch)
    return _fit_once(name, jobs, watch)


def _fit_iterations(jobs: Sequence[Job], rivals: bool, brief: bool, watch: Watch) -> list[Fitted]:
    """By L-BFGS. The last iteration is kept: the objective is convex, so there is nothing to stop early."""
    data, scale, params = jobs[0].rows.data, jobs[0].rows.scale, jobs[0].params
    sides = [job.rows.fit if brief else np.concatenate([job.rows.fit, job.rows.held_out]) for job in jobs]
    used = np.unique(np.concatenate(sides))
    problems = []
    for job in jobs:
        weights = np.zeros(len(used))
        weights[np.searchsorted(used, job.rows.fit)] = row_weights(job.params, data.labels[job.rows.fit])
        problems.append(logistic.Problem(job.params["C"], weights, job.start))

    latest, behind = np.full(len(jobs), np.inf), set[int]()  # validation losses; those given up
    weighed = params.get("class_weight") is not None  # then these losses are not what is chosen by

    def after(number: int, found: logistic.Fit) -> str | None:
        if not found.steps:
            return None
        step = found.steps[-1]
        watch(number, step)
        latest[number] = step.validation_loss
        fair = rivals and not weighed and step.step >= FAIR_ITERATIONS
        if not (fair and step.validation_loss > latest.min() * (1 + FAR_BEHIND)):
            return None
        behind.add(number)
        latest[number] = np.inf  # so that the last one left is behind no one
        return GIVEN_UP.format(step.step)

    tol = max(params["tol"], BRIEF_TOLERANCE) if brief else params["tol"]
    found = logistic.fit(
        data.features.take(used), data.labels[used], scale, problems, tol=tol, max_iter=params["max_iter"], watch=after
    )
    ends = [(fit.steps[-1].validation_loss, fit.steps[-1].validation_accuracy) for fit in found]
    criteria = [loss for loss, _ in ends]
    if brief or weighed:
        used = np.unique(np.concatenate([job.rows.held_out for job in jobs]))
        models = [fit.model for fit in found]
        losses, right = logistic.score(data.features.take(used), data.labels[used], scale, models)
        for number, job in enumerate(jobs):
            own = np.searchsorted(used, job.rows.held_out)
            ends[number] = float(losses[own, number].mean(dtype=np.float64)), float(right[own, number].mean())
            criteria[number] = criterion_of(job.params, losses[own, number], data.labels[job.rows.held_out])
    fitted = []
    for job, fit, end, criterion in zip(jobs, found, ends, criteria, strict=True):
        last, reason = fit.steps[-1], fit.not_converged
        if fit.iterations == 0 and job.start is not None:
            reason = f"where it started, at the end of another fit, the gradient was below tol={tol:g} already"
        steps = History("iteration", fit.steps, last.step)
        train = (last.train_loss, last.train_accuracy)
        fitted.append(Fitted(dict(job.params), steps, train, end, reason, fit.model, criterion))
    # On few rows a validation loss may rise again, and one that was given up be ahead after all: that one goes on, too.
    lowest = min(criteria[number] for number in range(len(jobs)) if number not in behind)
    again = [number for number in behind if criteria[number] < lowest]
    if again:
        whole = [jobs[number] for number in again]
        ended = _fit_iterations(whole, False, brief, lambda at, step: watch(again[at], step))
        for number, each in zip(again, ended, strict=True):
            fitted[number] = each
    return fitted


def _fit_once(name: str, jobs: Sequence[Job], watch: Watch) -> list[Fitted]:
    """In one step. Each history is a single point, which a search joins to a validation curve."""
    classifier, fitted = classifiers.get(name), list[Fitted]()
    for _, of_rows in itertools.groupby(jobs, key=lambda job: id(job.rows)):
        alike = list(of_rows)
        rows, seed = alike[0].rows, alike[0].seed
        sample, held_out = rows.data.taken(rows.fit[: classifier.max_scored_rows]), rows.validation
        estimators = list(_estimators(name, [job.params for job in alike], rows, seed))
        for job, estimator in zip(alike, estimators, strict=True):
            model = estimator if classifier.probabilities else with_temperature(estimator, rows)
            probabilities = history.predict(model, held_out.features, rows.scale)
            train = history.scores(model, sample, rows.scale)
            validation = history.scores_of(probabilities, held_out.labels)
            losses = history.row_losses(probabilities, held_out.labels)
            criterion = criterion_of(job.params, losses, held_out.labels)
            value = job.params[classifier.tuned_option]
            step = Step(value, *train, *validation)
            watch(len(fitted), step)
            points = History(classifier.tuned_option, [step], value)
            fitted.append(Fitted(dict(job.params), points, train, validation, None, model, criterion))
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
    what = f"{len(train.labels):,} rows of {train.features.shape[1]:,} columns"
    ridge.check_memory(name, what, 2 * 4 * math.prod(train.features.shape))
    features = train.features.read(np.arange(len(train.labels)), rows.scale)  # all of them: memory grows with rows
    for each, estimator in zip(params, estimators, strict=True):
        with overflow_as_user_error(name, each):
            yield estimator.fit(features, train.labels)


# --- what is kept -----------------------------------------------------------------------------


def refit(
    name: str, data: Samples, scale: Scale, seed: int, chosen: Fitted, tick: Callable[[], object]
) -> tuple[Pipeline, str | None]:
    """Fit the chosen parameters on all training rows, ``data``, whose scale is ``scale``.

    What was ``chosen`` on the 90 % gives the parameters, where a solver may start, and the temperature, and is used up;
    ``tick`` is called after every iteration or epoch. Returns what makes labels and probabilities of features, and why
    it did not converge, None when it did.
    """
    classifier, reason = classifiers.get(name), None
    everything = np.arange(len(data.labels))
    job = Job(chosen.params, FitAndValidation(data, everything, everything[:0], scale), seed)
    if classifier.solver_kind == "iterations":
        estimator, reason = _refit_iterations(classifier, replace(job, start=chosen.model), tick)
    elif classifier.solver_kind == "epochs":
        estimator = epochs.learn(name, job, tick)
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
        watch=lambda number, fit: tick(),
    )  # fmt: skip
    estimator = classifier.make(params, job.seed, data.features.shape)
    estimator.classes_ = np.unique(data.labels)
    estimator.coef_ = found.model.coef.astype(np.float32)
    estimator.intercept_ = found.model.intercept.astype(np.float32)
    estimator.n_iter_ = np.array([found.iterations], np.int32)
    estimator.n_features_in_ = data.features.shape[1]
    return estimator, found.not_converged

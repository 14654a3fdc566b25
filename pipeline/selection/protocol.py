"""How stage two chooses, and on which rows: every choice on validation, nothing on test.

A stratified 10 % of the training images is validation, copies of an image always on one side. Each candidate is
fitted on the other 90 % and the one with the lowest validation loss is chosen: the loss, because over a few thousand
rows accuracy jumps by chance where the loss is smooth. The chosen one is then refitted on all training rows.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from pipeline.common.bar import Bar
from pipeline.common.progress import Progress
from pipeline.common.text import percent, to_csv
from pipeline.features.rows import FeatureRows, Scale, moments
from pipeline.models import classifiers, history
from pipeline.models import fit as fitting
from pipeline.models.fit import fit_side_by_side
from pipeline.models.history import FitAndValidation, History, Samples, Step
from pipeline.models.jobs import Fitted, Job
from pipeline.network.taps import columns_among, columns_of
from pipeline.selection import splits
from pipeline.selection.options import DEFAULT_CURVE_SEEDS
from pipeline.selection.splits import Rows, Split
from pipeline.selection.trials import Trial, TrialResult

LEARNING_CURVE_SIZES = 5
FITTED_ROWS = 10_000  # of those fitted on, whose probabilities are kept beside those of validation
TOGETHER = 5  # values of C that are fitted side by side: the best is most often among the first five
TRIALS_TOGETHER = 9  # at most: those that are interrupted are fitted again


@dataclass(frozen=True)
class Selection:
    """What was chosen on validation."""

    # The chosen candidate as it was fitted on the 90 %; its history is over all candidates where a single one has none.
    fitted: Fitted
    trials: list[dict[str, Any]]  # every candidate with its validation loss and accuracy, as the report lists it


@dataclass(frozen=True)
class LearningCurve:
    """Accuracies, float (sizes, seeds), against training-set size."""

    sizes: list[int]  # distinct training images; where there are groups, of the first seed
    train: NDArray[np.float64]
    validation: NDArray[np.float64]

    def to_csv(self) -> bytes:
        """A row for each size and seed."""
        rows = (
            (size, seed, f"{self.train[index, seed]:.6f}", f"{self.validation[index, seed]:.6f}")
            for index, size in enumerate(self.sizes)
            for seed in range(self.train.shape[1])
        )
        return to_csv(("rows", "seed", "train_accuracy", "validation_accuracy"), rows)


def split(data: Samples, seed: int, class_names: Sequence[str]) -> Split:
    """The rows to fit on, and those to validate on, of which each image has one."""
    return splits.split(data.labels, data.groups, seed, class_names, data.images)


def sizes_of_sides(rows: FitAndValidation) -> dict[str, Any]:
    """How many distinct images there are to fit on and to validate on, and how many groups."""
    sides = {"fit": rows.fit, "validation": rows.held_out}
    counts: dict[str, Any] = {name: len(np.unique(rows.data.images[side])) for name, side in sides.items()}
    groups = {name: len(np.unique(rows.data.groups[side])) for name, side in sides.items()}
    return {**counts, "groups_of_sides": groups}


def class_sizes(data: Samples, class_names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """The smallest and the largest class, and how many distinct images each has."""
    counts = np.bincount(data.labels[splits.one_of_each(data.images)], minlength=len(class_names))
    ends = {"smallest": int(counts.argmin()), "largest": int(counts.argmax())}
    return {name: (class_names[label], int(counts[label])) for name, label in ends.items()}


def prepare(data: Samples, seed: int, class_names: Sequence[str]) -> FitAndValidation:
    """Split all training rows, and see what standardises those to fit on."""
    return sides(data, *split(data, seed, class_names))


def sides(data: Samples, fit: Rows, held_out: Rows, *ends: Rows) -> FitAndValidation:
    """Some rows to fit on and to validate on, and what standardises both, by the former."""
    return FitAndValidation(data, fit, held_out, _moments(data.features.take(np.sort(fit))), *ends)


def _moments(features: FeatureRows) -> Scale:
    with Progress("means and deviations", features.nbytes, "B", scale=True) as progress:
        return moments(features, progress.update)


def select(name: str, options: Mapping[str, Any], rows: FitAndValidation, seed: int) -> Selection:
    """Choose a classifier's parameters on validation, of ``options`` as `classifiers.resolve` gives them."""
    classifier = classifiers.get(name)
    tuned = classifier.tuned_option
    candidates = classifiers.candidates(name, options, rows.data.features.shape[1])
    together = TOGETHER if classifier.solver_kind == "iterations" else len(candidates)
    found: list[Fitted] = []
    for first in range(0, len(candidates), together):
        group = candidates[first : first + together]
        title = f"fit {classifiers.describe(group[0])}" if len(group) == 1 else f"fit {len(group)} values of {tuned}"
        with Progress(title, 0, "steps") as progress:
            found += fit_side_by_side(
                name,
                [Job(params, rows, seed) for params in group],
                rivals=True,
                watch=functools.partial(_note, progress, [f"{tuned}={params[tuned]:g}" for params in group]),
            )
        best = min(found, key=lambda fitted: fitted.criterion)
        if best is not found[-1]:
            break  # the loss falls with C, then rises: past the rise there is nothing to find
    if len(best.history.steps) == 1 and best.history.unit == tuned:
        steps = sorted((step for fitted in found for step in fitted.history.steps), key=lambda step: step.step)
        best = dataclasses.replace(best, history=History(best.history.unit, steps, best.history.kept))
    return Selection(best, [described(name, fit.params, *fit.validation, fit.not_converged) for fit in found])


def described(
    name: str, params: Mapping[str, Any], loss: float, accuracy: float, not_converged: str | None
) -> dict[str, Any]:
    """A candidate as a run lists it."""
    tuned = classifiers.get(name).tuned_option
    return {tuned: params[tuned], "log_loss": loss, "accuracy": accuracy, "converged": not not_converged}


def probabilities(chosen: Fitted, rows: FitAndValidation, numbers: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
    """What a fitted candidate says of its validation rows, and of the first that it learnt from: float16 (n, classes).

    Beside each the rows' numbers, int (n,), where ``numbers`` are those of all rows in their split.
    """
    found: dict[str, NDArray[Any]] = {}
    for name, side in (("fit", rows.fit[:FITTED_ROWS]), ("validation", rows.held_out)):
        own = np.sort(side)
        said = history.predict(chosen.model, rows.data.features.take(own), rows.scale)
        found |= {f"{name}_rows": numbers[own], name: said.astype(np.float16)}
    return found


def _note(progress: Bar, names: Sequence[str], number: int, step: Step) -> None:
    progress.note(f"{names[number]}, step {step.step:g}, validation accuracy {percent(step.validation_accuracy)}")
    progress.update(1)


def refit(name: str, chosen: Fitted, data: Samples, seed: int) -> tuple[Pipeline, str | None]:
    """Fit the chosen parameters on all training rows, ``data``: see `fit.refit`."""
    scale = _moments(data.features)
    with Progress("refit on all rows", chosen.params.get("epochs", 0), "steps") as progress:
        return fitting.refit(name, data, scale, seed, chosen, lambda: progress.update(1))


# --- trials, many of them -----------------------------------------------------------------------


def arrange(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that differ in the tuned option alone together, the most regularised first: they share passes of rows."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        tuned = classifiers.get(trial.classifier).tuned_option
        rest: dict[str, Any] = {name: value for name, value in trial.params.items() if name != tuned}
        groups.setdefault(repr((trial.classifier, trial.taps, rest, trial.seed)), []).append(trial)
    found = []
    for group in groups.values():
        tuned = classifiers.get(group[0].classifier).tuned_option
        ordered = sorted(group, key=lambda trial: trial.params[tuned])
        found += [ordered[first : first + TRIALS_TOGETHER] for first in range(0, len(ordered), TRIALS_TOGETHER)]
    return found


def columns_of_trial(trial: Trial, features: FeatureRows, taps: tuple[str, ...]) -> list[slice]:
    """Where the columns of a trial's taps are in features of ``taps``, of one cache or of several side by side."""
    return columns_among(trial.taps, taps, range(features.shape[1] // columns_of(taps)))


def fit_together(
    trials: Sequence[Trial],
    rows: FitAndValidation,
    taps: tuple[str, ...],
    on_step: Callable[[str], object] = lambda what: None,
) -> list[tuple[Mapping[str, Any], TrialResult]]:
    """Fit trials as `arrange` puts them together; ``taps``, what the columns of ``rows`` are, has at least theirs.

    ``on_step`` is told what is being done. Of each are returned its parameters, with what was found besides, and how
    it did.
    """

    def watch(number: int, step: Step) -> None:
        on_step(f"{trials[number].describe()}: step {step.step:g}, {percent(step.validation_accuracy)}")

    began = time.monotonic()
    own = rows.columns(columns_of_trial(trials[0], rows.data.features, taps))
    fits = fit_side_by_side(trials[0].classifier, [Job(trial.params, own, trial.seed) for trial in trials], watch=watch)
    seconds = round((time.monotonic() - began) / len(trials), 3)
    return [
        (fit.params, TrialResult(*fit.validation, *fit.train, fit.not_converged, seconds, fit.criterion))
        for fit in fits
    ]


# --- the learning curve -------------------------------------------------------------------------


def curve_sizes(rows: int, classes: int) -> list[int]:
    """Training-set sizes of the learning curve: about a sixteenth to all of the groups, in equal ratios."""
    smallest = min(max(rows // 16, 2 * classes), rows)
    sizes = np.unique(np.geomspace(smallest, rows, LEARNING_CURVE_SIZES).round().astype(int)).tolist()
    # A stratified subset needs a row of each class inside, and outside unless it is everything.
    return [size for size in sizes if size == rows or classes <= size <= rows - classes]


def learning_curve(
    name: str,
    chosen: Fitted,
    rows: FitAndValidation,
    seed: int,
    class_names: Sequence[str],
    *,
    seeds: int = DEFAULT_CURVE_SEEDS,
    elsewhere: Callable[[Sequence[Curve], Bar], list[NDArray[np.float64]]] | None = None,
) -> LearningCurve:
    """Accuracy of the chosen parameters against training-set size, over several seeds.

    Each seed draws a split of its own, and of its training side ever larger stratified subsets. The first seed's
    split is the selection's, and its largest subset is what the selection has fitted already. All keep the
    selection's standardisation: it needs no labels, and what is measured is the classifier.

    Parameters
    ----------
    chosen : Fitted
        By `select`, on ``rows``.
    rows : FitAndValidation
        Of ``seed``.
    seeds : int
        How many; with none only what is known already, the score of the largest subset.
    elsewhere : callable, optional
        Does what `follow` does here.
    """
    data, params = rows.data, {key: value for key, value in chosen.params.items() if key != "epochs"}
    drawn = [(seed + number) % (classifiers.MAX_SEED + 1) for number in range(max(seeds, 1))]
    parts = [split(data, each, class_names) for each in drawn]
    least = max(splits.groups_with_every_class(data.labels, each) for each in parts)
    sizes = [size for size in curve_sizes(len(rows.ends), len(class_names)) if size >= least][0 if seeds else -1 :]
    curves = [
        # The first seed's largest subset is fitted already.
        Curve(name, params, rows.scale, sizes if number else sizes[:-1], each, part)
        for number, (each, part) in enumerate(zip(drawn, parts, strict=True))
    ]
    with Progress("learning curve", sum(sum(curve.sizes) for curve in curves), "images") as progress:
        found = follow(data, curves, progress.update) if elsewhere is None else elsewhere(curves, progress)
    found[0] = np.vstack([found[0], [chosen.train[1], chosen.validation[1]]])
    train, validation = np.stack(found, axis=2).swapaxes(0, 1)
    shown = [len(np.unique(data.images[rows.fit[: rows.ends[size - 1]]])) for size in sizes]
    return LearningCurve(shown, train, validation)


class Curve(NamedTuple):
    """Fits of a learning curve with one seed."""

    name: str  # the classifier's
    params: Mapping[str, Any]
    scale: Scale
    sizes: list[int]  # groups to fit on, ascending
    seed: int
    parts: Split


def follow(
    data: Samples, curves: Sequence[Curve], progress: Callable[[int], object] = lambda images: None
) -> list[NDArray[np.float64]]:
    """Accuracies of curves, float64 (sizes, train and validation) each; ``progress`` is told the images fitted."""
    scores: list[list[tuple[float, float]]] = [[] for _ in curves]
    starts: dict[int, Any] = {}  # a solver starts where it ended on fewer rows
    for index in range(max(len(curve.sizes) for curve in curves)):
        going = {number: curve for number, curve in enumerate(curves) if index < len(curve.sizes)}
        jobs = []
        for number, curve in going.items():
            fit, held_out, ends = curve.parts
            subset = FitAndValidation(data, fit, held_out, curve.scale, ends).first(curve.sizes[index])
            jobs.append(Job(curve.params, subset, curve.seed, starts.get(number)))
        for number, fitted in zip(going, fit_side_by_side(curves[0].name, jobs, brief=True), strict=True):
            scores[number].append((fitted.train[1], fitted.validation[1]))
            starts[number] = fitted.model
        progress(sum(curve.sizes[index] for curve in going.values()))
    return [np.array(each, float).reshape(-1, 2) for each in scores]

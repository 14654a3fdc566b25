"""How stage two chooses, and on which rows: every choice on validation, nothing on test.

A stratified 10 % of the training images is validation, copies of an image always on one side. Each candidate is
fitted on the other 90 % and the one with the lowest validation loss is chosen: the loss, because over a few thousand
rows accuracy jumps by chance where the loss is smooth. The chosen one is then refitted on all training rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.common.progress import Progress
from pipeline.common.text import to_csv
from pipeline.models import classifiers
from pipeline.models import fit as fitting
from pipeline.models.fit import Fitted
from pipeline.models.history import History, Samples, Step
from pipeline.selection import splits
from pipeline.selection.options import DEFAULT_CURVE_SEEDS
from pipeline.selection.splits import Rows, Split

if TYPE_CHECKING:
    from pipeline.common.bar import Bar

LEARNING_CURVE_SIZES = 5
# The solver's tolerance for the learning curve, whose many fits it makes three times as fast as 1e-4 would, for
# about 0.2 points of validation accuracy (CIFAR-10, 6,016 columns).
CURVE_TOLERANCE = 1e-3
SCALE_ROWS = 4096  # rows that go through the scaler together: bounds its float64 copies


@dataclass(frozen=True)
class FitAndValidation:
    """The rows to fit on and to validate on, standardised by the former.

    Attributes
    ----------
    train, validation : Samples
        The beginning of ``train`` is a stratified subset, however many images are taken.
    ends : ndarray, int (images,)
        How many rows of ``train`` its first images have, copies counted.
    """

    train: Samples
    validation: Samples
    ends: NDArray[np.intp]

    def first(self, images: int) -> Samples:
        """A stratified subset of the images to fit on, with their copies; a view, not a copy."""
        rows = self.ends[images - 1]
        return Samples(self.train.features[:rows], self.train.labels[:rows])


@dataclass(frozen=True)
class Selection:
    """What was chosen on validation.

    Attributes
    ----------
    fitted : Fitted
        The chosen candidate as it was fitted on the 90 %; its history is over all candidates where a single one
        has none.
    trials : list of dict
        Every candidate with its validation loss and accuracy.
    """

    fitted: Fitted
    trials: list[dict[str, Any]]


@dataclass(frozen=True)
class LearningCurve:
    """Accuracies against training-set size.

    Attributes
    ----------
    sizes : list of int
        Distinct training images.
    train, validation : ndarray, float (sizes, seeds)
        Accuracies.
    """

    sizes: list[int]
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


def split(data: Samples, seed: int, class_names: Sequence[str]) -> Split:
    """The rows to fit on, and those to validate on, of which each group has one: a copy tells nothing new."""
    parts = splits.split(data.labels, data.grouping, seed, class_names)
    return parts._replace(held_out=parts.held_out[splits.one_of_each(data.grouping[parts.held_out])])


def class_sizes(data: Samples, class_names: Sequence[str]) -> dict[str, tuple[str, int]]:
    """The smallest and the largest class, and how many distinct images each has."""
    counts = np.bincount(data.labels[splits.one_of_each(data.grouping)], minlength=len(class_names))
    ends = {"smallest": int(counts.argmin()), "largest": int(counts.argmax())}
    return {name: (class_names[label], int(counts[label])) for name, label in ends.items()}


def prepare(data: Samples, seed: int, class_names: Sequence[str]) -> FitAndValidation:
    """Split all training rows and standardise copies of both sides.

    Parameters
    ----------
    data : Samples
        All training rows, not standardised; left as they are.
    seed : int
    class_names : sequence of str
    """
    parts = split(data, seed, class_names)
    return standardised(data, parts.fit, parts.held_out, parts.ends)


def standardised(data: Samples, fit: Rows, held_out: Rows, ends: Rows | None = None) -> FitAndValidation:
    """Copies of some rows to fit on and to validate on, standardised by the former."""
    train, validation = data.taken(fit), data.taken(held_out)
    scaler = fit_scaler(train.features)
    for each in (train, validation):
        standardise(scaler, each.features)
    return FitAndValidation(train, validation, np.arange(1, len(fit) + 1) if ends is None else ends)


def select(name: str, options: Mapping[str, Any], rows: FitAndValidation, seed: int) -> Selection:
    """Choose a classifier's parameters on validation.

    Parameters
    ----------
    name : str
        The classifier's.
    options : mapping
        As `classifiers.resolve` gives them.
    rows : FitAndValidation
    seed : int
    """
    classifier = classifiers.get(name)
    candidates = classifiers.candidates(name, options, rows.train.features.shape[1])
    if classifier.solver_kind == "iterations":
        return _select_on_path(name, candidates, rows, seed)
    found: list[Fitted] = []
    for number, params in enumerate(candidates, 1):
        title = f"fit {classifier.tuned_option}={params[classifier.tuned_option]:g} ({number} of {len(candidates)})"
        with Progress(title, params.get("max_epochs", 1), "epochs") as progress:
            found.append(
                fitting.fit_classifier(name, params, rows.train, rows.validation, seed, watch=_watching(progress))
            )
    best = min(found, key=lambda fitted: fitted.validation[0])
    if classifier.solver_kind == "once":
        steps = sorted((step for fitted in found for step in fitted.history.steps), key=lambda step: step.step)
        best = dataclasses.replace(best, history=History(best.history.unit, steps, best.history.kept))
    return Selection(best, [trial(fitted, classifier.tuned_option) for fitted in found])


def trial(fitted: Fitted, searched: str) -> dict[str, Any]:
    """A candidate as the report lists it."""
    loss, accuracy = fitted.validation
    return {
        searched: fitted.params[searched],
        "log_loss": loss,
        "accuracy": accuracy,
        "converged": not fitted.not_converged,
    }


def _select_on_path(name: str, candidates: list[dict[str, Any]], rows: FitAndValidation, seed: int) -> Selection:
    trials: list[dict[str, Any]] = []
    params, last = candidates[0], None
    if len(candidates) > 1:
        searched = classifiers.get(name).tuned_option
        with Progress("search", 0, "candidates") as progress:
            for candidate in candidates:
                note = _noting(progress, f"{searched}={candidate[searched]:g}", "iteration")
                # Each starts where the one before, more regularised, ended.
                start = last.model if last else None
                last = fitting.fit_classifier(
                    name, candidate, rows.train, rows.validation, seed, start=start, watch=note
                )
                trials.append(trial(last, searched))
                progress.update(1)
                if len(trials) > 1 and trials[-1]["log_loss"] > trials[-2]["log_loss"]:
                    break  # the loss falls with C, then rises: past the rise there is nothing to find
        params = min(zip(trials, candidates, strict=False), key=lambda found: found[0]["log_loss"])[1]
    # From scratch, not from the path: its history is then one of learning, not of continuing.
    with Progress(f"fit {classifiers.describe(params)}", 0, "iterations") as progress:
        fitted = fitting.fit_classifier(name, params, rows.train, rows.validation, seed, watch=_watching(progress))
    return Selection(fitted, trials)


def _watching(progress: Bar) -> Callable[[Step], None]:
    def watch(step: Step) -> None:
        progress.note(f"validation accuracy {step.validation_accuracy:.2%}")
        progress.update(1)

    return watch


def _noting(progress: Bar, what: str, unit: str) -> Callable[[Step], None]:
    def watch(step: Step) -> None:
        progress.note(f"{what}, {unit} {step.step:g}, validation accuracy {step.validation_accuracy:.2%}")

    return watch


def curve_sizes(rows: int, classes: int) -> list[int]:
    """Training-set sizes of the learning curve: about a sixteenth to all of the images, in equal ratios."""
    smallest = min(max(rows // 16, 2 * classes), rows)
    sizes = np.unique(np.geomspace(smallest, rows, LEARNING_CURVE_SIZES).round().astype(int)).tolist()
    # A stratified subset needs a row of each class inside, and outside unless it is everything.
    return [size for size in sizes if size == rows or classes <= size <= rows - classes]


def learning_curve(
    name: str,
    chosen: Fitted,
    rows: FitAndValidation,
    data: Samples,
    seed: int,
    class_names: Sequence[str],
    *,
    seeds: int = DEFAULT_CURVE_SEEDS,
) -> LearningCurve:
    """Accuracy of the chosen parameters against training-set size, over several seeds.

    Each seed draws a split of its own, and of its training side ever larger stratified subsets. The first seed's
    split is the selection's, and its largest subset is what the selection has fitted already. Subsets keep the
    standardisation of all rows of their split: it needs no labels, and what is measured is the classifier.

    Parameters
    ----------
    name : str
        The classifier's.
    chosen : Fitted
        By `select`, on ``rows``.
    rows : FitAndValidation
        Of ``seed``.
    data : Samples
        All training rows, not standardised; left as they are.
    seed : int
    class_names : sequence of str
    seeds : int
        How many; with none only what is known already, the score of the largest subset.
    """
    params = {key: value for key, value in chosen.params.items() if key != "epochs"}
    if "tol" in params:
        params["tol"] = max(params["tol"], CURVE_TOLERANCE)
    drawn = [(seed + number) % (classifiers.MAX_SEED + 1) for number in range(max(seeds, 1))]
    least = max(splits.groups_with_every_class(data.labels, split(data, each, class_names)) for each in drawn)
    sizes = [size for size in curve_sizes(len(rows.ends), len(class_names)) if size >= least][0 if seeds else -1 :]
    train_scores = np.full((len(sizes), len(drawn)), np.nan)
    validation_scores = train_scores.copy()
    train_scores[-1, 0], validation_scores[-1, 0] = chosen.train[1], chosen.validation[1]
    with Progress("learning curve", sum(sizes) * len(drawn) - sizes[-1], "images") as progress:
        for number, each in enumerate(drawn):
            if number > 0:
                del rows
                rows = prepare(data, each, class_names)
            last = None
            for index, size in enumerate(sizes):
                if not np.isnan(train_scores[index, number]):
                    continue
                what = f"{size:,} images, seed {number + 1} of {len(drawn)}"
                # A solver starts where it ended on fewer rows. Epochs start anew: fewer rows need more of them, so
                # each size stops where its own validation says.
                last = fitting.fit_classifier(
                    name, params, rows.first(size), rows.validation, each,
                    start=last.model if last and "tol" in params else None, watch=_noting(progress, what, "step"),
                )  # fmt: skip
                train_scores[index, number], validation_scores[index, number] = last.train[1], last.validation[1]
                progress.update(size)
    return LearningCurve(sizes, train_scores, validation_scores)


def refit(name: str, chosen: Fitted, data: Samples, seed: int) -> tuple[Pipeline, str | None]:
    """Fit the chosen parameters on all training rows; ``data`` is standardised in place and used up.

    Returns
    -------
    model : Pipeline
        From raw features to labels and probabilities.
    reason : str or None
        Why it did not converge; None when it did.
    """
    scaler = fit_scaler(data.features)
    train = Samples(standardise(scaler, data.features), data.labels)
    with Progress("refit on all rows", chosen.params.get("epochs", 0), "steps") as progress:
        estimator, reason = fitting.refit(name, train, seed, chosen, lambda: progress.update(1))
    return _assemble(name, scaler, estimator, seed), reason


def _assemble(name: str, scaler: StandardScaler, estimator: Any, seed: int) -> Pipeline:
    """One fitted pipeline, raw features to class labels, of a fitted scaler and a fitted estimator."""
    if "random_state" in estimator.get_params():
        estimator.set_params(random_state=seed)  # a number again: a generator's state is nobody's parameter
    return Pipeline([("scale", scaler), (name, estimator)])

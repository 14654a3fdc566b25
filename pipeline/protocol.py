"""How stage two chooses, and on which rows: every choice on validation, nothing on test.

A stratified 10 % of the training rows is validation. Each candidate is fitted on the other 90 % and the
one with the lowest validation loss is chosen: the loss, because over a few thousand rows accuracy jumps
by chance where the loss is smooth. The chosen one is then refitted on all training rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline

from pipeline import classifiers, history
from pipeline.errors import UserError
from pipeline.history import Data, History, Scores, Step
from pipeline.progress import Progress

VALIDATION_SHARE = 0.1
LEARNING_CURVE_SIZES = 5
LEARNING_CURVE_SEEDS = 3
# The solver's tolerance for the learning curve, whose many fits it makes three times as fast as 1e-4 would, for
# about 0.2 points of validation accuracy (CIFAR-10, 6,016 columns).
CURVE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Selection:
    """What was chosen on validation.

    Attributes
    ----------
    params : dict
        All parameters of the chosen candidate.
    history : History
        Of its fit on the 90 %.
    train, validation : tuple of float
        Its loss and accuracy on either.
    trials : list of dict
        Every candidate with its validation loss and accuracy.
    """

    params: dict[str, Any]
    history: History
    train: Scores
    validation: Scores
    trials: list[dict[str, Any]]


@dataclass(frozen=True)
class LearningCurve:
    """Accuracies against training-set size.

    Attributes
    ----------
    sizes : list of int
        Training rows.
    train, validation : ndarray, float (sizes, seeds)
        Accuracies.
    """

    sizes: list[int]
    train: NDArray[np.float64]
    validation: NDArray[np.float64]


def split(labels: NDArray[Any], seed: int, class_names: Sequence[str]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Row numbers to fit on and to validate on: stratified, seeded.

    Raises
    ------
    UserError
        When a class has fewer than two training rows.
    """
    counts = np.bincount(labels, minlength=len(class_names))
    if counts.min() < 2:
        scarce = ", ".join(name for name, count in zip(class_names, counts, strict=True) if count < 2)
        raise UserError(
            f"Every class needs at least two training rows, one to learn from and one to validate on. Fewer found for: "
            f"{scarce}. Raise --limit, or leave it out."
        )
    validation = max(round(VALIDATION_SHARE * len(labels)), len(class_names))
    fit, held_out = train_test_split(np.arange(len(labels)), test_size=validation, stratify=labels, random_state=seed)
    return fit, held_out


def _standardised(data: Data, fit: NDArray[np.intp], held_out: NDArray[np.intp]) -> tuple[Data, Data]:
    """Copies of some rows to fit on and others to score, standardised by the first."""
    train = data.features[fit]
    scaler = classifiers.fit_scaler(train)
    return (
        Data(classifiers.standardise(scaler, train), data.labels[fit]),
        Data(classifiers.standardise(scaler, data.features[held_out]), data.labels[held_out]),
    )


def select(name: str, options: Mapping[str, Any], data: Data, seed: int, class_names: Sequence[str]) -> Selection:
    """Choose a classifier's parameters on validation.

    Parameters
    ----------
    name : str
        The classifier's.
    options : mapping
        As `spec.classifier_options` gives them.
    data : Data
        All training rows, not standardised; left as they are.
    seed : int
    class_names : sequence of str
    """
    train, validation = _standardised(data, *split(data.labels, seed, class_names))
    candidates = classifiers.candidates(options, data.features.shape[1])
    chooser = _select_logistic if name == "logistic" else _select_mlp
    return chooser(candidates, train, validation, seed)


def _select_logistic(candidates: list[dict[str, Any]], train: Data, validation: Data, seed: int) -> Selection:
    report: list[dict[str, Any]] = []
    params = candidates[0]
    if len(candidates) > 1:
        path = classifiers.make("logistic", candidates[0], seed)
        with Progress("search", 0, "candidates") as progress:
            for candidate in candidates:
                path.set_params(C=candidate["C"])  # each starts where the one before, more regularised, ended
                history.fit_quietly(path, train, _noting(progress, f"C={candidate['C']:g}", "iteration"))
                loss, accuracy = history.scores(path, validation)
                report.append({"C": candidate["C"], "log_loss": loss, "accuracy": accuracy})
                progress.update(1)
                if len(report) > 1 and loss > report[-2]["log_loss"]:
                    break  # the loss falls with C, then rises: past the rise there is nothing to find
                params = candidate
    # From scratch, not from the path: its history is then one of learning, not of continuing.
    estimator = classifiers.make("logistic", params, seed)
    with Progress(f"fit C={params['C']:g}", 0, "iterations") as progress:
        steps = history.fit_iterations(estimator, train, validation, _watching(progress))
    return Selection(params, steps, history.scores(estimator, train), history.scores(estimator, validation), report)


def _select_mlp(candidates: list[dict[str, Any]], train: Data, validation: Data, seed: int) -> Selection:
    best: Selection | None = None
    report: list[dict[str, Any]] = []
    for number, params in enumerate(candidates, 1):
        estimator = classifiers.make("mlp", params, seed)
        title = f"search alpha={params['alpha']:g} ({number} of {len(candidates)})"
        with Progress(title, params["max_epochs"], "epochs") as progress:
            steps = history.fit_epochs(
                estimator, train, validation, _watching(progress),
                max_epochs=params["max_epochs"], patience=params["patience"],
            )  # fmt: skip
        kept = steps.steps[steps.kept - 1]
        report.append(
            {"alpha": params["alpha"], "log_loss": kept.validation_loss, "accuracy": kept.validation_accuracy}
        )
        if best is None or kept.validation_loss < best.validation[0]:
            best = Selection(
                {**params, "epochs": steps.kept},
                steps,
                (kept.train_loss, kept.train_accuracy),
                (kept.validation_loss, kept.validation_accuracy),
                report,
            )
    if best is None:
        raise AssertionError("no candidates")
    return best


def _watching(progress: Progress) -> Callable[[Step], None]:
    def watch(step: Step) -> None:
        progress.note(f"validation accuracy {step.validation_accuracy:.2%}")
        progress.update(1)

    return watch


def _noting(progress: Progress, what: str, unit: str) -> Callable[[int], None]:
    def tick(number: int) -> None:
        progress.note(f"{what}, {unit} {number}")

    return tick


def _noting_steps(progress: Progress, what: str) -> Callable[[Step], None]:
    def watch(step: Step) -> None:
        progress.note(f"{what}, epoch {step.step}")

    return watch


def curve_sizes(rows: int, classes: int) -> list[int]:
    """Training-set sizes of the learning curve: about a sixteenth to all of the rows, in equal ratios."""
    smallest = min(max(rows // 16, 2 * classes), rows)
    sizes = np.unique(np.geomspace(smallest, rows, LEARNING_CURVE_SIZES).round().astype(int)).tolist()
    # A stratified subset needs a row of each class inside, and outside unless it is everything.
    return [size for size in sizes if size == rows or classes <= size <= rows - classes]


def learning_curve(
    name: str, params: Mapping[str, Any], data: Data, seed: int, class_names: Sequence[str]
) -> LearningCurve:
    """Accuracy of the chosen parameters against training-set size, over several seeds.

    Each seed draws a split of its own, and of its training side ever larger stratified subsets.

    Parameters
    ----------
    name, params, data, seed, class_names
        As for `select`; ``params`` as it chose them.
    """
    splits = [split(data.labels, seed + offset, class_names) for offset in range(LEARNING_CURVE_SEEDS)]
    sizes = curve_sizes(len(splits[0][0]), len(class_names))
    train_scores = np.full((len(sizes), LEARNING_CURVE_SEEDS), np.nan)
    validation_scores = train_scores.copy()
    relaxed = {**params, "tol": max(params["tol"], CURVE_TOLERANCE)} if name == "logistic" else params
    with Progress("learning curve", sum(sizes) * LEARNING_CURVE_SEEDS, "rows") as progress:
        for number, (fit, held_out) in enumerate(splits):
            for index, size in enumerate(sizes):
                rows = fit
                if size < len(fit):
                    rows, _ = train_test_split(
                        fit, train_size=size, stratify=data.labels[fit], random_state=seed + number
                    )
                train, validation = _standardised(data, rows, held_out)
                what = f"{size:,} rows, seed {number + 1} of {LEARNING_CURVE_SEEDS}"
                estimator = classifiers.make(name, relaxed, seed + number)
                if name == "logistic":
                    history.fit_quietly(estimator, train, _noting(progress, what, "iteration"))
                else:  # fewer rows need more epochs, so each size stops where its own validation says
                    history.fit_epochs(
                        estimator, train, validation, _noting_steps(progress, what),
                        max_epochs=params["max_epochs"], patience=params["patience"],
                    )  # fmt: skip
                train_scores[index, number] = estimator.score(train.features, train.labels)
                validation_scores[index, number] = estimator.score(validation.features, validation.labels)
                progress.update(size)
    return LearningCurve(sizes, train_scores, validation_scores)


def refit(name: str, params: Mapping[str, Any], data: Data, seed: int) -> Pipeline:
    """Fit the chosen parameters on all training rows; ``data`` is standardised in place and used up."""
    scaler = classifiers.fit_scaler(data.features)
    train = Data(classifiers.standardise(scaler, data.features), data.labels)
    estimator = classifiers.make(name, params, seed)
    with Progress("refit on all rows", params.get("epochs", 0), "steps") as progress:
        if name == "logistic":
            history.fit_quietly(estimator, train, lambda _: progress.update(1))
        else:
            history.fit_fixed_epochs(estimator, train, params["epochs"], lambda _: progress.update(1))
    return classifiers.assemble(name, scaler, estimator, seed)

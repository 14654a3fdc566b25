"""Fitting trials that differ in one option alone side by side: what they share is read once for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.common.text import percent
from pipeline.models import classifiers
from pipeline.models.fit import fit_side_by_side
from pipeline.models.history import FitAndValidation, Step
from pipeline.models.jobs import Fitted, Job
from pipeline.network.taps import columns_among, columns_of
from pipeline.selection.trials import Trial, TrialResult

TOGETHER = 9  # at most: those that are interrupted are fitted again


def arrange(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials that differ in the tuned option alone together, the most regularised first."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        tuned = classifiers.get(trial.classifier).tuned_option
        rest: dict[str, Any] = {name: value for name, value in trial.params.items() if name != tuned}
        groups.setdefault(repr((trial.classifier, trial.taps, rest, trial.seed)), []).append(trial)
    found = []
    for group in groups.values():
        tuned = classifiers.get(group[0].classifier).tuned_option
        ordered = sorted(group, key=lambda trial: trial.params[tuned])
        found += [ordered[first : first + TOGETHER] for first in range(0, len(ordered), TOGETHER)]
    return found


def fit_together(
    trials: Sequence[Trial],
    rows: FitAndValidation,
    taps: tuple[str, ...],
    on_step: Callable[[str], object] = lambda what: None,
) -> list[tuple[Trial, Fitted, TrialResult]]:
    """Fit trials as `arrange` puts them together; ``taps``, what the columns of ``rows`` are, has at least theirs.

    ``on_step`` is told what is being done.
    """

    def watch(number: int, step: Step) -> None:
        on_step(f"{trials[number].describe()}: step {step.step:g}, {percent(step.validation_accuracy)}")

    began = time.monotonic()
    own = rows.columns(columns_among(trials[0].taps, taps, range(rows.data.features.shape[1] // columns_of(taps))))
    fits = fit_side_by_side(trials[0].classifier, [Job(trial.params, own, trial.seed) for trial in trials], watch=watch)
    seconds = round((time.monotonic() - began) / len(trials), 3)
    return [
        (trial, fit, TrialResult(*fit.validation, *fit.train, fit.not_converged, seconds, fit.criterion))
        for trial, fit in zip(trials, fits, strict=True)
    ]

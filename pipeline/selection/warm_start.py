"""Fitting trials along paths: each from where the one before ended, each recorded as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.models import classifiers
from pipeline.network.taps import columns_of, describe_taps
from pipeline.selection.trials import Trial, TrialRecords, TrialResult

if TYPE_CHECKING:
    from pipeline.selection.protocol import FitAndValidation


def describe(trial: Trial) -> str:
    """A trial in a few words, for progress."""
    tuned = classifiers.get(trial.classifier).tuned_option
    value = classifiers.describe({tuned: trial.params[tuned]})
    return f"{trial.classifier} {value}, {describe_taps(trial.taps)}"


def arrange(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Trials in the order in which they are fitted: those that differ in C alone one after the other."""
    groups: dict[str, list[Trial]] = {}
    for number, trial in enumerate(trials):
        known = classifiers.get(trial.classifier)
        rest = {name: value for name, value in trial.params.items() if name != known.tuned_option}
        alone = number if known.solver_kind != "iterations" else None
        groups.setdefault(repr((trial.classifier, trial.taps, rest, alone)), []).append(trial)
    # Most regularised first.
    return [
        sorted(group, key=lambda trial: trial.params[classifiers.get(trial.classifier).tuned_option])
        for group in groups.values()
    ]


def fit_path_in_worker(*given: Any) -> list[tuple[Trial, TrialResult]]:
    """Fit a path in another process: `fit_path`, all at once."""
    import sklearn

    sklearn.set_config(assume_finite=True)
    return list(fit_path(*given))


def fit_path(
    path: Sequence[Trial],
    prepared: FitAndValidation,
    taps: tuple[str, ...],
    records: TrialRecords,
    on_step: Callable[[str], None] = lambda what: None,
) -> Iterator[tuple[Trial, TrialResult]]:
    """Fit what is not recorded of a path, each from where the one before ended, and record it at once.

    Parameters
    ----------
    path : sequence of Trial
        Of the same classifier, taps and rows, in order.
    prepared : FitAndValidation
        Standardised rows of ``taps``.
    taps : tuple of str
        What the columns of ``prepared`` are.
    records : TrialRecords
    on_step : callable
        Told what is being done.
    """
    from pipeline.models import fit, history, logistic

    columns = columns_among(path[0].taps, taps)
    train, validation = (
        history.Samples(data.features[:, columns], data.labels)
        for data in (prepared.first(path[0].rows), prepared.validation)
    )
    last: Trial | None = None
    for trial in path:
        if records.read(trial) is not None:
            if last is not None:
                records.drop_state(last)  # left behind when a sweep was killed right after this record
            last = trial
            continue
        state = records.read_state(last) if last else None
        begin = time.monotonic()

        def note(step: history.Step, what: str = describe(trial)) -> None:
            on_step(f"{what}: step {step.step:g}, {step.validation_accuracy:.2%}")

        fitted = fit.fit_classifier(
            trial.classifier, trial.params, train, validation, trial.seed, watch=note,
            start=None if state is None else logistic.LinearModel(np.ascontiguousarray(state[:, :-1]), state[:, -1]),
        )  # fmt: skip
        result = TrialResult(
            *fitted.validation, *fitted.train, fitted.not_converged, round(time.monotonic() - begin, 3)
        )
        end = None
        if isinstance(fitted.model, logistic.LinearModel) and trial is not path[-1]:
            end = np.column_stack([fitted.model.coef, fitted.model.intercept]).astype(np.float32)
        records.write(trial, fitted.params, result, end)
        if last is not None:
            records.drop_state(last)
        last = trial
        yield trial, result


def columns_among(wanted: tuple[str, ...], held: tuple[str, ...]) -> slice | NDArray[np.intp]:
    """The columns of some taps among those of others; a slice, which copies nothing, where it is all of them."""
    if wanted == held:
        return slice(None)
    starts = dict(zip(held, np.cumsum([0, *(columns_of([tap]) for tap in held)])[:-1], strict=True))
    return np.concatenate([np.arange(starts[tap], starts[tap] + columns_of([tap])) for tap in wanted])

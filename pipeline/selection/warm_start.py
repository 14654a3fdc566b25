"""Fitting candidates along paths: each from where the one before ended, each recorded as soon as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.models import classifiers
from pipeline.network.taps import columns_of, describe_taps
from pipeline.selection import trials
from pipeline.selection.grid import Candidate
from pipeline.selection.trials import Record

if TYPE_CHECKING:
    from pipeline.selection.protocol import Prepared


@dataclass(frozen=True)
class Place:
    """A candidate, how many rows it is fitted on, and where its record is."""

    candidate: Candidate
    rows: int
    path: Path


def says(candidate: Candidate) -> str:
    """A candidate in a few words, for progress."""
    searched = classifiers.get(candidate.classifier).searched
    value = classifiers.describe({searched: candidate.params[searched]})
    return f"{candidate.classifier} {value}, {describe_taps(candidate.taps)}"


def arrange(places: Sequence[Place], found: set[Path]) -> list[list[Place]]:
    """Candidates in the order in which they are fitted: those that differ in C alone one after the other.

    A path begins at the last one that is recorded before any that is not, because that is where it starts.
    """
    groups: dict[str, list[Place]] = {}
    for place in places:
        candidate = place.candidate
        known = classifiers.get(candidate.classifier)
        rest = {name: value for name, value in candidate.params.items() if name != known.searched}
        alone = place.path.stem if known.learns != "iterations" else ""
        groups.setdefault(repr((candidate.classifier, candidate.taps, rest, alone)), []).append(place)
    found_paths = []
    for group in groups.values():
        searched = classifiers.get(group[0].candidate.classifier).searched
        ordered = sorted(group, key=lambda place: place.candidate.params[searched])  # most regularised first
        if any(place.path not in found for place in ordered):
            found_paths.append(ordered)
    return found_paths


def fit_path_in_worker(path: list[Place], prepared: Prepared, rows: int, taps: tuple[str, ...]) -> list[Any]:
    """Fit a path in another process: `fit_path`, all at once."""
    import sklearn

    sklearn.set_config(assume_finite=True)
    return list(fit_path(path, prepared, rows, taps, lambda what, record: None))


def fit_path(
    path: list[Place],
    prepared: Prepared,
    rows: int,
    taps: tuple[str, ...],
    tell: Callable[[str, Record | None], None],
) -> Iterator[tuple[Place, Record]]:
    """Fit what is not recorded of a path, each from where the one before ended, and record it at once.

    Parameters
    ----------
    path : list of Place
        Candidates of the same classifier and taps, in order.
    prepared : Prepared
        Standardised rows of ``taps``.
    rows : int
        How many of the rows to fit on.
    taps : tuple of str
        What the columns of ``prepared`` are.
    tell : callable
        Told what is being done, and what came out.
    """
    from pipeline.models import fit, history, logistic

    columns = columns_among(path[0].candidate.taps, taps)
    fit_rows = history.Data(prepared.train.features[:rows][:, columns], prepared.train.labels[:rows])
    validation = history.Data(prepared.validation.features[:, columns], prepared.validation.labels)
    last: Place | None = None
    for place in path:
        if trials.read(place.path) is not None:
            if last is not None:
                trials.drop_state(last.path)  # left behind when a sweep was killed right after this record
            last = place
            continue
        candidate = place.candidate
        state = trials.read_state(last.path) if last else None
        begin = time.monotonic()

        def note(step: history.Step, what: str = says(candidate)) -> None:
            tell(f"{what}: step {step.step:g}, {step.validation_accuracy:.2%}", None)

        fitted = fit.fit(
            candidate.classifier, candidate.params, fit_rows, validation, candidate.seed, watch=note,
            start=None if state is None else logistic.Weights(np.ascontiguousarray(state[:, :-1]), state[:, -1]),
        )  # fmt: skip
        record = Record(
            fitted.validation[0], fitted.validation[1], fitted.train[0], fitted.train[1], fitted.reason,
            round(time.monotonic() - begin, 3),
        )  # fmt: skip
        end = None
        if isinstance(fitted.model, logistic.Weights):
            end = np.column_stack([fitted.model.coef, fitted.model.intercept]).astype(np.float32)
        described = {
            "classifier": candidate.classifier,
            "taps": list(candidate.taps),
            "params": dict(fitted.params),
            "seed": candidate.seed,
            "rows": rows,
        }
        trials.write(place.path, record, described, None if place is path[-1] else end)
        if last is not None:
            trials.drop_state(last.path)
        last = place
        tell(says(candidate), record)
        yield place, record


def columns_among(wanted: tuple[str, ...], held: tuple[str, ...]) -> slice | NDArray[np.intp]:
    """The columns of some taps among those of others; a slice, which copies nothing, where it is all of them."""
    if wanted == held:
        return slice(None)
    starts = dict(zip(held, np.cumsum([0, *(columns_of([tap]) for tap in held)])[:-1], strict=True))
    return np.concatenate([np.arange(starts[tap], starts[tap] + columns_of([tap])) for tap in wanted])

"""Cross-validation: every image is scored by a classifier that saw neither it nor a copy, nor was chosen on it.

In each fold everything is done anew on the rows of the others, the choice of the parameters too: among all candidates,
by their mean validation loss over folds of these rows alone. To choose on the folds that are scored would flatter what
is chosen; source: Varma & Simon 2006, https://doi.org/10.1186/1471-2105-7-91.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from pipeline.common.bar import Bar
from pipeline.models import fit as fitting
from pipeline.models.history import Samples
from pipeline.selection import protocol, splits, warm_start
from pipeline.selection.protocol import Selection
from pipeline.selection.splits import Rows
from pipeline.selection.trials import Trial, TrialResult

Table = list[tuple[Trial, TrialResult]]


class CrossValidation:
    """Chooses among candidates, fits the chosen one, and says how well what is so made does.

    Parameters
    ----------
    candidates : sequence of Trial
        None with an option left to choose.
    data : Samples
        All rows, not standardised; left as they are.
    taps : tuple of str
        What their columns are.
    class_names : sequence of str
    folds, repeats, seed : int
    progress : Bar
        Counts fits.

    Raises
    ------
    UserError
        When a class has too few images for the folds.
    """

    def __init__(
        self,
        candidates: Sequence[Trial],
        data: Samples,
        taps: tuple[str, ...],
        class_names: Sequence[str],
        *,
        folds: int,
        repeats: int,
        seed: int,
        progress: Bar,
    ) -> None:
        self._paths, self._taps, self._class_names = warm_start.arrange(candidates), taps, class_names
        self._data, self._folds, self._seed, self._progress = data, folds, seed, progress
        least = max(folds, 4 if folds == 2 else 3)  # so that two are left to choose and fit on
        self._parts = [
            splits.folds(data.labels, data.grouping, folds, seed + repeat, class_names, least)
            for repeat in range(repeats)
        ]
        self._only = candidates[0] if len(candidates) == 1 else None  # nothing to choose
        choosing = folds * len(candidates)
        progress.total = repeats * folds * (1 if self._only else 1 + choosing) + choosing + 1  # at most

    def score(self) -> tuple[Rows, NDArray[np.float32]]:
        """Predict each image, in each repeat, by what was chosen and fitted without it.

        Returns
        -------
        rows : ndarray, int (n,)
            One row of each image, ascending.
        probabilities : ndarray, float32 (repeats, n, classes)
        """
        rows = splits.one_of_each(self._data.grouping)
        probabilities = np.full((len(self._parts), len(rows), len(self._class_names)), np.nan, np.float32)
        for repeat, parts in enumerate(self._parts):
            for fit, held_out in parts:
                data, mine = self._data.taken(fit), np.isin(rows, held_out)
                trial = self._only or self.choose(data)[0][0]
                columns = warm_start.columns_among(trial.taps, self._taps)
                _, _, model, _ = self.fit(trial, data)
                probabilities[repeat, mine] = model.predict_proba(self._data.features[rows[mine]][:, columns])
        if np.isnan(probabilities).any():
            raise AssertionError("an image is in no fold")
        return rows, probabilities

    def choose(self, data: Samples) -> Table:
        """All candidates with their mean scores over folds of some rows, the lowest validation loss first."""
        trials = [trial for path in self._paths for trial in path]
        groups = data.grouping
        count = min(self._folds, splits.fewest(data.labels, groups))
        found: list[list[TrialResult]] = [[] for _ in trials]
        for fit, held_out in splits.folds(data.labels, groups, count, self._seed, self._class_names):
            rows = protocol.standardised(data, fit, held_out[splits.one_of_each(groups[held_out])])
            results = (result for path in self._paths for result in self._fit_path(path, rows))
            for own, result in zip(found, results, strict=True):
                own.append(result)
        table = [(trial, _mean(results)) for trial, results in zip(trials, found, strict=True)]
        return sorted(table, key=lambda item: (item[1].log_loss, item[1].reason is not None, -item[1].accuracy))

    def _fit_path(self, path: Sequence[Trial], rows: protocol.FitAndValidation) -> list[TrialResult]:
        columns = warm_start.columns_among(path[0].taps, self._taps)
        train, validation = (Samples(side.features[:, columns], side.labels) for side in (rows.train, rows.validation))
        last: fitting.Fitted | None = None
        results = []
        for trial in path:
            self._progress.note(warm_start.describe(trial))
            began, start = time.monotonic(), last.model if last else None
            last = fitting.fit_classifier(trial.classifier, trial.params, train, validation, trial.seed, start=start)
            seconds = round(time.monotonic() - began, 3)
            results.append(TrialResult(*last.validation, *last.train, last.not_converged, seconds))
            self._progress.update(1)
        return results

    def fit(self, trial: Trial, data: Samples) -> tuple[Samples, Selection, Pipeline, str | None]:
        """Fit a candidate on some rows, as `protocol.select` and `protocol.refit` do.

        Returns the rows with its columns, the fit on 90 % of them, the one on all, and why it did not converge.
        """
        columns = warm_start.columns_among(trial.taps, self._taps)
        own = dataclasses.replace(data, features=data.features[:, columns])
        rows = protocol.prepare(own, trial.seed, self._class_names)
        selection = protocol.select(trial.classifier, trial.params, rows, trial.seed)
        used = dataclasses.replace(own, features=own.features.copy())
        model, reason = protocol.refit(trial.classifier, selection.fitted, used, trial.seed)
        self._progress.update(1)
        return own, selection, model, reason or selection.fitted.not_converged


def _mean(results: Sequence[TrialResult]) -> TrialResult:
    """The mean over folds; of the reasons why it did not converge the first."""
    log_loss, accuracy, train_loss, train_accuracy, seconds = np.mean(
        [
            (each.log_loss, each.accuracy, each.train_log_loss, each.train_accuracy, each.seconds * len(results))
            for each in results
        ],
        axis=0,
    ).tolist()
    reason = next((each.reason for each in results if each.reason), None)
    return TrialResult(log_loss, accuracy, train_loss, train_accuracy, reason, round(seconds, 3))

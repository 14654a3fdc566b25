"""Cross-validation: every image is scored by a classifier that saw neither it nor a copy, nor was chosen on it.

In each fold everything is done anew on the rows of the others, the choice of the parameters too: among all candidates,
by their mean validation loss over folds of these rows alone. To choose on the folds that are scored would flatter what
is chosen; source: Varma & Simon 2006, https://doi.org/10.1186/1471-2105-7-91.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.pipeline import Pipeline

from pipeline.common.bar import Bar
from pipeline.models.history import FitAndValidation, Samples, predict
from pipeline.selection import protocol, splits
from pipeline.selection.options import TrainOptions
from pipeline.selection.protocol import Selection
from pipeline.selection.splits import Rows
from pipeline.selection.trials import Table, Trial, TrialResult


class CrossValidation:
    """Chooses among candidates, fits the chosen one, and says how well what is so made does.

    ``data`` are all rows, whose columns are ``taps``; ``options`` say into how many folds they go and how often, and
    ``progress`` counts fits. Raises UserError when a class has too few images for the folds.
    """

    def __init__(
        self,
        candidates: Sequence[Trial],
        data: Samples,
        taps: tuple[str, ...],
        class_names: Sequence[str],
        options: TrainOptions,
        progress: Bar,
    ) -> None:
        self._groups, self._taps, self._class_names = protocol.arrange(candidates), taps, class_names
        folds, seed, repeats = options.cv or 0, options.seed, options.repeats
        self._data, self._folds, self._seed, self._progress = data, folds, seed, progress
        least = max(folds, 4 if folds == 2 else 3)  # so that two are left to choose and fit on
        self._parts = [
            splits.folds(data.labels, data.groups, folds, seed + repeat, class_names, least)
            for repeat in range(repeats)
        ]
        self._only = candidates[0] if len(candidates) == 1 else None  # nothing to choose
        choosing = folds * len(candidates)
        progress.total = repeats * folds * (1 if self._only else 1 + choosing) + choosing + 1  # at most

    def score(self) -> tuple[Rows, NDArray[np.float32]]:
        """Predict each image, in each repeat, by what was chosen and fitted without it.

        Returns one row of each image (n,), ascending, and probabilities (repeats, n, classes).
        """
        rows = splits.one_of_each(self._data.images)
        probabilities = np.empty((len(self._parts), len(rows), len(self._class_names)), np.float32)
        for repeat, parts in enumerate(self._parts):
            for fit, held_out in parts:
                data, mine = self._data.taken(fit), np.isin(rows, held_out)
                trial = self._only or self.choose(data)[0][0]
                _, _, model, _ = self.fit(trial, data)
                columns = protocol.columns_of_trial(trial, data.features, self._taps)
                features = self._data.features.take(rows[mine]).columns(columns)
                probabilities[repeat, mine] = predict(model, features)
        return rows, probabilities

    def choose(self, data: Samples) -> Table:
        """All candidates with their mean scores over folds of some rows, the lowest validation loss first."""
        trials = [trial for group in self._groups for trial in group]
        count = min(self._folds, splits.fewest(data.labels, data.groups))
        found: list[list[TrialResult]] = [[] for _ in trials]
        for fit, held_out in splits.folds(data.labels, data.groups, count, self._seed, self._class_names):
            rows = protocol.sides(data, fit, held_out[splits.one_of_each(data.images[held_out])])
            results = (
                result
                for group in self._groups
                for _, result in protocol.fit_together(group, rows, self._taps, self._progress.note)
            )
            for own, result in zip(found, results, strict=True):
                own.append(result)
                self._progress.update(1)
        table = [(trial, _mean(results)) for trial, results in zip(trials, found, strict=True)]
        return sorted(table, key=lambda item: item[1].rank)

    def fit(self, trial: Trial, data: Samples) -> tuple[FitAndValidation, Selection, Pipeline, str | None]:
        """Fit a candidate on some rows, as `protocol.select` and `protocol.refit` do.

        Returns the rows with its columns, the fit on 90 % of them, the one on all, and why it did not converge.
        """
        columns = protocol.columns_of_trial(trial, data.features, self._taps)
        own = dataclasses.replace(data, features=data.features.columns(columns))
        rows = protocol.prepare(own, trial.seed, self._class_names)
        selection = protocol.select(trial.classifier, trial.params, rows, trial.seed)
        model, reason = protocol.refit(trial.classifier, selection.fitted, own, trial.seed)
        self._progress.update(1)
        return rows, selection, model, reason or selection.fitted.not_converged


def _mean(results: Sequence[TrialResult]) -> TrialResult:
    """The mean over folds; of the reasons why it did not converge the first."""
    reason = next((each.reason for each in results if each.reason), None)
    numbers = [dataclasses.astuple(dataclasses.replace(each, reason=None)) for each in results]
    mean = TrialResult(*np.array(numbers, float).mean(axis=0).tolist())  # None is not a number
    return dataclasses.replace(mean, reason=reason, seconds=round(sum(each.seconds for each in results), 3))

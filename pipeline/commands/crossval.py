"""Cross-validation of `train` and `sweep`: all rows in folds, those of test too."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.commands.train import Clock, Outcome, Run, left_out_of, make, place_of
from pipeline.common.keys import digest_of
from pipeline.common.progress import Progress
from pipeline.features import store
from pipeline.features.spec import FeatureSpec
from pipeline.models.history import Samples
from pipeline.output.metrics import score
from pipeline.output.run_folder import RunFolder
from pipeline.selection import copies, left_out, protocol, search, splits
from pipeline.selection.crossval import CrossValidation
from pipeline.selection.left_out import LeftOut
from pipeline.selection.options import SweepOptions, TrainOptions
from pipeline.selection.protocol import Selection
from pipeline.selection.trials import Table, Trial


def train(run: Run, candidates: Sequence[Trial], options: TrainOptions, without: LeftOut) -> Outcome:
    """Cross-validate candidates of one choice of taps, and fit the best on all rows.

    Raises UserError when a class has too few images for the folds.
    """
    cache, taps = run.cache, run.asked.taps
    data = without.samples(cache, taps, run.grouping, test=True)
    run.clock.lap("load")
    with Progress("cross-validation", 0, "fits") as progress:
        folds = CrossValidation(candidates, data, taps, cache.class_names, options, progress)
        return _compute(run, data, folds, folds.choose(data), options, without)


def _compute(
    run: Run, data: Samples, folds: CrossValidation, table: Table, options: TrainOptions, without: LeftOut
) -> Outcome:
    """Score every image, and fit the first of a table, which must be of all rows, on all of them."""
    class_names, kept, clock = run.cache.class_names, without.kept(run.cache.rows), run.clock
    rows, probabilities = folds.score()
    clock.lap("search")
    trial, result = table[0]
    sides, selection, model, reason = folds.fit(trial, data)
    clock.lap("fit")
    curve = protocol.learning_curve(
        trial.classifier, selection.fitted, sides, trial.seed, class_names, seeds=options.seeds
    )
    fitted = dataclasses.replace(
        selection.fitted,
        train=(result.train_log_loss, result.train_accuracy),
        validation=(result.log_loss, result.accuracy),
    )
    listed = [
        protocol.described(each.classifier, each.params, mean.log_loss, mean.accuracy, mean.reason)
        for each, mean in table
    ]
    selection = Selection(fitted, listed)
    scores = score(probabilities, data.labels[rows], class_names, options.cv)
    clock.lap("evaluate")
    right = probabilities.argmax(axis=2) == data.labels[rows]
    return Outcome(
        selection, curve, scores, model, reason,
        {"fit": len(rows), "validation": None, **protocol.class_sizes(data, class_names)},
        kept[rows], data.labels[rows], data.features.take(rows),
        {"folds": options.cv, "repeats": options.repeats, "accuracy": right.mean(axis=1).tolist()},
        left_out_of(without, sum(run.cache.rows.values()) - len(kept)),
    )  # fmt: skip


def sweep(cache: store.Cache, asked: FeatureSpec, options: SweepOptions) -> tuple[Table, Path, RunFolder]:
    """Choose among all candidates on folds of all rows; return them, best first, their file, and the run of the best.

    In each fold the choice among all of them is made anew, so that the run's scores are not flattered by it.
    """
    training = options.training
    candidates = search.expand_candidates(options, cache)
    choices = sorted({trial.taps for trial in candidates})
    taps = tuple(tap for tap in cache.taps if any(tap in choice for choice in choices))
    without = left_out.read(training, asked.dataset_digest)
    plain, clock = copies.group(cache, choices), Clock(time.monotonic())
    grouping = without.joined(plain)
    asked_for = digest_of([sorted(map(repr, candidates)), training.cv, training.repeats, training.seed])
    data = without.samples(cache, taps, grouping, test=True)
    clock.lap("load")
    with Progress("cross-validation", 0, "fits") as progress:
        folds = CrossValidation(candidates, data, taps, cache.class_names, training, progress)
        count = len(splits.one_of_each(data.images))
        table = [(dataclasses.replace(trial, rows=count), result) for trial, result in folds.choose(data)]
        target = search.write_table(table, training.output_dir, asked, asked_for[:12])
        best = table[0][0]
        own = dataclasses.replace(asked, taps=best.taps)
        chosen = training.of_trial(best)
        place = place_of(own, chosen, copies.count(plain), {"candidates": asked_for, **without.keyed()})
        run = Run(cache, own, place, chosen, grouping, clock)
        return table, target, make(run, lambda: _compute(run, data, folds, table, training, without))

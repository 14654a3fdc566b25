"""Many candidates on validation, each recorded as soon as it is finished.

Work that is shared is done once: the cache is read and the rows are split once for all candidates (standardising is
column by column, so fewer taps are fewer columns of the same rows), and candidates that differ in one parameter alone
are fitted side by side.

scikit-learn's own searches do not fit: GridSearchCV and HalvingGridSearchCV clone the estimator for each candidate,
so nothing can be shared between them, they shrink the validation rows along with the training rows, and they
remember nothing when they are interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common import atomic
from pipeline.common.errors import Interrupted, file_errors
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.progress import Progress
from pipeline.common.text import percent, to_csv
from pipeline.features import store
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.taps import parse_taps
from pipeline.network.weights import say_untrained
from pipeline.selection import copies, trials
from pipeline.selection import grid as grids
from pipeline.selection.left_out import LeftOut
from pipeline.selection.options import SweepOptions
from pipeline.selection.trials import Table, Trial, TrialRecords, TrialResult

if TYPE_CHECKING:
    from pipeline.common.cluster import Workers
    from pipeline.models.history import Samples

log = logging.getLogger("pipeline")

HALVING_FROM = 12  # candidates: fewer are fitted on all rows in the time that halving would take
HALVING_FACTOR = 3  # as scikit-learn's: a third of the candidates goes on, to three times the rows
HALVING_RUNGS = 3
ROWS_OF_A_CLASS = 10  # that the smallest round must have on average: fewer say nothing about a classifier


def expand_candidates(options: SweepOptions, cache: store.Cache) -> list[Trial]:
    """All candidates that were asked for.

    Raises UserError when a grid is empty, very large, or does not fit its classifier.
    """
    training, held = options.training, cache.taps
    choices = [parse_taps(text) for text in options.taps]
    if not choices and options.grid == () and options.file is None:
        choices = [taps for taps in grids.BUILT_IN_TAPS if set(taps) <= set(held)]
    return grids.expand(options.grids(), training, choices or [held], sizes=len(cache.parts), sure=options.yes)


def compare(cache: store.Cache, asked: FeatureSpec, options: SweepOptions, without: LeftOut) -> tuple[Table, Path]:
    """Score all candidates on validation; what is recorded already is not fitted again.

    Of what is ``asked`` of the cache each candidate has taps of its own. Returns every candidate with its last result,
    best first, and the path of the same table as CSV.
    """
    training = options.training
    candidates = expand_candidates(options, cache)
    say_untrained(cache.provenance["weights"])
    grouping = copies.group(cache, sorted({candidate.taps for candidate in candidates}))
    records = TrialRecords(training.output_dir, asked, copies.count(grouping).protocol, without.keyed())
    log.info("%s candidates on %s rows", f"{len(candidates):,}", f"{cache.rows['train']:,}")
    table: Table = []
    with ExitStack() as stack, file_errors("write the results", training.output_dir, "What was recorded is kept."):
        runner = _Runner(cache, asked, candidates, without.joined(grouping), records, without, training.cluster, stack)
        try:
            remaining = candidates
            for rows, keep in runner.rungs(not options.no_halving):
                scored = runner.run(remaining, rows)
                remaining = [trial for trial, _ in scored[:keep]]
                table = [*scored, *table[len(scored) :]]
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"Interrupted. {runner.recorded():,} fits of this sweep are recorded in "
                f"{training.output_dir / trials.FOLDER}; run the same command again to go on there."
            ) from stop
        name = digest_of(sorted(records.path(trial).stem for trial, _ in table))[:12]
        return table, write_table(table, training.output_dir, asked, name)


def write_table(table: Table, output_dir: Path, asked: FeatureSpec, name: str) -> Path:
    """Write all candidates of a sweep, best first; return where."""
    rows = [
        {
            "rank": rank,
            "classifier": trial.classifier,
            "taps": " ".join(trial.taps),
            "columns": dataclasses.replace(asked, taps=trial.taps).columns,
            "parameters": classifiers.describe(trial.params),
            "seed": trial.seed,
            "rows": trial.rows,
            "validation_accuracy": f"{result.accuracy:.6f}",
            "validation_log_loss": f"{result.log_loss:.6f}",
            "train_accuracy": f"{result.train_accuracy:.6f}",
            "converged": "no" if result.reason else "yes",
        }
        for rank, (trial, result) in enumerate(table, 1)
    ]
    target = output_dir / "sweeps" / f"{safe_name(asked.dataset)}-{name}.csv"
    atomic.make_folder(target.parent)
    atomic.write_atomically(target, to_csv(rows[0], (row.values() for row in rows)))
    return target


class _Runner:
    """Fits candidates that have no record."""

    def __init__(
        self,
        cache: store.Cache,
        asked: FeatureSpec,
        candidates: Sequence[Trial],
        grouping: copies.Grouping,
        records: TrialRecords,
        without: LeftOut,
        cluster: str | None,
        stack: ExitStack,
    ) -> None:
        from pipeline.selection import splits  # late: it loads scikit-learn

        self._cache, self._asked, self._candidates, self._records = cache, asked, candidates, records
        self._grouping, self._without, self._cluster, self._stack = grouping, without, cluster, stack
        self._kept = without.kept({"train": cache.rows["train"]})
        self._taps = tuple(tap for tap in cache.taps if any(tap in trial.taps for trial in candidates))
        self._asked_for: set[Path] = set()
        total = len(splits.one_of_each(grouping.groups[self._kept]))
        self.rows = total - splits.validation_rows(total, len(cache.class_names))

    @functools.cached_property
    def _data(self) -> Samples:
        """All that is fitted on, read when there is something to fit."""
        return self._without.samples(self._cache, self._taps, self._grouping)

    def recorded(self) -> int:
        """How many of the fits asked for so far are recorded, whichever process did that."""
        return sum(path.exists() for path in self._asked_for)

    def rungs(self, halving: bool) -> list[tuple[int, int]]:
        """Distinct images of each round, none of which lacks a class, and how many candidates go on from it."""
        from pipeline.selection import splits

        classes, going = self._cache.class_names, len(self._candidates)
        sizes = [self.rows // HALVING_FACTOR**rung for rung in reversed(range(HALVING_RUNGS))]
        if not halving or going < HALVING_FROM or sizes[0] < ROWS_OF_A_CLASS * len(classes):
            return [(self.rows, going)]
        labels, seeds = self._cache.labels("train")[self._kept], {candidate.seed for candidate in self._candidates}
        parts = [splits.split(labels, self._grouping.groups[self._kept], seed, classes) for seed in seeds]
        least = max(splits.groups_with_every_class(labels, each) for each in parts)
        found = []
        for size in sizes:
            if size >= least:
                going = max(1, -(-going // HALVING_FACTOR))
                found.append((size, going))
        return found

    def run(self, candidates: Sequence[Trial], rows: int) -> Table:
        """Results of all candidates on so many rows, best first; those without a record are fitted."""
        from pipeline.selection import protocol

        path = self._records.path
        tried = {path(trial): trial for trial in (dataclasses.replace(each, rows=rows) for each in candidates)}
        found = {name: result for name, trial in tried.items() if (result := self._records.read(trial)) is not None}
        pending = [trial for name, trial in tried.items() if name not in found]
        self._asked_for |= set(tried)
        if found and pending:
            log.info("going on: %s of %s candidates are recorded already", f"{len(found):,}", f"{len(tried):,}")
        # Whole groups, what is recorded of them too: rounding depends on what is fitted beside a trial.
        groups = [
            together
            for seed in sorted({trial.seed for trial in pending})
            for together in protocol.arrange([trial for trial in tried.values() if trial.seed == seed])
            if not all(path(trial) in found for trial in together)
        ]
        title = "candidates" if rows == self.rows else f"candidates on {rows:,} rows"
        with Progress(title, len(tried), "candidates", done=len(found)) as progress:

            def note(what: str) -> None:
                best = min(found.values(), key=lambda result: result.criterion, default=None)
                so_far = f"best so far {percent(best.accuracy)} (loss {best.log_loss:.4f}), " if best else ""
                progress.note(f"{so_far}{what}")

            for together, done in self._fit(groups, rows, note):
                for trial, (params, result) in zip(together, done, strict=True):
                    if path(trial) not in found:
                        self._records.write(trial, params, result)
                        found[path(trial)] = result
                        progress.update(1)
        return [(tried[name], found[name]) for name in sorted(found, key=lambda name: (found[name].rank, name.stem))]

    @functools.cached_property
    def _workers(self) -> Workers:
        """The cluster, reached when there is something to fit, and left with the stack."""
        from pipeline.selection import on_workers  # late: it loads Dask

        reached = on_workers.workers(str(self._cluster), self._cache, self._asked, self._taps, self._data, self._kept)
        return self._stack.enter_context(reached)

    def _fit(
        self, groups: Sequence[list[Trial]], rows: int, note: Callable[[str], object]
    ) -> Iterator[tuple[list[Trial], list[tuple[Mapping[str, Any], TrialResult]]]]:
        """Fit groups of trials, here or elsewhere; each comes with what `protocol.fit_together` gives."""
        from pipeline.selection import protocol

        if self._cluster is not None and groups:
            from pipeline.selection import on_workers

            yield from on_workers.fit_groups(self._workers, groups, rows, note)
            return
        for seed, of_seed in itertools.groupby(groups, lambda together: together[0].seed):
            prepared = protocol.prepare(self._data, seed, self._cache.class_names).first(rows)
            for together in of_seed:
                yield together, protocol.fit_together(together, prepared, self._taps, note)

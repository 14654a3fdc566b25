"""Many candidates on validation, each recorded as soon as it is finished.

Work that is shared is done once: the cache is read, the rows are split and standardised once, for all candidates
(standardising is column by column, so fewer taps are fewer columns of one array), and along a path of C each fit
starts where the one before ended. Every candidate is recorded as soon as it is finished.

scikit-learn's own searches do not fit: GridSearchCV and HalvingGridSearchCV clone the estimator for each candidate,
so nothing can start where another ended, they shrink the validation rows along with the training rows, and they
remember nothing when they are interrupted.
"""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.common import atomic
from pipeline.common.errors import Interrupted, UserError, file_errors
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.progress import Progress
from pipeline.common.text import to_csv
from pipeline.features import arrays, extract, store
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.taps import columns_of, parse_taps
from pipeline.selection import grid as grids
from pipeline.selection import trials, warm_start
from pipeline.selection.grid import Candidate
from pipeline.selection.options import SweepOptions
from pipeline.selection.trials import PROTOCOL, Record, RunSpec
from pipeline.selection.warm_start import Place, says

if TYPE_CHECKING:
    from pipeline.selection.protocol import Prepared

log = logging.getLogger("pipeline")

HALVING_FROM = 12  # candidates: fewer are fitted on all rows in the time that halving would take
HALVING_FACTOR = 3  # as scikit-learn's: a third of the candidates goes on, to three times the rows
HALVING_RUNGS = 3
ROWS_OF_A_CLASS = 10  # that the smallest round must have on average: fewer say nothing about a classifier
# Bytes of the training rows up to which candidates run side by side, a core for each. Beyond it memory sets the
# pace, and one fit alone keeps all cores busy with it.
SIDE_BY_SIDE = 256_000_000
# Bytes of the training rows times the number of fits from which on side by side is worth the seconds that starting
# other processes takes.
WORTH_WORKERS = 1_000_000_000


def expand_candidates(options: SweepOptions, held: Sequence[str]) -> list[Candidate]:
    """All candidates that were asked for.

    Parameters
    ----------
    options : SweepOptions
    held : sequence of str
        Taps that the cache holds.

    Raises
    ------
    UserError
        When a grid is empty, very large, or does not fit its classifier, or the cache lacks a tap.
    """
    training = options.training
    choices = [parse_taps(text) for text in options.taps]
    if not choices:
        choices = [taps for taps in grids.BUILT_IN_TAPS if set(taps) <= set(held)] or [tuple(held)]
    if (options.grid or options.file) and not options.taps:
        choices = [tuple(held)]
    defaults = grids.Defaults(training.classifier, training.options, training.seed, choices)
    asked: list[grids.Grid] = []
    if options.file is not None:
        asked += grids.read_file(options.file, training.classifier)
    if options.grid or options.file is None:
        asked.append(grids.parse_grids(options.grid))
    candidates = grids.expand(asked, defaults, sure=options.yes)
    missing = sorted({tap for candidate in candidates for tap in candidate.taps} - set(held))
    if missing:
        raise UserError(
            f"The feature cache has no tap {', '.join(missing)}; it holds {', '.join(held)}. Choose among these, or "
            f"run 'python -m pipeline features' with the taps wanted."
        )
    return candidates


def compare(cache: store.Cache, asked: FeatureSpec, options: SweepOptions) -> tuple[list[tuple[Place, Record]], Path]:
    """Score all candidates on validation; what is recorded already is not fitted again.

    Parameters
    ----------
    cache : Cache
        Open.
    asked : FeatureSpec
        What is asked of it; each candidate has taps of its own.
    options : SweepOptions

    Returns
    -------
    table : list of (Place, Record)
        Every candidate with its last record, best first.
    path : Path
        The same table, as CSV.
    """
    training = options.training
    candidates = expand_candidates(options, cache.spec.taps)
    extract.say_untrained(cache.provenance["weights"])
    runner = _Runner(cache, asked, training.output_dir)
    log.info("%s candidates on %s rows", f"{len(candidates):,}", f"{cache.rows['train']:,}")
    table: list[tuple[Place, Record]] = []
    with file_errors("write the results", training.output_dir, "What was recorded is kept."):
        try:
            remaining = candidates
            for rows, keep in runner.rungs(candidates, not options.no_halving):
                scored = sorted(runner.run(remaining, rows), key=_order)
                remaining = [place.candidate for place, _ in scored[:keep]]
                table = [*scored, *table[len(scored) :]]
        except KeyboardInterrupt as stop:
            raise Interrupted(
                f"Interrupted. {runner.recorded():,} fits of this sweep are recorded in "
                f"{training.output_dir / trials.FOLDER}; run the same command again to go on there."
            ) from stop
        name = digest_of(sorted(place.path.stem for place, _ in table))[:12]
        target = training.output_dir / "sweeps" / f"{safe_name(asked.dataset)}-{name}.csv"
        atomic.make_folder(target.parent)
        atomic.write_atomically(target, _csv(table))
    return table, target


def _order(item: tuple[Place, Record]) -> tuple[float, bool, float, str]:
    place, record = item
    return (record.log_loss, record.reason is not None, -record.accuracy, place.path.stem)


# --- fitting them -----------------------------------------------------------------------------


class _Runner:
    """Fits candidates that have no record, from one standardised array for each seed."""

    def __init__(self, cache: store.Cache, asked: FeatureSpec, output_dir: Path) -> None:
        from pipeline.selection import protocol  # late: it loads scikit-learn

        self._cache, self._asked, self._output_dir = cache, asked, output_dir
        self._seed: int | None = None
        self._prepared: Prepared | None = None
        self._taps: tuple[str, ...] = ()
        self._asked_for: set[Path] = set()
        total = cache.rows["train"]
        self.rows = total - protocol.validation_rows(total, len(cache.class_names))

    def place(self, candidate: Candidate, rows: int) -> Place:
        """Where the record of a candidate is."""
        features = dataclasses.replace(self._asked, taps=candidate.taps).key()
        run = RunSpec(features, self._asked.dataset, candidate.classifier, candidate.params, candidate.seed, PROTOCOL)
        return Place(candidate, rows, trials.place(self._output_dir, run, rows))

    def recorded(self) -> int:
        """How many of the fits asked for so far are recorded, whichever process did that."""
        return sum(path.exists() for path in self._asked_for)

    def rungs(self, candidates: Sequence[Candidate], halving: bool) -> list[tuple[int, int]]:
        """Rows of each round, none of which lacks a class, and how many candidates go on from it."""
        from pipeline.selection import protocol

        classes, going = self._cache.class_names, len(candidates)
        sizes = [self.rows // HALVING_FACTOR**rung for rung in reversed(range(HALVING_RUNGS))]
        if not halving or going < HALVING_FROM or sizes[0] < ROWS_OF_A_CLASS * len(classes):
            return [(self.rows, going)]
        labels, seeds = self._cache.labels("train"), {candidate.seed for candidate in candidates}
        least = max(protocol.rows_with_every_class(labels, seed, classes) for seed in seeds)
        found = []
        for size in sizes:
            if size >= least:
                going = max(1, -(-going // HALVING_FACTOR))
                found.append((size, going))
        return found

    def release(self) -> None:
        """Give the arrays back."""
        self._prepared = self._seed = None

    def run(self, candidates: Sequence[Candidate], rows: int) -> list[tuple[Place, Record]]:
        """Records of all candidates on so many rows; those without one are fitted."""
        places = [self.place(candidate, rows) for candidate in candidates]
        found = {place.path: record for place in places if (record := trials.read(place.path)) is not None}
        pending = [place for place in places if place.path not in found]
        self._asked_for |= {place.path for place in places}
        if found and pending:
            log.info("going on: %s of %s candidates are recorded already", f"{len(found):,}", f"{len(places):,}")
        title = "candidates" if rows == self.rows else f"candidates on {rows:,} rows"
        with Progress(title, len(places), "candidates", done=len(found)) as progress:
            best = _Best(progress, found.values())
            taps = tuple(tap for tap in self._cache.spec.taps if any(tap in place.candidate.taps for place in pending))
            for seed in sorted({place.candidate.seed for place in pending}):
                prepared = self._prepare(seed, taps)
                arranged = warm_start.arrange([place for place in places if place.candidate.seed == seed], set(found))
                for place, record in self._fit(arranged, prepared, rows, best):
                    found[place.path] = record
        return [(place, found[place.path]) for place in places]

    def _prepare(self, seed: int, taps: tuple[str, ...]) -> Prepared:
        from pipeline.models import history
        from pipeline.selection import protocol

        if self._prepared is None or seed != self._seed or not set(taps) <= set(self._taps):
            self.release()
            features, labels = arrays.load_split(self._cache, "train", taps)
            data = history.Data(features, labels)
            self._prepared = protocol.prepare(data, seed, self._cache.class_names)
            self._seed, self._taps = seed, taps
        return self._prepared

    def _fit(
        self, arranged: list[list[Place]], prepared: Prepared, rows: int, best: _Best
    ) -> Iterator[tuple[Place, Record]]:
        """Fit paths, one after the other or side by side, whichever suits their size."""
        fits = sum(len(path) for path in arranged)
        workers = _workers(len(arranged), fits, prepared.train.features[:rows].nbytes)
        if workers == 1:
            for path in arranged:
                yield from warm_start.fit_path(path, prepared, rows, self._taps, best.tell)
            return
        import joblib

        # joblib writes the arrays out once, and every worker maps that file into its memory: no copies.
        with (
            _polling([place for path in arranged for place in path], best),
            joblib.parallel_config("loky", inner_max_num_threads=1),
        ):
            work = (
                joblib.delayed(warm_start.fit_path_in_worker)(path, prepared, rows, self._taps) for path in arranged
            )
            for done in joblib.Parallel(n_jobs=workers, return_as="generator_unordered", max_nbytes="1M")(work):
                yield from done


def _workers(tasks: int, fits: int, nbytes: int) -> int:
    import joblib

    helps = nbytes <= SIDE_BY_SIDE and nbytes * fits >= WORTH_WORKERS
    return min(tasks, int(joblib.cpu_count())) if helps else 1


class _Best:
    """Says what is being fitted, how many are done, and the best so far."""

    def __init__(self, progress: Progress, found: Any) -> None:
        self._progress = progress
        self._best: Record | None = min(found, key=lambda record: record.log_loss, default=None)

    def tell(self, what: str, record: Record | None) -> None:
        """Show a step of a fit, or count a finished one."""
        if record is not None and (self._best is None or record.log_loss < self._best.log_loss):
            self._best = record
        so_far = (
            "" if self._best is None else f"best so far {self._best.accuracy:.2%} (loss {self._best.log_loss:.4f}), "
        )
        self._progress.note(f"{so_far}{what}")
        if record is not None:
            self._progress.update(1)


@contextmanager
def _polling(places: Sequence[Place], best: _Best) -> Iterator[None]:
    """Show what other processes have recorded, by looking for their records twice a second."""
    waiting = {place.path: place for place in places if not place.path.exists()}
    done = threading.Event()

    def look() -> None:
        for path, place in list(waiting.items()):
            if path.exists():
                best.tell(says(place.candidate), trials.read(path))
                del waiting[path]

    def loop() -> None:
        while not done.wait(0.5):
            look()

    thread = threading.Thread(target=loop, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        look()


def _row(place: Place, record: Record) -> Mapping[str, Any]:
    candidate = place.candidate
    return {
        "classifier": candidate.classifier,
        "taps": " ".join(candidate.taps),
        "columns": columns_of(candidate.taps),
        "parameters": classifiers.describe(candidate.params),
        "seed": candidate.seed,
        "rows": place.rows,
        "validation_accuracy": f"{record.accuracy:.6f}",
        "validation_log_loss": f"{record.log_loss:.6f}",
        "train_accuracy": f"{record.train_accuracy:.6f}",
        "converged": "no" if record.reason else "yes",
    }


def _csv(table: Sequence[tuple[Place, Record]]) -> bytes:
    rows = [{"rank": rank, **_row(place, record)} for rank, (place, record) in enumerate(table, 1)]
    return to_csv(rows[0], (row.values() for row in rows))

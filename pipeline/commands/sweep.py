"""Many candidates on validation, the best of them as a run.

python -m pipeline sweep --grid C=1e-4..1,log,9 --taps top --taps all
"""

from __future__ import annotations

import dataclasses
import logging
import time
from pathlib import Path
from typing import NamedTuple

from pipeline.commands import train
from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import format_seconds
from pipeline.common.text import percent, text_table, wrap
from pipeline.features import compute, store
from pipeline.features.find import find
from pipeline.features.options import FeatureOptions
from pipeline.features.spec import FeatureSpec
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps, parse_taps
from pipeline.output.run_folder import RunFolder
from pipeline.selection import left_out, search
from pipeline.selection.options import SweepOptions
from pipeline.selection.trials import Table

log = logging.getLogger("pipeline")

SHOWN = 20  # rows of the table on the terminal


class Result(NamedTuple):
    """Every candidate with its last result, best first; the same table as CSV; and the run of the best one."""

    table: Table
    path: Path
    winner: RunFolder


def sweep(features: FeatureOptions, options: SweepOptions) -> Result:
    """Score all candidates on validation, and make the best of them a run.

    The taps of ``features`` do not count: ``options`` has those to choose from.

    Raises UserError when there is no cache, it does not verify, or what is asked for cannot be; Interrupted on SIGINT
    or SIGTERM; finished candidates are recorded then.
    """
    paths, asked = _find(features, options)
    with store.open_all(paths, asked) as cache:
        if not options.grid and options.file is None:  # those are of a classifier
            options = dataclasses.replace(options, training=options.training.for_rows(cache.rows["train"]))
        if features.strict:
            compute.refuse_skipped(cache.skipped, features.dataset)
        with file_errors("write the results", options.training.output_dir):
            RunFolder("sweep", options.training.output_dir, options.training.models_dir).prepare()
        if options.training.cv is not None:
            from pipeline.commands import crossval  # late: it loads scikit-learn

            return Result(*crossval.sweep(cache, asked, options))
        without = left_out.read(options.training, asked.dataset_digest)
        table, target = search.compare(cache, asked, options, without)
        best = table[0][0]
        log.info("best on validation: %s", best.describe())
        winner = train.train_on(
            cache,
            dataclasses.replace(asked, taps=best.taps),
            options.training.of_trial(best),
            time.monotonic(),
            without,
        )
    return Result(table, target, winner)


def _find(features: FeatureOptions, options: SweepOptions) -> tuple[list[Path], FeatureSpec]:
    """A cache that serves: of all taps wanted, else of the fewest that any choice could need."""
    wanted = {tap for text in options.taps for tap in parse_taps(text)}
    wanted |= {tap for grid in options.grids() for taps in grid.get("taps", ()) for tap in taps}
    for taps in [",".join(sorted(wanted))] if wanted else ["all", "top"]:
        try:
            return find(dataclasses.replace(features, taps=taps))
        except UserError as error:
            first = error
    raise first


def summary(result: Result) -> str:
    """A sweep's table and where its winner is, for the terminal."""
    header = ("rank", "classifier", "taps", "parameters", "rows", "val acc", "val loss", "")
    params = [trial.params for trial, _ in result.table]
    varied = {name for each in params for name in each if any(each[name] != other.get(name) for other in params)}
    lines = [
        (
            str(rank), trial.classifier, describe_taps(trial.taps),
            classifiers.describe({name: value for name, value in trial.params.items() if name in varied}),
            f"{trial.rows:,}", percent(found.accuracy), f"{found.log_loss:.4f}",
            "not converged" if found.reason else "",
        )
        for rank, (trial, found) in enumerate(result.table[:SHOWN], 1)
    ]  # fmt: skip
    spent = sum(found.seconds for _, found in result.table)
    more = len(result.table) - len(lines)
    return (
        text_table(header, lines)
        + (f"and {more} more\n" if more else "")
        + f"\nall of them: {result.path} ({format_seconds(spent)} of fitting)\n"
        + wrap("Accuracies and losses are of validation; those on fewer rows went no further.\n")
    )

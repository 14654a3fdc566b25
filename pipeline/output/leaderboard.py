"""Every run in an output folder, best on validation first: read from what the runs left, as a table and as CSV.

A run is a folder with a metrics.json that holds what one must hold; the folder is renamed into place when it is
complete, so a half-written run is never seen. The list is made anew from the folders each time: a folder that is
gone is gone from it, and one that cannot be read is named, skipped and left alone.
"""

from __future__ import annotations

import csv
import itertools
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.keys import safe_name
from pipeline.common.text import did_you_mean, number, percent, shorten, text_table, to_csv
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps
from pipeline.output.results import RunResults, read_run

log = logging.getLogger("pipeline")

CSV_NAME, PAGE_NAME = "leaderboard.csv", "index.html"


@contextmanager
def skipping(path: Path) -> Iterator[None]:
    """Name a run that the block cannot read, whatever its file holds, and go on without it."""
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        fault = f"it has no {error}" if isinstance(error, KeyError) else error
        log.warning("warning: %s cannot be read (%s): that run is left out. The file was not changed", path, fault)


def read(output_dir: Path) -> list[RunResults]:
    """All complete runs of a folder, data set by data set, in each the lowest validation loss first.

    A metrics.json that cannot be read is warned about by name, and skipped.
    """
    found = []
    for path in sorted(output_dir.glob("[!.]*/metrics.json")):
        with skipping(path):
            run = read_run(path.parent)
            _row(0, run), _cells(0, run), _model_of(run)  # all that a list shows is there
            found.append(run)
    return sorted(found, key=_order)


def of_dataset(runs: Sequence[RunResults], name: str | None) -> list[RunResults]:
    """The runs of one data set; all without a name.

    Raises UserError when there is none of that name.
    """
    found = [run for run in runs if name in (None, run.metrics["dataset"]["name"])]
    if name is not None and not found:
        names = sorted({run.metrics["dataset"]["name"] for run in runs})
        raise UserError(
            f"There is no run on a data set {name}.{did_you_mean(name, names)} "
            + (f"There are runs on {', '.join(names)}." if names else "There is no run at all yet.")
        )
    return found


def _rows_of(run: RunResults) -> tuple[Any, ...]:
    """Which rows a run is of: only runs on the same can be ranked."""
    data = run.metrics["dataset"]
    return data["name"], data["digest"], int(run.metrics["features"].get("limit") or 0)


def _order(run: RunResults) -> tuple[Any, ...]:
    """By validation: whoever chose among runs by their test scores would have no test left."""
    accuracy, loss = run.metrics["accuracy"]["validation"], run.metrics["log_loss"]["validation"]
    return (*_rows_of(run), loss, -accuracy, run.name)


def _model_of(run: RunResults) -> str:
    """What tells a run's model from others: its settings and, to three digits, its scores.

    The same choice is found by a search and by asking for it, under two names.
    """
    m = run.metrics
    features = {name: value for name, value in m["features"].items() if name not in ("file", "key")}
    scores = [f"{m['accuracy'][split] or 0:.3f} {m['log_loss'][split] or 0:.3f}" for split in ("validation", "test")]
    folds = m.get("cross_validation") or {}
    folded = folds.get("folds"), folds.get("repeats")
    return json.dumps([_rows_of(run), features, m["classifier"], m["seed"], folded, scores], sort_keys=True)


def models(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    """Runs by their models, in the order given: more than one where a model has several names."""
    found: dict[str, list[RunResults]] = {}
    for run in runs:
        found.setdefault(_model_of(run), []).append(run)
    return list(found.values())


def datasets(runs: Sequence[RunResults]) -> list[list[RunResults]]:
    """Runs by the rows that they are of, as `read` has them together."""
    return [list(group) for _, group in itertools.groupby(runs, _rows_of)]


def ranks(runs: Sequence[RunResults]) -> list[int]:
    """The rank of each run among those on the same rows, in the order given; runs of one model share theirs."""
    places: dict[tuple[Any, ...], dict[str, int]] = {}
    found = []
    for run in runs:
        place = places.setdefault(_rows_of(run), {})
        found.append(place.setdefault(_model_of(run), len(place) + 1))
    return found


def chosen(run: RunResults) -> str:
    """What was chosen on validation, and the seed, which stay on one line each: ``C=0.0026, seed 0``."""
    name, params = run.metrics["classifier"]["name"], run.metrics["classifier"]["params"]
    tuned = classifiers.REGISTRY[name].tuned_option if name in classifiers.REGISTRY else ""
    picked = {tuned: params[tuned]} if tuned in params else params
    return f"{classifiers.describe(picked)}, seed\u00a0{run.metrics['seed']}"


HEADER = (
    "rank", "run", "dataset", "classifier", "parameters", "taps", "image_size", "columns", "validation_accuracy",
    "validation_log_loss", "test_accuracy", "test_low", "test_high", "test_log_loss", "calibration_error", "seconds",
    "converged", "created",
)  # fmt: skip


def _sizes(metrics: Mapping[str, Any]) -> str:
    sizes = metrics["features"]["image_size"]
    return " ".join(map(str, sizes)) if isinstance(sizes, list) else str(sizes)


def _row(rank: int, run: RunResults) -> tuple[Any, ...]:
    metrics = run.metrics
    low, high = metrics.get("interval", {}).get("test") or (None, None)
    return (
        rank,
        run.name,
        metrics["dataset"]["name"],
        metrics["classifier"]["name"],
        "; ".join(f"{name}={value}" for name, value in metrics["classifier"]["params"].items()),
        " ".join(metrics["features"]["taps"]),
        _sizes(metrics),
        metrics["features"]["columns"],
        f"{metrics['accuracy']['validation']:.6f}",
        f"{metrics['log_loss']['validation']:.6f}",
        number(metrics["accuracy"]["test"], ".6f", ""),
        number(low, ".6f", ""),
        number(high, ".6f", ""),
        number(metrics["log_loss"]["test"], ".6f", ""),
        number((metrics.get("calibration") or {}).get("ece"), ".6f", ""),
        metrics["seconds"]["total"],
        "yes" if run.converged else "no",
        metrics["created"],
    )


def to_text(runs: Sequence[RunResults]) -> str:
    """The list for a terminal, of each model one row."""
    if not runs:
        return "There is no run yet. 'python -m pipeline train' makes one.\n"
    header = ("rank", "run", "taps", "px", "val", "val loss", "test", "")
    runs = [first for first, *_ in models(runs)]
    return text_table(header, list(map(_cells, ranks(runs), runs)))


def _cells(rank: int, run: RunResults) -> tuple[str, ...]:
    m = run.metrics
    return (
        # Of taps so much that a run's name, which other commands take, is whole in 80 columns.
        str(rank), run.name, shorten(describe_taps(m["features"]["taps"]), 14), _sizes(m),
        percent(m["accuracy"]["validation"]), f"{m['log_loss']['validation']:.4f}", percent(m["accuracy"]["test"]),
        "" if run.converged else "not converged",
    )  # fmt: skip


def csv_of(runs: Sequence[RunResults]) -> bytes:
    """The list as CSV: accuracies between 0 and 1, losses in nats, times in seconds."""
    return to_csv(HEADER, map(_row, ranks(runs), runs))


def is_current(output_dir: Path) -> bool:
    """Whether list and page are there and newer than every run, and list exactly the runs that are there."""
    listed = output_dir / CSV_NAME
    try:
        made = min(listed.stat().st_mtime_ns, (output_dir / PAGE_NAME).stat().st_mtime_ns)
        rows = csv.reader(listed.read_text(encoding="utf-8").splitlines()[1:])
        names = {safe_name(row[1]) for row in rows}
        paths = list(output_dir.glob("[!.]*/metrics.json"))
        return all(path.stat().st_mtime_ns <= made for path in paths) and names == {path.parent.name for path in paths}
    except (OSError, ValueError, IndexError, csv.Error):
        return False

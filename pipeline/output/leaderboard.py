"""Every run in an output folder, best first: read from what the runs left, as a table and as CSV.

A run is a folder with a metrics.json that holds what one must hold; the folder is renamed into place when it is
complete, so a half-written run is never seen. The list is made anew from the folders each time: a folder that is
gone is gone from it, and one that cannot be read is named, skipped and left alone.
"""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.common import atomic
from pipeline.common.keys import safe_name
from pipeline.common.text import text_table, to_csv
from pipeline.network.taps import describe_taps
from pipeline.output import run_folder

log = logging.getLogger("pipeline")

CSV_NAME, PAGE_NAME = "leaderboard.csv", "index.html"

_NUMBER = (int, float)
_SPLITS = ("train", "validation", "test")


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBER) and not isinstance(value, bool) and -1e18 < value < 1e18  # which no nan is


def _are_scores(part: Mapping[str, Any]) -> bool:
    """Whether these are scores of the three splits; where no test row is left, that of test is None."""
    return all(_is_number(part[split]) or (split, part[split]) == ("test", None) for split in _SPLITS)


# What must be there, and of which type, for a run to be shown: the path in metrics.json, joined by dots.
_REQUIRED: dict[str, Any] = {
    "run": str,
    "created": str,
    "seed": int,
    "dataset.name": str,
    "dataset.digest": str,
    "features.image_size": int,
    "features.precision": str,
    "features.taps": list,
    "features.columns": int,
    "classifier.name": str,
    "classifier.params": dict,
    "accuracy": dict,
    "log_loss": dict,
    "seconds.total": _NUMBER,
    "per_class": dict,
}

# What a part must hold where it is there; runs from before it was recorded lack some.
_HOLDS: dict[str, Callable[[Any], bool]] = {
    "accuracy": _are_scores,
    "log_loss": _are_scores,
    "features": lambda part: (
        all(isinstance(tap, str) for tap in part["taps"]) and (part.get("limit") is None or type(part["limit"]) is int)
    ),
    "per_class": lambda part: all(
        isinstance(scores, dict) and type(scores.get("support")) is int
        and all(_is_number(scores[name]) or not scores["support"] for name in ("precision", "recall", "f1"))
        for scores in part.values()
    ),
    "seconds": lambda part: all(map(_is_number, part.values())),
    "interval": lambda part: (
        isinstance(part, dict) and isinstance(part["test"] or [0, 1], list) and len(part["test"] or [0, 1]) == 2
        and all(map(_is_number, part["test"] or []))
    ),
    "calibration": lambda part: part is None or (
        isinstance(part, dict) and _is_number(part.get("ece"))
        and all(
            isinstance(part.get(name), list) and all(map(_is_number, part[name]))
            for name in ("counts", "confidence", "accuracy")
        )
        and len(part["counts"]) == len(part["confidence"]) == len(part["accuracy"])
    ),
    "versions": lambda part: isinstance(part, dict),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A run that is complete.

    Attributes
    ----------
    folder : Path
    metrics : mapping
        Its metrics.json.
    """

    folder: Path
    metrics: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The run's name."""
        return str(self.metrics["run"])

    @property
    def converged(self) -> bool:
        """Whether the classifier converged; runs from before this was recorded count as if."""
        return bool(self.metrics.get("converged", True))


def _fault(metrics: Any, folder: Path) -> str | None:
    """What is wrong with the content of a metrics.json; None when nothing is."""
    for path, kind in _REQUIRED.items():
        value = metrics
        for part in path.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        if not isinstance(value, kind) or (kind in (int, _NUMBER) and not _is_number(value)):
            return f"{path} is missing or of another type"
    for name, fits in _HOLDS.items():
        if name in metrics and not fits(metrics[name]):
            return f"{name} holds something else than it should"
    if safe_name(metrics["run"]) != folder.name:
        return f"it is of the run {metrics['run']!r}, not of its folder's"
    return None


def read(output_dir: Path, dataset: str | None = None) -> list[Run]:
    """All complete runs of a folder, highest test accuracy first.

    Parameters
    ----------
    output_dir : Path
    dataset : str, optional
        Only the runs of this data set.

    Notes
    -----
    A metrics.json that cannot be read is warned about by name, and skipped.
    """
    found = []
    for path in sorted(output_dir.glob("[!.]*/metrics.json")):
        try:
            metrics = json.loads(path.read_bytes())
            fault = _fault(metrics, path.parent)
        except (OSError, ValueError, LookupError, RecursionError) as error:
            fault = str(error)
        if fault:
            log.warning("warning: %s cannot be read (%s): that run is left out. The file was not changed", path, fault)
        elif dataset is None or metrics["dataset"]["name"] == dataset:
            found.append(Run(path.parent, metrics))
    return sorted(found, key=_order)


def _order(run: Run) -> tuple[float, float, str]:
    accuracy, loss = run.metrics["accuracy"]["test"], run.metrics["log_loss"]["test"]
    return (1, 0, run.name) if accuracy is None else (-accuracy, loss, run.name)


HEADER = (
    "rank", "run", "dataset", "classifier", "parameters", "taps", "image_size", "columns", "validation_accuracy",
    "test_accuracy", "test_low", "test_high", "test_log_loss", "calibration_error", "seconds", "converged", "created",
)  # fmt: skip


def _row(rank: int, run: Run) -> tuple[Any, ...]:
    metrics = run.metrics
    low, high = metrics.get("interval", {}).get("test") or (None, None)
    return (
        rank,
        run.name,
        metrics["dataset"]["name"],
        metrics["classifier"]["name"],
        "; ".join(f"{name}={value}" for name, value in metrics["classifier"]["params"].items()),
        " ".join(metrics["features"]["taps"]),
        metrics["features"]["image_size"],
        metrics["features"]["columns"],
        f"{metrics['accuracy']['validation']:.6f}",
        run_folder.number(metrics["accuracy"]["test"], ".6f", ""),
        run_folder.number(low, ".6f", ""),
        run_folder.number(high, ".6f", ""),
        run_folder.number(metrics["log_loss"]["test"], ".6f", ""),
        run_folder.number((metrics.get("calibration") or {}).get("ece"), ".6f", ""),
        metrics["seconds"]["total"],
        "yes" if run.converged else "no",
        metrics["created"],
    )


def to_text(runs: Sequence[Run]) -> str:
    """The list for a terminal."""
    if not runs:
        return "There is no run yet. 'python -m pipeline train' makes one.\n"
    header = ("rank", "run", "classifier", "taps", "px", "columns", "val", "test", "log loss", "seconds", "date", "")
    rows = [
        (
            str(rank), run.name, str(m["classifier"]["name"]), describe_taps(m["features"]["taps"]),
            str(m["features"]["image_size"]), f"{m['features']['columns']:,}", f"{m['accuracy']['validation']:.2%}",
            run_folder.number(m["accuracy"]["test"], ".2%"), run_folder.number(m["log_loss"]["test"], ".4f"),
            f"{m['seconds']['total']:.0f}",
            str(m["created"])[:10], "" if run.converged else "not converged",
        )
        for rank, run in enumerate(runs, 1)
        for m in [run.metrics]
    ]  # fmt: skip
    return text_table(header, rows)


def write_csv(output_dir: Path, runs: Sequence[Run]) -> Path:
    """Write the list beside the runs, accuracies between 0 and 1, losses in nats, times in seconds; return where."""
    path = output_dir / CSV_NAME
    atomic.write_atomically(path, to_csv(HEADER, [_row(rank, run) for rank, run in enumerate(runs, 1)]))
    return path


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

"""All runs on one HTML page that needs nothing else: leaderboard, curves, confusions, galleries, comparison.

python -m pipeline report

Everything is in the file, the images too; it opens from disk, without a network. Numbers and predictions come from
the run folders alone. The images come from the data set, where that is on this machine and is the one the run saw.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import logging
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import safe_name
from pipeline.common.progress import Progress
from pipeline.common.text import printable
from pipeline.data import datasets
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps
from pipeline.output import charts, leaderboard, metrics, run_folder
from pipeline.output.charts import Point, Series
from pipeline.output.leaderboard import Run

log = logging.getLogger("pipeline")

TEMPLATES = Path(__file__).parent / "templates"
GALLERY_MISTAKES = 12  # most confident mistakes shown of a run
GALLERY_PAIRS, GALLERY_OF_A_PAIR = 4, 6  # most confused pairs of classes, and images of each
THUMBNAIL = 64  # pixels a side at most; smaller images stay as they are
WEBP_QUALITY = 88  # of 100: no visible artefacts at this size
HISTORY_COLUMNS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy")
# For an image that cannot be had any more: a grey square with a stroke through it.
PLACEHOLDER = "data:image/svg+xml;base64," + base64.b64encode(
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><path fill="#8884" d="M0 0h64v64H0z"/>'
    b'<path stroke="#888" stroke-width="2" d="M20 44 44 20"/></svg>'
).decode("ascii")
CONFUSION_CLASSES = 25  # up to which the matrix is shown as a table; beyond it, the most confused pairs tell more


@dataclass(frozen=True)
class Predictions:
    """A run's predictions.csv: a list entry for each row of the test split; files only where rows have names."""

    indices: list[int]
    labels: list[str]
    predicted: list[str]
    confidences: list[float]
    files: list[str]

    @property
    def rows(self) -> str:
        """A digest of which rows these are: runs with the same can be compared row by row."""
        return hashlib.sha256("\n".join(map("{},{}".format, self.indices, self.labels)).encode()).hexdigest()[:16]

    @property
    def bits(self) -> str:
        """Which rows are right, a bit for each, the first row the highest bit of the first byte, in base64."""
        right = np.array([a == b for a, b in zip(self.labels, self.predicted, strict=True)], bool)
        return base64.b64encode(np.packbits(right).tobytes()).decode("ascii")


def _read_predictions(path: Path) -> Predictions | None:
    try:
        header, rows = _read_csv(path)
        return Predictions(
            [int(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows],
            [float(row[3]) for row in rows], [row[4] for row in rows] if header[4:] == ["file"] else [],
        )  # fmt: skip
    except (OSError, ValueError, IndexError, csv.Error) as error:
        log.warning("warning: %s cannot be read (%s): the page does without it", path, error)
        return None


def _read_columns(path: Path, needed: Sequence[str]) -> tuple[str, dict[str, list[float]]] | None:
    """A CSV file of numbers: the name of its first column, and all columns by name, those needed among them."""
    try:
        header, rows = _read_csv(path)
        columns = {name: [float(row[index]) for row in rows] for index, name in enumerate(header)}
        if missing := [name for name in needed if not columns.get(name)]:
            raise ValueError(f"it has no {', '.join(missing)}")
        if not all(math.isfinite(value) for values in columns.values() for value in values):
            raise ValueError("it holds values that are not finite")
    except (OSError, ValueError, IndexError, csv.Error) as error:
        log.warning("warning: %s cannot be read (%s): the page does without it", path, error)
        return None
    return header[0], columns


def _read_csv(path: Path) -> tuple[list[str], list[list[str]]]:
    with open(path, encoding="utf-8", newline="") as stream:
        header, *rows = csv.reader(stream)
    return header, rows


# --- images -----------------------------------------------------------------------------------


@contextmanager
def _unsaid() -> Iterator[None]:
    """Keep warnings off the terminal in the block."""
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


@dataclass
class _TestImages:
    """Images of one test split, as small WebP pictures.

    Attributes
    ----------
    images : ndarray or LazyImages
    rows : dict or None
        Row of each file, where the images are files.
    """

    images: Any
    rows: dict[str, int] | None
    _ready: dict[int, str] = field(default_factory=dict)

    def uri(self, predictions: Predictions, position: int) -> str:
        """The image of a prediction as a data URI; a placeholder when there is no such image any more."""
        if self.rows is None:
            row = predictions.indices[position]
        else:  # a cache leaves rows out whose images cannot be used, so its numbers are not the data set's
            row = self.rows.get(predictions.files[position], -1) if predictions.files else -1
        if not 0 <= row < len(self.images):
            return PLACEHOLDER
        if row not in self._ready:
            self._ready[row] = self._thumbnail(row)
        return self._ready[row]

    def _thumbnail(self, row: int) -> str:
        try:
            pixels = self.images[row : row + 1][0]
        except UserError as error:  # a file that went away, changed or broke since the folder was listed
            log.warning("warning: %s The page has a placeholder for it", error)
            return PLACEHOLDER
        picture = Image.fromarray(np.ascontiguousarray(pixels))
        picture.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", quality=WEBP_QUALITY, method=4)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass
class _Images:
    """Test images of the data sets that are on this machine."""

    data_dir: Path
    _known: dict[tuple[str, str], _TestImages | str] = field(default_factory=dict)

    def of(self, run: Run) -> _TestImages | str:
        """Images of a run's test split, or a sentence that says why there are none."""
        about = run.metrics["dataset"]
        name, digest, where = about["name"], about["digest"], about.get("folder", about["name"])
        if (where, digest) not in self._known:
            self._known[where, digest] = self._load(name, digest, where)
        return self._known[where, digest]

    def _load(self, name: str, digest: str, where: str) -> _TestImages | str:
        try:
            with _unsaid():  # whoever made the run was told about the data then
                dataset = datasets.load(where, self.data_dir, download=False)
        except UserError as error:
            log.info("no images of %s on the page: %s", name, error)
            return f"No images are shown, because {name} was not on the machine where this page was made."
        if dataset.digest != digest:
            place = where if dataset.members is not None else f"{name} in {self.data_dir}"
            return f"The {place} is not the one that this run saw, so no images are shown."
        rows = None
        if dataset.members is not None:
            rows = {printable(file): row for row, file in enumerate(dataset.members["test"].names)}
        return _TestImages(dataset.splits["test"].images, rows)


@dataclass(frozen=True)
class Picture:
    """An image of a gallery."""

    uri: str
    label: str
    predicted: str
    confidence: float


@dataclass(frozen=True)
class Pair:
    """Rows of one class that were taken for another."""

    label: str
    predicted: str
    count: int
    pictures: list[Picture]


def _galleries(run: Run, predictions: Predictions, images: _Images) -> dict[str, Any]:
    order = np.argsort(-np.array(predictions.confidences), kind="stable")
    mistakes = [int(row) for row in order if predictions.labels[row] != predictions.predicted[row]]
    pairs = Counter((predictions.labels[row], predictions.predicted[row]) for row in mistakes)
    source = images.of(run)

    def pictures(rows: Sequence[int]) -> list[Picture]:
        if isinstance(source, str):
            return []
        return [
            Picture(
                source.uri(predictions, row),
                predictions.labels[row],
                predictions.predicted[row],
                predictions.confidences[row],
            )
            for row in rows
        ]

    confused = []
    for (label, predicted), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:GALLERY_PAIRS]:
        rows = [row for row in mistakes if (predictions.labels[row], predictions.predicted[row]) == (label, predicted)][
            :GALLERY_OF_A_PAIR
        ]
        confused.append(Pair(label, predicted, count, pictures(rows)))
    return {
        "mistakes": pictures(mistakes[:GALLERY_MISTAKES]),
        "pairs": confused,
        "number_of_mistakes": len(mistakes),
        "why_no_images": source if isinstance(source, str) else "",
    }


# --- drawings ---------------------------------------------------------------------------------


def _history_charts(run: Run) -> list[Markup]:
    read = _read_columns(run.folder / "history.csv", HISTORY_COLUMNS)
    if read is None:
        return []
    unit, columns = read
    found = []
    lowest = columns["validation_loss"].index(min(columns["validation_loss"]))
    stopped = unit != "iteration"  # an iterative solver keeps its last step
    for what, say, label in (
        ("loss", charts.plain, "mean cross-entropy (nats)"),
        ("accuracy", charts.percent, "accuracy"),
    ):
        series = [
            Series({"train": "training"}.get(split, split), columns[unit], columns[f"{split}_{what}"], style)
            for style, split in enumerate(("train", "validation"))
        ]
        drawing = charts.lines(
            f"{what} against {unit}, training and validation", series, x_label=unit, y_label=label, say_y=say,
            log_x=unit not in ("iteration", "epoch"), kept=columns[unit][lowest] if stopped else None,
        )  # fmt: skip
        found.append(Markup(drawing))  # noqa: S704 - drawn by us, every text in it escaped
    return found


def _learning_chart(run: Run) -> list[Markup]:
    read = _read_columns(run.folder / "learning_curve.csv", ("rows", "train_accuracy", "validation_accuracy"))
    if read is None:
        return []
    columns = read[1]
    sizes = sorted(set(columns["rows"]))
    series = []
    for style, split in enumerate(("train", "validation")):
        means = [
            float(np.mean([v for n, v in zip(columns["rows"], columns[f"{split}_accuracy"], strict=True) if n == size]))
            for size in sizes
        ]
        series.append(Series({"train": "training"}.get(split, split), sizes, means, style))
    drawing = charts.lines(
        "accuracy against training-set size", series, x_label="training rows (mean of the seeds)",
        y_label="accuracy", say_y=charts.percent, log_x=True,
    )  # fmt: skip
    return [Markup(drawing)]  # noqa: S704


def _calibration_chart(run: Run) -> list[Markup]:
    bins = run.metrics.get("calibration")
    if not bins:
        return []
    filled = [index for index, count in enumerate(bins["counts"]) if count]
    series = Series(
        "accuracy of a bin", [bins["confidence"][i] for i in filled], [bins["accuracy"][i] for i in filled], 0
    )
    drawing = charts.lines(
        "reliability diagram: accuracy against confidence", [series], x_label="confidence",
        y_label="accuracy", say_x=charts.percent, say_y=charts.percent, diagonal=True,
    )  # fmt: skip
    return [Markup(drawing)]  # noqa: S704


def _confusions(predictions: Predictions, names: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """Each true class with (count, share) of every predicted one; None when there are too many to read."""
    if len(names) > CONFUSION_CLASSES:
        return None
    counts = Counter(zip(predictions.labels, predictions.predicted, strict=True))
    table = []
    for label in names:
        total = max(1, sum(counts[label, other] for other in names))
        table.append((label, [(counts[label, other], counts[label, other] / total) for other in names]))
    return table


# --- the page ---------------------------------------------------------------------------------


def _settings(run: Run) -> list[tuple[str, str]]:
    m = run.metrics
    features = m["features"]
    official = "" if m["dataset"].get("official") is True else " (not the official files)"
    pairs = [
        ("data", f"{m['dataset']['name']}{official}, digest {m['dataset']['digest'][:12]}…"),
        ("features", f"{features['columns']:,} columns at {features['image_size']} px, {features['precision']}"),
        ("taps", ", ".join(features["taps"])),
        ("weights", str(features.get("weights", "unknown"))),
        ("cache", str(features.get("file", "unknown"))),
        ("classifier", m["classifier"]["name"]),
        ("parameters", classifiers.describe(m["classifier"]["params"])),
        ("seed", str(m["seed"])),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in m["seconds"].items())),
        ("versions", ", ".join(f"{name} {number}" for name, number in m.get("versions", {}).items())),
        ("made", m["created"]),
    ]
    if features.get("limit"):
        pairs.insert(1, ("limit", f"the first {features['limit']:,} rows of each split"))
    return pairs


def _view(rank: int, run: Run, images: _Images) -> dict[str, Any]:
    m = run.metrics
    predictions = _read_predictions(run.folder / "predictions.csv")
    names = list(m["per_class"])
    interval = m.get("interval", {}).get("test")
    if interval is None and predictions and m["accuracy"]["test"] is not None:
        right = round(m["accuracy"]["test"] * len(predictions.labels))
        interval = metrics.wilson_interval(right, len(predictions.labels))
    return {
        "rank": rank,
        "id": f"run-{safe_name(run.name)}",
        "name": run.name,
        "folder": run.folder.name,
        "m": m,
        "converged": run.converged,
        "convergence": m.get("convergence") or "",
        "taps": describe_taps(m["features"]["taps"]),
        "interval": interval,
        "ece": (m.get("calibration") or {}).get("ece"),
        "charts": [*_history_charts(run), *_learning_chart(run), *_calibration_chart(run)],
        "classes": names,
        "per_class": [(name, m["per_class"][name]) for name in names],
        "confusions": _confusions(predictions, names) if predictions else None,
        "settings": _settings(run),
        "bits": predictions.bits if predictions else "",
        "test_rows": len(predictions.labels) if predictions else 0,
        "rows_key": predictions.rows if predictions else "",
        "galleries": _galleries(run, predictions, images) if predictions else None,
        "files": [
            name for name in (*run_folder.RUN_FILES, *run_folder.OPTIONAL_FILES) if (run.folder / name).is_file()
        ],
    }


def _cost_chart(runs: Sequence[Run]) -> Markup:
    names = sorted({run.metrics["classifier"]["name"] for run in runs})
    points = [
        Point(
            max(run.metrics["seconds"]["total"], 0.01),
            run.metrics["accuracy"]["test"],
            names.index(run.metrics["classifier"]["name"]),
            f"{run.name}: {run.metrics['accuracy']['test']:.2%} in {run.metrics['seconds']['total']:.0f} s",
            f"run-{safe_name(run.name)}",
        )
        for run in runs
    ]
    drawing = charts.scatter(
        "test accuracy against seconds of computing", points, names, x_label="seconds of computing (logarithmic scale)",
        y_label="test accuracy",
    )  # fmt: skip
    return Markup(drawing)  # noqa: S704


def render(runs: Sequence[Run], data_dir: Path, *, dataset: str | None = None) -> bytes:
    """Make the page.

    Parameters
    ----------
    runs : sequence of Run
        Best first.
    data_dir : Path
        Where the data sets are, for their images.
    dataset : str, optional
        Said in the title when only its runs are shown.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    environment.filters["percent"] = lambda value, digits=2: (
        "–" if value is None else f"{100 * value:.{digits}f}\u00a0%"
    )
    environment.filters["number"] = run_folder.number
    images = _Images(data_dir)
    views = []
    with Progress("page", len(runs), "runs") as progress:
        for rank, run in enumerate(runs, 1):
            views.append(_view(rank, run, images))
            progress.update(1)
    tested = [run for run in runs if run.metrics["accuracy"]["test"] is not None]
    text = environment.get_template("index.html").render(
        runs=views,
        dataset=dataset,
        several=len({run.metrics["dataset"]["name"] for run in runs}) > 1,
        cost=_cost_chart(tested) if tested else "",
        # Ours, and meant to be markup: escaped, neither would work.
        style=Markup((TEMPLATES / "page.css").read_text(encoding="utf-8")),  # noqa: S704
        script=Markup((TEMPLATES / "page.js").read_text(encoding="utf-8")),  # noqa: S704
    )
    return text.encode("utf-8")


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild wrote: the runs shown, and where list and page are."""

    runs: list[Run]
    table: Path
    page: Path


def rebuild(output_dir: Path, data_dir: Path, *, dataset: str | None = None) -> Rebuilt:
    """Make leaderboard and page anew from the run folders.

    Parameters
    ----------
    output_dir : Path
    data_dir : Path
        Where the data sets are, for their images.
    dataset : str, optional
        Only the runs of this data set.

    Raises
    ------
    UserError
        When the folder cannot be read or written to.
    """
    with file_errors("write the leaderboard", output_dir):
        atomic.make_folder(output_dir)
        runs = leaderboard.read(output_dir, dataset)
        page = output_dir / leaderboard.PAGE_NAME
        content = render(runs, data_dir, dataset=dataset)
        atomic.write_atomically(page, content)
        return Rebuilt(runs, leaderboard.write_csv(output_dir, runs), page)


def closing(rebuilt: Rebuilt) -> str:
    """The leaderboard and where it is, for the terminal."""
    return f"{leaderboard.to_text(rebuilt.runs)}\ntable: {rebuilt.table}\npage:  {rebuilt.page}\n"

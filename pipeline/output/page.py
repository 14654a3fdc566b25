"""All runs on one HTML page that needs nothing else: leaderboard, curves, confusions, galleries, comparison.

python -m pipeline report

Everything is in the file, the images too; it opens from disk, without a network. Numbers and predictions come from
the run folders alone. The images come from the data set, where that is on this machine and is the one the run saw.
"""

from __future__ import annotations

import csv
import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import safe_name
from pipeline.common.progress import Progress
from pipeline.common.text import printable
from pipeline.data import datasets
from pipeline.data.dataset import Image
from pipeline.data.options import FolderOptions
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps
from pipeline.output import leaderboard, maps, metrics, report, run_folder, templating, thumbnails
from pipeline.output.leaderboard import Run

log = logging.getLogger("pipeline")

GALLERY_MISTAKES = 12  # most confident mistakes shown of a run
GALLERY_PAIRS, GALLERY_OF_A_PAIR = 4, 6  # most confused pairs of classes, and images of each
PICTURES = {
    "history": "loss and accuracy, training and validation, over the steps of the fit",
    "learning_curve": "accuracy against training-set size",
    "calibration": "accuracy against confidence",
    "confusion_matrix": "confusion matrix: share of each true class predicted as each class",
}
CONFUSION_CLASSES = 25  # up to which the matrix is a table; beyond it, it is a picture
CURVE_POINTS = 30  # of a run's history in the comparison: enough for the eye


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

    def name(self, position: int) -> str:
        """What a row is called: the path of its file, else its number."""
        return self.files[position] if self.files else f"row {self.indices[position]}"

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each row is right, bool (n,)."""
        return np.array([a == b for a, b in zip(self.labels, self.predicted, strict=True)], bool)


def _read_predictions(path: Path) -> Predictions | None:
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        return Predictions(
            [int(row[0]) for row in rows], [row[1] for row in rows], [row[2] for row in rows],
            [float(row[3]) for row in rows], [row[4] for row in rows] if header[4:] == ["file"] else [],
        )  # fmt: skip
    except (OSError, ValueError, IndexError, csv.Error) as error:
        log.warning("warning: %s cannot be read (%s): the page does without it", path, error)
        return None


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
class _ScoredImages:
    """Images of the rows that a run was scored on, as small WebP pictures.

    Attributes
    ----------
    images : dict of str to ndarray or LazyImages
        Of each split.
    before : int
        Rows of train that come before those of test; 0 where test alone was scored.
    rows : dict or None
        Split and row of each file, where the images are files.
    folder : Path
        Where the files are.
    names : dict of str to sequence of str
        Of each split, their paths in the folder.
    """

    images: Mapping[str, Any]
    before: int
    rows: dict[str, tuple[str, int]] | None
    folder: Path
    names: Mapping[str, Sequence[str]]
    _ready: dict[tuple[str, int], str] = field(default_factory=dict)

    def place(self, predictions: Predictions, position: int) -> tuple[str, int]:
        """The split and the row in it of a prediction; row -1 when there is no such image any more."""
        if self.rows is None:
            row = predictions.indices[position]
            split, row = ("train", row) if row < self.before else ("test", row - self.before)
        else:  # a cache leaves rows out whose images cannot be used, so its numbers are not the data set's
            split, row = self.rows.get(predictions.files[position] if predictions.files else "", ("test", -1))
        return split, row if 0 <= row < len(self.images[split]) else -1

    def link(self, predictions: Predictions, position: int) -> str:
        """Where the file of a prediction is, as a URL; "" where the images are not files."""
        split, row = self.place(predictions, position)
        return "" if self.rows is None or row < 0 else (self.folder / self.names[split][row]).as_uri()

    def uri(self, predictions: Predictions, position: int) -> str:
        """The image of a prediction as a data URI; a placeholder when there is no such image any more."""
        place = self.place(predictions, position)
        if place not in self._ready:
            self._ready[place] = thumbnails.uri(self.pixels(predictions, position))
        return self._ready[place]

    def pixels(self, predictions: Predictions, position: int) -> Image | None:
        """The image of a prediction; None when there is no such image any more."""
        split, row = self.place(predictions, position)
        if row < 0:
            return None
        try:
            found: Image = self.images[split][row]
        except UserError as error:  # a file that went away, changed or broke since the folder was listed
            log.warning("warning: %s The page has a placeholder for it", error)
            return None
        return found


@dataclass
class _Images:
    """Images of the data sets that are on this machine; ``shown`` has the id of each that the page shows."""

    data_dir: Path
    _known: dict[tuple[str, str, int], _ScoredImages | str] = field(default_factory=dict)
    shown: dict[str, str] = field(default_factory=dict)

    def once(self, uri: str) -> str:
        """The id of an image; the page has each once, however many runs show it."""
        return self.shown.setdefault(uri, f"i{len(self.shown)}")

    def of(self, run: Run) -> _ScoredImages | str:
        """Images of the rows that a run was scored on, or a sentence that says why there are none."""
        about = run.metrics["dataset"]
        before = run.metrics["images"]["rows"]["train"] if run.metrics.get("cross_validation") else 0
        key = about.get("folder", about["name"]), about["digest"], before
        if key not in self._known:
            self._known[key] = self._load(about["name"], about.get("reading", {}), *key)
        return self._known[key]

    def _load(self, name: str, reading: Mapping[str, Any], where: str, digest: str, before: int) -> _ScoredImages | str:
        try:
            with _unsaid():  # whoever made the run was told about the data then
                how = FolderOptions.recorded(reading)
                dataset = datasets.load_dataset(where, self.data_dir, download=False, how=how)
        except UserError as error:
            log.info("no images of %s on the page: %s", name, error)
            return f"No images are shown, because {name} was not on the machine where this page was made."
        if dataset.digest != digest:
            place = where if dataset.members is not None else f"{name} in {self.data_dir}"
            return f"The {place} is not the one that this run saw, so no images are shown."
        names = {split: who.names for split, who in (dataset.members or {}).items() if before or split == "test"}
        places = {printable(file): (split, row) for split, files in names.items() for row, file in enumerate(files)}
        images = {split: dataset.splits[split].images for split in ("train", "test")}
        return _ScoredImages(images, before, places if dataset.members else None, Path(where).resolve(), names)


class _Mistake(NamedTuple):
    """A row that was not predicted right: its image, and what is said of it."""

    image: str
    label: str
    predicted: str
    confidence: float
    name: str
    link: str


def _galleries(run: Run, predictions: Predictions, images: _Images) -> dict[str, Any]:
    """The most confident mistakes, and those of the most confused pairs of classes, with their images."""
    labels, predicted, source = predictions.labels, predictions.predicted, images.of(run)
    order = np.argsort(-np.array(predictions.confidences), kind="stable")
    mistakes = [int(row) for row in order if labels[row] != predicted[row]]
    pairs = Counter((labels[row], predicted[row]) for row in mistakes)

    def pictures(rows: Sequence[int]) -> list[_Mistake]:
        if isinstance(source, str):
            return []
        return [
            _Mistake(
                images.once(source.uri(predictions, row)), labels[row], predicted[row], predictions.confidences[row],
                predictions.name(row), source.link(predictions, row),
            )
            for row in rows
        ]  # fmt: skip

    return {
        "mistakes": pictures(mistakes[:GALLERY_MISTAKES]),
        "pairs": [
            (
                *pair,
                count,
                pictures([row for row in mistakes if (labels[row], predicted[row]) == pair][:GALLERY_OF_A_PAIR]),
            )
            for pair, count in sorted(pairs.items(), key=lambda item: (-item[1], item[0]))[:GALLERY_PAIRS]
        ],
        "why_no_images": source if isinstance(source, str) else "",
    }


# --- the page ---------------------------------------------------------------------------------


def _pictures(folder: Path, stems: Iterable[str]) -> list[tuple[str, str]]:
    """A data URI of each picture of a run, and what it shows; runs of earlier versions have them as PNG only."""
    found: list[tuple[str, str]] = []
    for stem in stems:
        svg, png = folder / f"{stem}.svg", folder / f"{stem}.png"
        if svg.is_file():
            plain = quote(svg.read_bytes().replace(b'"', b"'"), safe=" !$'()*+,-./:;<=>?@[]^_{|}~")
            found.append((Markup(f"data:image/svg+xml,{plain}"), PICTURES[stem]))  # noqa: S704 - what would end it is quoted
        elif png.is_file():
            found.append((thumbnails.data_uri("png", png.read_bytes()), PICTURES[stem]))
    return found


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


def _settings(run: Run) -> list[tuple[str, str]]:
    m = run.metrics
    features = m["features"]
    official = "" if m["dataset"].get("official") is True else " (not the official files)"
    pairs = [
        ("data", f"{m['dataset']['name']}{official}, digest {m['dataset']['digest'][:12]}…"),
        (
            "features",
            f"{features['columns']:,} columns at {report.sizes_text(features['image_size'])}, views "
            f"{features.get('view', 'plain')}, {features['precision']}",
        ),
        ("taps", ", ".join(features["taps"])),
        ("weights", str(features.get("weights", "unknown"))),
        ("cache", ", ".join(np.atleast_1d(features.get("file", "unknown")))),
        ("classifier", m["classifier"]["name"]),
        ("parameters", classifiers.describe(m["classifier"]["params"])),
        ("seed", str(m["seed"])),
        ("seconds", ", ".join(f"{name} {value:.1f}" for name, value in m["seconds"].items())),
        ("versions", ", ".join(f"{name} {number}" for name, number in m.get("versions", {}).items())),
        ("made", m["created"]),
    ]
    if m.get("left_out"):
        pairs.insert(1, ("left out", report.left_out_text(m)))
    if features.get("limit"):
        pairs.insert(1, ("limit", f"the first {features['limit']:,} rows of each split"))
    return pairs


def _view(run: Run, same: Sequence[Run], rank: int, images: _Images) -> dict[str, Any]:
    """What the page says of a run; ``same`` are others of the same model."""
    m = run.metrics
    predictions = _read_predictions(run.folder / "predictions.csv")
    interval = m.get("interval", {}).get("test")
    if interval is None and predictions and m["accuracy"]["test"] is not None:
        interval = metrics.wilson_interval(int(predictions.right.sum()), len(predictions.labels))
    classes = list(m["per_class"])
    supports = [scores["support"] for scores in m["per_class"].values()]
    many = len(classes) > CONFUSION_CLASSES
    worst = sorted(m["per_class"].items(), key=lambda item: (item[1]["support"] == 0, item[1]["f1"] or 0))
    return {
        "id": f"run-{safe_name(run.name)}",
        "rank": rank,
        "name": run.name,
        "short": run.name.removeprefix(f"{m['dataset']['name']}-"),
        "same": [other.folder.name for other in same],
        "folder": run.folder.name,
        "m": m,
        "chosen": leaderboard.chosen(run),
        "converged": run.converged,
        "convergence": m.get("convergence") or "",
        "taps": describe_taps(m["features"]["taps"]),
        "interval": interval,
        "ece": (m.get("calibration") or {}).get("ece"),
        # Runs from before these were counted have none.
        "cross_validation": m.get("cross_validation"),
        "balanced": m.get("balanced_accuracy"),
        "guess": max(supports, default=0) / max(sum(supports), 1),
        "rows": sum(supports),
        "pictures": _pictures(run.folder, ("history", "learning_curve", "calibration")),
        "matrix": _pictures(run.folder, ["confusion_matrix"]) if many else [],
        "classes": classes,
        "worst": worst,
        "confusions": _confusions(predictions, classes) if predictions and not many else None,
        "settings": _settings(run),
        "predictions": predictions,
        "galleries": _galleries(run, predictions, images) if predictions else None,
        "map": maps.read(run.folder.parent, m.get("map")),
        "files": [
            name for name in (*run_folder.RUN_FILES, *run_folder.OPTIONAL_FILES) if (run.folder / name).is_file()
        ],
    }


def _comparisons(views: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, tuple[int, int, float]]]:
    """Of each two runs on the same rows: how many only the one and only the other has right, and McNemar's p."""
    groups: dict[str, list[int]] = {}
    for row, view in enumerate(views):
        if view["predictions"] and view["predictions"].labels:
            groups.setdefault(view["predictions"].rows, []).append(row)
    pairs: dict[int, dict[int, tuple[int, int, float]]] = {}
    for rows in groups.values():
        only, chances = metrics.mcnemar(np.array([views[row]["predictions"].right for row in rows]))
        for a, b in zip(*np.triu_indices(len(rows), 1), strict=True):
            found = int(only[a, b]), int(only[b, a]), float(f"{chances[a, b]:.4g}")
            pairs.setdefault(rows[a], {})[rows[b]] = found
    return pairs


def _map(runs: Sequence[Run], views: Sequence[Mapping[str, Any]], images: _Images) -> dict[str, Any] | None:
    """The map of the best run that has one, and whose."""
    for run, view in zip(runs, views, strict=True):
        shown = _map_of(run, view, views, images)
        if shown is not None:
            return {**shown, "run": view}
    return None


def _map_of(
    run: Run, own: Mapping[str, Any], views: Sequence[Mapping[str, Any]], images: _Images
) -> dict[str, Any] | None:
    """A run's map, with the mistakes of all that were scored on the same rows; None when it has none."""
    predictions, found, classes = own["predictions"], own["map"], own["classes"]
    if found is None or predictions is None or not set(predictions.labels) <= set(classes):
        return None
    numbers = {name: number for number, name in enumerate(classes)}
    where = {row: position for position, row in enumerate(predictions.indices)}
    points = [  # class by class
        (numbers[predictions.labels[where[row]]], where[row], place)
        for place, row in enumerate(found.rows.tolist())
        if row in where
    ]
    if len(points) < maps.FEWEST:
        return None
    labels, positions, order = np.array(sorted(points), np.intp).T
    rings = [
        maps.Ring(
            f"mistakes of {view['rank']}. {view['short']}",
            {
                point: numbers.get(guess, f"taken for {guess}")
                for point, position in enumerate(positions.tolist())
                if (guess := view["predictions"].predicted[position]) != predictions.labels[position]
            },
            "predicted rightly",
        )
        for view in views
        if view["predictions"] and view["predictions"].rows == predictions.rows
    ]
    source, places = images.of(run), found.places[order]
    rows = [predictions.indices[position] for position in positions.tolist()]
    sheet = maps.tiles(
        run.folder.parent,
        [run.metrics["dataset"]["digest"], bool(run.metrics.get("cross_validation")), rows],
        None if isinstance(source, str) else lambda point: source.pixels(predictions, int(positions[point])),
        len(points),
    )
    names = [predictions.name(position) for position in positions.tolist()]
    around = maps.neighbours(maps.near_each_other(places), labels, classes)
    return maps.view(places, labels, classes, names, sheet, rings, around)


def _cost(runs: Sequence[Run], name: str) -> Markup:
    from pipeline.output import figures  # late: it loads matplotlib

    drawing = figures.cost(
        name,
        [run.metrics["classifier"]["name"] for run in runs],
        [run.metrics["seconds"]["total"] for run in runs],
        [run.metrics["accuracy"]["validation"] for run in runs],
        [f"#run-{safe_name(run.name)}" for run in runs],
    )
    return Markup(drawing)  # noqa: S704 - drawn by us, every text in it escaped


def _read_curves(path: Path) -> tuple[str, dict[str, NDArray[np.float64]]]:
    """What a CSV file has its curves over, and each by its column's name: float (points, 2), x and its mean y."""
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            header, *rows = csv.reader(stream)
        values = np.array(rows, np.float64).reshape(-1, len(header))
    except (OSError, ValueError, csv.Error):
        return "", {}
    x, place = np.unique(values[:, 0], return_inverse=True)
    means = {
        name: np.bincount(place, weights=column) / np.bincount(place)
        for name, column in zip(header, values.T, strict=True)
    }
    return header[0], {name: np.stack([x, y], axis=1) for name, y in means.items()}


def _curves(runs: Sequence[Run], name: str) -> list[Markup]:
    """Loss and accuracy over the steps of the fit, and learning curves, of all runs in one pair of axes each."""
    from pipeline.output import figures  # late: it loads matplotlib

    histories = [_read_curves(run.folder / "history.csv") for run in runs]
    sizes = [_read_curves(run.folder / "learning_curve.csv")[1] for run in runs]
    steps = [columns if unit in ("iteration", "epoch") else {} for unit, columns in histories]
    drawn: list[Markup] = []
    time = "iteration or epoch"
    for what, over, tables in (("loss", time, steps), ("accuracy", time, steps), ("accuracy", "training rows", sizes)):
        lines: dict[int, dict[str, NDArray[np.float64]]] = {}
        for number, columns in enumerate(tables):
            for split in ("train", "validation"):
                points = columns.get(f"{split}_{what}", np.zeros((0, 2)))
                if len(points):
                    kept = np.unique(np.geomspace(1, len(points), CURVE_POINTS).round().astype(int)) - 1
                    lines.setdefault(number, {})[split] = points[kept]
        if lines:
            unit = "cross-entropy (nats)" if what == "loss" else what
            drawing = figures.curves(f"{name}-{len(drawn)}", lines, over, unit)
            drawn.append(Markup(drawing))  # noqa: S704 - drawn by us, of numbers alone
    return drawn


def _section(runs: Sequence[Run], images: _Images, number: int, done: Callable[[int], object]) -> dict[str, Any] | None:
    """What the page says of the runs on the same rows; None when not one of them can be shown."""
    views: list[dict[str, Any]] = []
    shown: list[Run] = []
    listed: list[Run] = []
    for first, *same in leaderboard.models(runs):
        with leaderboard.skipping(first.folder / "metrics.json"):
            views.append(_view(first, same, len(views) + 1, images))
            shown.append(first)
            listed += [first, *same]
        done(1 + len(same))
    if not views:
        return None
    about, limit = shown[0].metrics["dataset"], shown[0].metrics["features"].get("limit")
    return {
        "name": about["name"] + (f", first {limit:,} rows of each split" if limit else ""),
        "digest": about["digest"],
        "views": views,
        "runs": listed,
        "classifiers": sorted({run.metrics["classifier"]["name"] for run in shown}),
        "pairs": _comparisons(views),
        "map": _map(shown, views, images),
        "cost": _cost(shown, f"cost{number}") if len(shown) > 1 else "",
        "curves": _curves(shown, f"curves{number}") if len(shown) > 1 else [],
    }


def render(runs: Sequence[Run], data_dir: Path) -> tuple[list[Run], bytes]:
    """Make the page; return the runs that could be shown, and its bytes.

    Parameters
    ----------
    runs : sequence of Run
        As `leaderboard.read` gives them.
    data_dir : Path
        Where the data sets are, for their images.
    """
    images = _Images(data_dir)
    with Progress("page", len(runs), "runs") as progress:
        groups = enumerate(leaderboard.datasets(runs))
        sections = list(filter(None, (_section(group, images, number, progress.update) for number, group in groups)))
    shown = [run for section in sections for run in section["runs"]]
    return shown, templating.render_page("index.html", sections=sections, images=images.shown)


@dataclass(frozen=True)
class Rebuilt:
    """What a rebuild wrote: the runs to print, and where list and page are, which hold all."""

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
        Whose runs are to be printed, instead of all.

    Raises
    ------
    UserError
        When the folder cannot be read or written to, or there is no run on the data set.
    """
    with file_errors("write the leaderboard", output_dir):
        atomic.make_folder(output_dir)
        found = leaderboard.read(output_dir)
        leaderboard.of_dataset(found, dataset)  # a name that is wrong is said before the work
        runs, content = render(found, data_dir)
        page = output_dir / leaderboard.PAGE_NAME
        atomic.write_atomically(page, content)
        return Rebuilt(leaderboard.of_dataset(runs, dataset), leaderboard.write_csv(output_dir, runs), page)


def summary(rebuilt: Rebuilt) -> str:
    """The leaderboard and where it is, for the terminal."""
    return f"{leaderboard.to_text(rebuilt.runs)}\ntable: {rebuilt.table}\npage:  {rebuilt.page}\n"

"""All runs on one HTML page that needs nothing else: leaderboard, curves, confusions, galleries, comparison.

python -m pipeline report

Everything is in the file, the images too; it opens from disk, without a network. Numbers and predictions come from
the run folders alone. The images come from the data set, where that is on this machine and is the one the run saw.
"""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.errors import file_errors
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.progress import Progress
from pipeline.models import classifiers
from pipeline.network.taps import describe_taps
from pipeline.output import leaderboard, maps, metrics, report, run_folder, templating, thumbnails
from pipeline.output.results import Columns, RunResults
from pipeline.output.run_images import PageImages, RunImages

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


def _table(run: RunResults, what: str) -> Columns:
    """``predictions``, ``history`` or ``learning_curve`` of a run; empty, and a warning, where it cannot be read."""
    try:
        found: Columns = getattr(run, what)
        if what == "predictions":
            _ = found["index"], found["label"], found["predicted"], found["confidence"]
    except (ValueError, LookupError, OverflowError, csv.Error) as error:
        log.warning("warning: %s cannot be read (%s): the page does without it", run.folder / f"{what}.csv", error)
        return {}
    return found


def _name(predictions: Columns, position: int) -> str:
    """What a row is called: the path of its file, else its number."""
    return str(predictions["file"][position]) if "file" in predictions else f"row {predictions['index'][position]}"


def _galleries(predictions: Columns, source: RunImages, images: PageImages) -> dict[str, Any]:
    """The most confident mistakes, and those of the most confused pairs of classes, with their images."""
    labels, predicted, confidences = (predictions[name] for name in ("label", "predicted", "confidence"))
    order = np.argsort(-confidences, kind="stable")
    mistakes = order[(labels != predicted)[order]].tolist()
    pairs = Counter((labels[row], predicted[row]) for row in mistakes)

    def pictures(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [] if source.originals.absent else [
            {
                "image": images.id_of(source, row), "label": labels[row], "predicted": predicted[row],
                "confidence": confidences[row], "name": _name(predictions, row), "link": source.link(row),
            }
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
        "why_no_images": source.originals.absent,
    }


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


def _confusions(predictions: Columns, names: Sequence[str]) -> list[tuple[str, list[tuple[int, float]]]]:
    """Each true class with (count, share) of every predicted one."""
    counts = Counter(zip(predictions["label"], predictions["predicted"], strict=True))
    table = []
    for label in names:
        total = max(1, sum(counts[label, other] for other in names))
        table.append((label, [(counts[label, other], counts[label, other] / total) for other in names]))
    return table


def _view(run: RunResults, same: Sequence[RunResults], rank: int, images: PageImages) -> dict[str, Any]:
    """What the page says of a run; ``same`` are others of the same model."""
    m = run.metrics
    predictions = _table(run, "predictions")
    interval = m.get("interval", {}).get("test")
    if interval is None and predictions and m["accuracy"]["test"] is not None:
        right = predictions["label"] == predictions["predicted"]
        interval = metrics.wilson_interval(int(right.sum()), len(right))
    classes = list(m["per_class"])
    supports = [scores["support"] for scores in m["per_class"].values()]
    many = len(classes) > CONFUSION_CLASSES
    worst = sorted(m["per_class"].items(), key=lambda item: (item[1]["support"] == 0, item[1]["f1"] or 0))
    return {
        "run": run,
        "id": f"run-{safe_name(run.name)}",
        "rank": rank,
        "name": run.name,
        "short": run.name.removeprefix(f"{m['dataset']['name']}-"),
        "same": [other.folder.name for other in same],
        "folder": run.folder.name,
        "m": m,
        "chosen": leaderboard.chosen(run),
        "converged": run.converged,
        "taps": describe_taps(m["features"]["taps"]),
        "interval": interval,
        "ece": (m.get("calibration") or {}).get("ece"),
        # Runs from before these were counted have none.
        "cross_validation": m.get("cross_validation"),
        "guess": max(supports, default=0) / max(sum(supports), 1),
        "rows": sum(supports),
        "pictures": _pictures(run.folder, ("history", "learning_curve", "calibration")),
        "matrix": _pictures(run.folder, ["confusion_matrix"]) if many else [],
        "classes": classes,
        "worst": worst,
        "confusions": _confusions(predictions, classes) if predictions and not many else [],
        "params": classifiers.describe(m["classifier"]["params"]),
        "left_out": report.left_out_text(m),
        "predictions": predictions,
        "scored": digest_of([predictions[name].tolist() for name in ("index", "label")]) if predictions else "",
        "galleries": _galleries(predictions, images.of(run), images) if predictions else None,
        "files": [
            name for name in (*run_folder.RUN_FILES, *run_folder.OPTIONAL_FILES) if (run.folder / name).is_file()
        ],
    }


def _comparisons(views: Sequence[Mapping[str, Any]]) -> dict[int, dict[int, tuple[int, int, float]]]:
    """Of each two runs on the same rows: how many only the one and only the other has right, and McNemar's p."""
    groups: dict[str, list[int]] = {}
    for row, view in enumerate(views):
        if len(view["predictions"].get("index", [])):
            groups.setdefault(view["scored"], []).append(row)
    pairs: dict[int, dict[int, tuple[int, int, float]]] = {}
    for rows in groups.values():
        each = [views[row]["predictions"] for row in rows]
        only, chances = metrics.mcnemar(np.array([own["label"] == own["predicted"] for own in each]))
        for a, b in zip(*np.triu_indices(len(rows), 1), strict=True):
            found = int(only[a, b]), int(only[b, a]), float(f"{chances[a, b]:.4g}")
            pairs.setdefault(rows[a], {})[rows[b]] = found
    return pairs


def _map(views: Sequence[Mapping[str, Any]], images: PageImages) -> dict[str, Any] | None:
    """The map of the best run that has one, with the mistakes of all that were scored on the same rows."""
    for own in views:
        run, predictions, classes = own["run"], own["predictions"], own["classes"]
        found = maps.read(run.folder.parent, run.metrics.get("map"))
        if found is None or not predictions or not set(predictions["label"]) <= set(classes):
            continue
        mapped, everywhere = found
        numbers = {name: number for number, name in enumerate(classes)}
        where = {row: position for position, row in enumerate(predictions["index"].tolist())}
        points = [  # class by class
            (numbers[predictions["label"][where[row]]], where[row], place)
            for place, row in enumerate(mapped.tolist())
            if row in where
        ]
        if len(points) < maps.FEWEST:
            continue
        labels, positions, order = np.array(sorted(points), np.intp).T
        rings = []
        for view in views:
            if view["scored"] == own["scored"]:
                guesses = view["predictions"]["predicted"]
                mistakes = np.flatnonzero((guesses != predictions["label"])[positions]).tolist()
                said = {point: str(guesses[positions[point]]) for point in mistakes}
                taken = {point: numbers.get(guess, f"taken for {guess}") for point, guess in said.items()}
                rings.append(maps.Ring(f"mistakes of {view['rank']}. {view['short']}", taken, "predicted rightly"))
        source, places = images.of(run), everywhere[order]
        rows = predictions["index"][positions].tolist()
        sheet = maps.tiles(
            run.folder.parent,
            [run.metrics["dataset"]["digest"], bool(run.metrics.get("cross_validation")), rows],
            None if source.originals.absent else lambda point: source.pixels(int(positions[point])),  # noqa: B023 - called at once
            len(points),
        )
        names = [_name(predictions, position) for position in positions.tolist()]
        around = maps.neighbours(maps.near_each_other(places), labels, classes)
        return {**maps.view(places, labels, classes, names, sheet, rings, around), "run": own}
    return None


def _drawings(runs: Sequence[RunResults], name: int) -> dict[str, Any]:
    """Accuracy against cost, and curves over the steps of the fit and the training rows, of all runs in one each."""
    from pipeline.output import figures  # late: it loads matplotlib

    tables = {what: [_table(run, what) for run in runs] for what in ("history", "learning_curve")}
    drawn: list[str] = []
    for of, what, xlabel, ylabel in (
        ("history", "loss", "iteration or epoch", "cross-entropy (nats)"),
        ("history", "accuracy", "iteration or epoch", "accuracy"),
        ("learning_curve", "accuracy", "training rows", "accuracy"),
    ):
        lines: dict[int, dict[str, NDArray[np.float64]]] = {}
        for number, table in enumerate(tables[of]):
            over = next(iter(table), "")
            for split in ("train", "validation"):
                y = table.get(f"{split}_{what}", np.zeros(0))
                if len(y) and over in ("iteration", "epoch", "rows"):
                    x, place = np.unique(table[over], return_inverse=True)  # of a learning curve, the mean of the seeds
                    means = np.bincount(place, weights=y) / np.bincount(place)
                    kept = np.unique(np.geomspace(1, len(x), CURVE_POINTS).round().astype(int)) - 1
                    lines.setdefault(number, {})[split] = np.stack([x, means], axis=1)[kept]
        if lines:
            drawn.append(figures.inline(figures.curves, f"curves{name}-{len(drawn)}", lines, xlabel, ylabel))
    cost = figures.inline(
        figures.cost,
        f"cost{name}",
        [run.metrics["classifier"]["name"] for run in runs],
        [run.metrics["seconds"]["total"] for run in runs],
        [run.metrics["accuracy"]["validation"] for run in runs],
        [f"#run-{safe_name(run.name)}" for run in runs],
    )
    return {"cost": cost, "curves": drawn}


def _section(
    runs: Sequence[RunResults], images: PageImages, number: int, done: Callable[[int], object]
) -> dict[str, Any] | None:
    """What the page says of the runs on the same rows; None when not one of them can be shown."""
    views: list[dict[str, Any]] = []
    listed: list[RunResults] = []
    for first, *same in leaderboard.models(runs):
        with leaderboard.skipping(first.folder / "metrics.json"):
            view = _view(first, same, len(views) + 1, images)
            view["html"] = Markup(templating.render("run.html", run=view))  # noqa: S704 - every value in it is escaped
            views.append(view)
            listed += [first, *same]
        done(1 + len(same))
    if not views:
        return None
    shown = [view["run"] for view in views]
    name, limit = shown[0].metrics["dataset"]["name"], shown[0].metrics["features"].get("limit")
    return {
        "name": name + (f", first {limit:,} rows of each split" if limit else ""),
        "views": views,
        "runs": listed,
        "classifiers": sorted({run.metrics["classifier"]["name"] for run in shown}),
        "pairs": _comparisons(views),
        "map": _map(views, images),
        **(_drawings(shown, number) if len(shown) > 1 else {"cost": "", "curves": []}),
    }


def render(runs: Sequence[RunResults], data_dir: Path) -> tuple[list[RunResults], bytes]:
    """Make the page of runs, as `leaderboard.read` gives them; return those that could be shown, and its bytes."""
    images = PageImages(data_dir)
    with Progress("page", len(runs), "runs") as progress:
        groups = enumerate(leaderboard.datasets(runs))
        sections = list(filter(None, (_section(group, images, number, progress.update) for number, group in groups)))
    shown = [run for section in sections for run in section["runs"]]
    return shown, templating.render("index.html", sections=sections, images=images.shown).encode("utf-8")


class Rebuilt(NamedTuple):
    """What a rebuild wrote: the runs to print, and where list and page are, which hold all."""

    runs: list[RunResults]
    table: Path
    page: Path

    def summary(self) -> str:
        """The leaderboard and where it is, for the terminal."""
        return f"{leaderboard.to_text(self.runs)}\ntable: {self.table}\npage:  {self.page}\n"


def rebuild(output_dir: Path, data_dir: Path, *, dataset: str | None = None) -> Rebuilt:
    """Make leaderboard and page anew from the run folders; ``dataset`` is that whose runs alone are to be printed.

    Raises UserError when the folder cannot be read or written to, or there is no run on the data set.
    """
    with file_errors("write the leaderboard", output_dir):
        atomic.make_folder(output_dir)
        found = leaderboard.read(output_dir)
        leaderboard.of_dataset(found, dataset)  # a name that is wrong is said before the work
        runs, content = render(found, data_dir)
        table, page = output_dir / leaderboard.CSV_NAME, output_dir / leaderboard.PAGE_NAME
        atomic.write_atomically(page, content)
        atomic.write_atomically(table, leaderboard.csv_of(runs))
        return Rebuilt(leaderboard.of_dataset(runs, dataset), table, page)

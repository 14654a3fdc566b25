"""A map of a data set: alike images lie together, points by class, and rings around those to be seen.

output/maps/<key>.csv     which rows are on the map, and where; computed once for the same rows of the same features
            <key>.webp    their images, as tiles of one picture; made by the first page that shows them

The page of runs and that of an audit show it by one macro of ``parts.html``.
"""

from __future__ import annotations

import contextlib
import csv
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.keys import digest_of
from pipeline.common.progress import Progress
from pipeline.common.text import to_csv
from pipeline.data.dataset import Image
from pipeline.features.rows import FeatureRows, moments
from pipeline.output import thumbnails

log = logging.getLogger("pipeline")

FOLDER = "maps"
RULES = 1  # part of the key: raise it when the same rows of the same features give another map
ROWS, FEWEST = 1000, 10  # on the map of a run, which adds seconds to it; and below which there is none
SEED = 0  # runs of any seed share a map
NEAREST = 10  # points on the map that a point is compared with


class Ring(NamedTuple):
    """A choice of what is ringed."""

    name: str
    said: Mapping[int, str | int]  # of the points that are: the class that each was taken for, or what is to be said
    otherwise: str  # what is said of the others


# --- kept in the output folder ----------------------------------------------------------------


def keep(output_dir: Path, features: str, rows: FeatureRows, numbers: NDArray[np.intp]) -> str | None:
    """Make sure that there is a map of the rows that a run was scored on; where it cannot be written there is none.

    ``features`` is their key, and ``numbers``, int (n,), are what ``predictions.csv`` calls them. Returned is the key
    by which `read` finds the map; None for so few rows that there is nothing to see.
    """
    from threadpoolctl import threadpool_limits  # late, like all that follows: it loads scikit-learn

    from pipeline.selection import alike

    if len(numbers) < FEWEST:
        return None
    key = digest_of([RULES, features, numbers.tolist()])[:16]
    path = output_dir / FOLDER / f"{key}.csv"
    if not path.is_file():
        chosen = np.random.default_rng(SEED).choice(len(numbers), min(ROWS, len(numbers)), replace=False)
        chosen.sort()
        some = rows.take(chosen)
        with Progress("map", 0, "steps"), threadpool_limits(1):  # of so few rows threads are in each other's way
            places = alike.lay_out(alike.compare(some, moments(some), SEED), np.arange(len(chosen)), SEED)
        lines = [(row, f"{x:.3f}", f"{y:.3f}") for row, (x, y) in zip(numbers[chosen], places, strict=True)]
        _write(path, to_csv(("index", "x", "y"), lines))
    return key


def read(output_dir: Path, key: str | None) -> tuple[NDArray[np.intp], NDArray[np.float64]] | None:
    """The map of a run that has one and where it is still there.

    Which of the rows that were scored are on it, (n,), and where, (n, 2), each coordinate from 0 to 1.
    """
    path = output_dir / FOLDER / f"{key}.csv"
    if key is None or not path.is_file():
        return None
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            _, *lines = csv.reader(stream)
        rows = np.array([line[0] for line in lines], np.intp)
        return rows, np.array([line[1:3] for line in lines], np.float64).reshape(len(rows), 2)
    except (OSError, ValueError, IndexError, csv.Error) as error:
        log.warning("warning: %s cannot be read (%s): the page does without it", path, error)
        return None


def tiles(output_dir: Path, pictured: Any, get: Callable[[int], Image | None] | None, count: int) -> bytes:
    """The images of a map as tiles of one picture, made once; empty where they are not there and cannot be had.

    ``pictured`` tells these images and their order from others, as JSON can; ``get`` gives one by its place in it.
    """
    path = output_dir / FOLDER / f"{digest_of([thumbnails.TILE, thumbnails.TILE_QUALITY, pictured])[:16]}.webp"
    with contextlib.suppress(OSError):
        return path.read_bytes()
    if get is None:
        return b""
    made, whole = thumbnails.sheet(get, count)
    if whole:  # what could not be had now may be there next time
        _write(path, made)
    return made


def _write(path: Path, content: bytes) -> None:
    """Keep what was made; where that cannot be it is made again next time."""
    with contextlib.suppress(OSError):
        atomic.make_folder(path.parent)
        atomic.write_atomically(path, content)


# --- on a page --------------------------------------------------------------------------------


def view(
    places: NDArray[np.float64],
    labels: NDArray[Any],
    classes: Sequence[str],
    names: Sequence[str],
    sheet: bytes,
    rings: Sequence[Ring],
    around: Sequence[tuple[float, str, float]],
) -> dict[str, Any]:
    """What the macro ``map`` shows.

    Parameters
    ----------
    places, labels : ndarray, float64 (n, 2), int (n,)
        Places from 0 to 1; labels ascending: the points are drawn class by class, and known by their order.
    classes, names : sequence of str
        Of all classes, and of the n rows.
    sheet : bytes
        Their images as `thumbnails.sheet` has them; empty without.
    rings, around
        The first ring is shown at once; what is around each class `neighbours` gives.
    """
    points = np.rint(10 + 980 * places).astype(int)
    drawn = [
        "".join(f"M{x} {y}h0" for x, y in points[labels == number].tolist())  # a line of no length with round ends
        for number in range(len(classes))
    ]
    counts = np.bincount(labels, minlength=len(classes)).tolist()
    ringed = np.bincount(labels[np.array(list(rings[0].said), np.intp)], minlength=len(classes)).tolist()
    return {
        "classes": [
            {"name": name, "hue": round(360 * number / len(classes)), "points": drawn[number], "count": counts[number],
             "ringed": ringed[number], "around": around[number]}
            for number, name in enumerate(classes)
        ],
        "count": len(points),
        "names": names,
        "rings": [ring._asdict() for ring in rings],
        "sheet": thumbnails.data_uri("webp", sheet) if sheet else "",
        "columns": thumbnails.columns(len(points)),
        "tile": thumbnails.TILE,
    }  # fmt: skip


def near_each_other(places: NDArray[np.float64]) -> NDArray[np.intp]:
    """The nearest points of each on the map, int (n, few)."""
    from scipy.spatial import KDTree  # late: a page without a map does without

    _, found = KDTree(places).query(places, min(NEAREST + 1, len(places)))
    return np.asarray(found, np.intp)[:, 1:]  # the nearest is the point itself


def neighbours(
    nearest: NDArray[np.intp], labels: NDArray[Any], classes: Sequence[str]
) -> list[tuple[float, str, float]]:
    """Of each class: how many of the nearest rows (n, any) are of it, which class comes next, and its share."""
    found = []
    for number in range(len(classes)):
        own = labels[nearest[labels == number]].ravel()
        shares = np.bincount(own, minlength=len(classes)) / max(1, len(own))
        next_one = int(np.where(np.arange(len(classes)) == number, -1, shares).argmax())
        found.append((float(shares[number]), classes[next_one], float(shares[next_one])))
    return found

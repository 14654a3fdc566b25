"""The page of an audit: what was found, with the images side by side, and a map of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.progress import Progress
from pipeline.features.originals import Originals
from pipeline.output import templating, thumbnails

if TYPE_CHECKING:
    from pipeline.selection.alike import Alike

SHOWN = 60  # images of each kind on the page; the table has all
ON_THE_MAP = 3000  # rows at most: those that were found first, then others by chance
MOST_ON_THE_MAP_FOUND = 1000


class Finding(NamedTuple):
    """A row to look at: why, how suspicious it is (more is worse), and what it should be, or is the like of."""

    issue: str
    score: float
    row: int  # of all rows, those of train first
    suggestion: str = ""
    other: int | None = None


def render(
    about: Mapping[str, Any],
    issues: Mapping[str, str],
    findings: Sequence[Finding],
    alike: Alike,
    labels: NDArray[Any],
    classes: Sequence[str],
    place: Callable[[int], tuple[str, int]],
    images: Originals,
    seed: int,
) -> bytes:
    """Make the page.

    Parameters
    ----------
    about : mapping
        ``audit.json``.
    issues : mapping of str to str
        What each kind of finding means.
    findings : sequence of Finding
        The most suspicious of each kind first.
    alike : Alike
    labels : ndarray, int (n,)
        Of all rows.
    classes : sequence of str
    place : callable
        From a row to its split and number.
    images : Originals
    seed : int
    """
    shown: dict[str, str] = {}  # ids of the images, by their URIs

    def picture(row: int) -> str:
        uri = thumbnails.uri(images.pixels(*place(row)))
        return shown.setdefault(uri, f"i{len(shown)}")

    def view(item: Finding) -> dict[str, Any]:
        pair = [item.row] if item.other is None else [item.row, item.other]
        each = [
            {
                "image": "" if images.absent else picture(row),
                "label": classes[labels[row]],
                "name": images.name(*place(row)),
            }
            for row in pair
        ]
        return {"score": item.score, "suggestion": item.suggestion, "images": each}

    sections = []
    with Progress("page", len(issues), "parts") as progress:
        for issue, what in issues.items():
            own = [item for item in findings if item.issue == issue]
            sections.append({"issue": issue, "what": what, "count": len(own), "views": [*map(view, own[:SHOWN])]})
            progress.update(1)
    return templating.render_page(
        "audit.html",
        about=about,
        sections=sections,
        images=shown,
        absent=images.absent,
        map=_map(findings, alike, labels, classes, place, images, seed),
        neighbours=_neighbours(alike, labels, classes),
    )


def _map(
    findings: Sequence[Finding],
    alike: Alike,
    labels: NDArray[Any],
    classes: Sequence[str],
    place: Callable[[int], tuple[str, int]],
    images: Originals,
    seed: int,
) -> dict[str, Any]:
    """Points of the map, and what is said of each."""
    from pipeline.selection.alike import lay_out  # late: it loads scikit-learn

    found: dict[int, str] = {}
    for item in findings:
        if len(found) < MOST_ON_THE_MAP_FOUND:
            what = f"{item.issue}: {item.suggestion}" if item.suggestion else item.issue
            found[item.row] = f"{found[item.row]}; {what}" if item.row in found else what
    others = np.setdiff1d(np.arange(len(labels)), np.array(list(found), np.intp))
    count = min(len(others), ON_THE_MAP - len(found))
    chosen = np.sort(
        np.r_[list(found), np.random.default_rng(seed).choice(others, count, replace=False)].astype(np.intp)
    )
    with Progress("map", 0, "steps"):
        places = lay_out(alike, chosen, seed)
    sheet, columns = thumbnails.sheet([images.pixels(*place(int(row))) for row in chosen] if not images.absent else [])
    points = [
        {"x": round(10 + 980 * x, 1), "y": round(10 + 980 * y, 1), "label": int(labels[row]), "found": row in found}
        for (x, y), row in zip(places.tolist(), chosen.tolist(), strict=True)
    ]
    said = [[images.name(*place(row)), classes[labels[row]], found.get(row, "")] for row in chosen.tolist()]
    hues = [round(360 * number / len(classes)) for number in range(len(classes))]
    return {
        "points": points,
        "classes": list(zip(classes, hues, strict=True)),
        "said": said,
        "sheet": "" if images.absent else sheet,
        "columns": columns,
        "tile": thumbnails.TILE,
        "rows": len(labels),
    }


def _neighbours(alike: Alike, labels: NDArray[Any], classes: Sequence[str]) -> list[tuple[str, int, float, str, float]]:
    """Of each class its rows, how many of their nearest rows are of it, and which class comes next."""
    found = []
    for number, name in enumerate(classes):
        own = labels == number
        shares = np.bincount(labels[alike.nearest[own]].ravel(), minlength=len(classes)) / max(
            1, alike.nearest[own].size
        )
        others = np.where(np.arange(len(classes)) == number, -1, shares)
        next_one = int(others.argmax())
        found.append((name, int(own.sum()), float(shares[number]), classes[next_one], float(shares[next_one])))
    return found

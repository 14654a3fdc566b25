"""The page of an audit: what was found, with the images side by side, and a map of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.common.progress import Progress
from pipeline.data.dataset import Image
from pipeline.features.originals import Originals
from pipeline.output import maps, templating, thumbnails

if TYPE_CHECKING:
    from pipeline.selection.alike import Alike

SHOWN = 60  # images of each kind on the page; the table has all
ON_THE_MAP = 3000  # rows at most: those that were found first, then others by chance
MOST_ON_THE_MAP_FOUND = 1000


class Finding(NamedTuple):
    """A row to look at: why, how suspicious it is (more is worse), and what it should be, or is the like of."""

    issue: str
    score: float
    row: int
    suggestion: str = ""
    other: int | None = None


@dataclass(frozen=True)
class Rows:
    """All rows, those of train first: labels, and what classifiers took them for that did not see them, int (n,)."""

    labels: NDArray[Any]
    guesses: NDArray[Any]
    classes: Sequence[str]
    images: Originals
    place: Callable[[int], tuple[str, int]]  # split and number of a row

    def name(self, row: int) -> str:
        """What a row is called."""
        return self.images.name(*self.place(row))

    def pixels(self, row: int) -> Image | None:
        """The image of a row, if it is there."""
        return self.images.pixels(*self.place(row))


def render(
    about: Mapping[str, Any], issues: Mapping[str, str], findings: Sequence[Finding], alike: Alike, rows: Rows
) -> bytes:
    """Make the page.

    ``about`` is ``audit.json``; ``issues`` say what each kind of finding means, and of each kind the most suspicious
    come first.
    """
    shown: dict[str, str] = {}  # ids of the images, by their URIs

    def picture(row: int) -> str:
        return shown.setdefault(thumbnails.uri(rows.pixels(row)), f"i{len(shown)}")

    def view(item: Finding) -> dict[str, Any]:
        pair = [item.row] if item.other is None else [item.row, item.other]
        each = [
            {
                "image": "" if rows.images.absent else picture(row),
                "label": rows.classes[rows.labels[row]],
                "name": rows.name(row),
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
    return templating.render(
        "audit.html",
        about=about,
        sections=sections,
        images=shown,
        absent=rows.images.absent,
        map=_map(findings, alike, rows, about["seed"]),
        rows=len(rows.labels),
    ).encode("utf-8")


def _map(findings: Sequence[Finding], alike: Alike, rows: Rows, seed: int) -> dict[str, Any]:
    """The map: what was found first, then others by chance."""
    from pipeline.selection.alike import lay_out  # late: it loads scikit-learn

    labels, guesses, found = rows.labels, rows.guesses, dict[int, str]()
    for item in findings:
        if len(found) < MOST_ON_THE_MAP_FOUND:
            what = f"{item.issue}: {item.suggestion}" if item.suggestion else item.issue
            found[item.row] = f"{found[item.row]}; {what}" if item.row in found else what
    others = np.setdiff1d(np.arange(len(labels)), np.array(list(found), np.intp))
    count = min(len(others), ON_THE_MAP - len(found))
    chosen = np.r_[list(found), np.random.default_rng(seed).choice(others, count, replace=False)].astype(np.intp)
    chosen = chosen[np.lexsort((chosen, labels[chosen]))]
    with Progress("map", 0, "steps"):
        places = lay_out(alike, chosen, seed)

    rings = [
        maps.Ring(
            "found above",
            {point: found[row] for point, row in enumerate(chosen.tolist()) if row in found},
            "nothing was found",
        ),
        maps.Ring(
            "predicted wrongly by classifiers that did not see it",
            {int(point): int(guesses[chosen[point]]) for point in np.flatnonzero(guesses[chosen] != labels[chosen])},
            "predicted rightly",
        ),
    ]
    return maps.view(
        places, labels[chosen], rows.classes, [rows.name(row) for row in chosen.tolist()],
        b"" if rows.images.absent else thumbnails.sheet(lambda point: rows.pixels(int(chosen[point])), len(chosen))[0],
        rings, maps.neighbours(alike.nearest, labels, rows.classes),
    )  # fmt: skip

"""The page of an audit: what was found, with the images side by side, and a map of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
    row: int  # of all rows, those of train first
    suggestion: str = ""
    other: int | None = None


def render(
    about: Mapping[str, Any],
    issues: Mapping[str, str],
    findings: Sequence[Finding],
    alike: Alike,
    labels: NDArray[Any],
    guesses: NDArray[Any],
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
    labels, guesses : ndarray, int (n,)
        Of all rows, those of train first: the label given, and the class that was predicted without having seen it.
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
        map=_map(findings, alike, labels, guesses, classes, place, images, seed),
        rows=len(labels),
    )


def _map(
    findings: Sequence[Finding],
    alike: Alike,
    labels: NDArray[Any],
    guesses: NDArray[Any],
    classes: Sequence[str],
    place: Callable[[int], tuple[str, int]],
    images: Originals,
    seed: int,
) -> dict[str, Any]:
    """The map: what was found first, then others by chance."""
    from pipeline.selection.alike import lay_out  # late: it loads scikit-learn

    found: dict[int, str] = {}
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

    def pixels(point: int) -> Image | None:
        return images.pixels(*place(int(chosen[point])))

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
        places, labels[chosen], classes, [images.name(*place(row)) for row in chosen.tolist()],
        b"" if images.absent else thumbnails.sheet(pixels, len(chosen))[0], rings,
        maps.neighbours(alike.nearest, labels, classes),
    )  # fmt: skip

"""The rows of a cache that are most like images of one's own, or like one of its rows.

python -m pipeline similar --dataset photos IMAGE|FOLDER|train:12…
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.commands.listing import check_targets, check_usable, deliver, gather, told
from pipeline.commands.options import SimilarOptions
from pipeline.common.errors import UserError
from pipeline.common.text import printable, text_table, to_csv
from pipeline.data.dataset import Image, Skipped
from pipeline.data.image_files import FoundFiles
from pipeline.features.arrays import place_of
from pipeline.features.find import find
from pipeline.features.neighbours import Neighbours
from pipeline.features.options import FeatureOptions
from pipeline.features.originals import Originals, originals
from pipeline.output import contact_sheet

MOST_COLUMNS = 16  # of the contact sheet
_ROW = re.compile(r"(train|test):(\d+)")
_HEADER = ("image", "rank", "distance", "row", "file", "label")


class Asked(NamedTuple):
    """What the like of is looked for: its name, its features (columns,), and the row that it is itself, if any."""

    name: str
    features: NDArray[np.float32]
    itself: int | None
    thumbnail: Image | None


class Near(NamedTuple):
    """A row that is near: what it is called, its file ("" where it has none), its class, how far, and its place."""

    called: str
    file: str
    label: str
    distance: float
    place: tuple[str, int]


Listed = list[tuple[Asked, list[Near]]]


def similar(features: FeatureOptions, options: SimilarOptions) -> tuple[str, dict[str, Any]]:
    """Find the nearest rows; return what is to be printed, and the same for programs.

    Raises UserError when there is no cache, a row is not in it, its weights cannot be had, not one image can be used,
    or, under ``strict``, one cannot.
    """
    rows = [match for path in options.images if (match := _ROW.fullmatch(str(path))) and not path.exists()]
    named = [path for path in options.images if path.exists() or not _ROW.fullmatch(str(path))]
    paths, skipped = gather(named, follow_links=features.follow_links) if named else ([], [])
    check_targets(options)
    (path, *others), spec = find(features)
    if others:
        raise UserError(
            f"The nearest rows are looked for in one cache, but --image-size {','.join(map(str, spec.sizes))} asks for "
            f"{len(spec.sizes)}. Give one size."
        )
    weights = features.weights if Path(features.weights).is_file() else None
    with Neighbours(path, spec.taps, data_dir=features.data_dir, weights=weights) as near:
        shown = near.cache.has_members or options.sheet is not None  # else neither names nor pictures are asked for
        images = originals(near.cache, features.data_dir) if shown else Originals({}, {}, "not asked for")
        asked = [*_rows(near, [match.groups() for match in rows], images)]
        found, faults = _files(near, paths, sheet=options.sheet is not None)
        asked += found
        skipped += faults
        check_usable(asked, skipped, options.images, strict=features.strict)
        listed = _search(near, asked, min(options.top_k, len(near) - 1), images)
        lines = [
            [each.name, str(rank), f"{row.distance:.4f}", row.called, row.file, row.label]
            for each, rows in listed
            for rank, row in enumerate(rows, 1)
        ]
        first_named = [[name if rank == "1" else "", rank, *rest] for name, rank, *rest in lines]
        return deliver(
            options,
            {"cache": printable(str(path)), "similar": _told(listed), "skipped": told(skipped)},
            {
                "table": lambda _: text_table(_HEADER, first_named),
                "csv": lambda _: to_csv(_HEADER, lines).decode("utf-8"),
            },
            lambda: _sheet(near, images, listed),
            skipped,
            f"the nearest rows of {len(asked):,} {'image' if len(asked) == 1 else 'images'}",
        )


def _rows(near: Neighbours, given: Sequence[Any], images: Originals) -> list[Asked]:
    """Rows that are named by split and number."""
    held, found = near.cache.rows, []
    for split, number in given:
        row = int(number)
        if row >= held[split]:
            raise UserError(
                f"There is no row {split}:{row} in {near.cache.path}: {split} has {held[split]:,} rows, from 0 on."
            )
        place = row + (held["train"] if split == "test" else 0)
        found.append(Asked(f"{split}:{row}", near.of_rows([place])[0], place, images.pixels(split, row)))
    return found


def _files(near: Neighbours, paths: Sequence[Path], *, sheet: bool) -> tuple[list[Asked], list[Skipped]]:
    """Images in files, and which of them cannot be used."""
    files = FoundFiles(paths, thumbnail_side=contact_sheet.THUMBNAIL if sheet else None)
    features, faults = near.features(files)
    usable = [row for row in range(len(paths)) if row not in faults]
    found = [
        Asked(printable(str(paths[row])), each, None, files.thumbnails.get(row))
        for row, each in zip(usable, features, strict=True)
    ]
    return found, [Skipped(str(paths[row]), why) for row, why in faults.items()]


def _search(near: Neighbours, asked: Sequence[Asked], count: int, images: Originals) -> Listed:
    """Each image with its nearest rows."""
    distances, rows = near.search(np.stack([each.features for each in asked]), count + 1)
    result = []
    for each, own, numbers in zip(asked, distances.tolist(), rows.tolist(), strict=True):
        found = []
        for row, distance in zip(numbers, own, strict=True):
            if row != each.itself:
                place = place_of(row, near.cache)
                file = images.name(*place) if images.names else ""
                found.append(Near("{}:{}".format(*place), file, near.class_names[near.labels[row]], distance, place))
        result.append((each, found[:count]))
    return result


def _told(listed: Listed) -> list[dict[str, Any]]:
    """The same for programs."""
    return [
        {
            "image": each.name,
            "rows": [
                {"row": row.called, "file": row.file or None, "label": row.label, "distance": round(row.distance, 6)}
                for row in rows
            ],
        }
        for each, rows in listed
    ]


def _sheet(near: Neighbours, images: Originals, listed: Listed) -> bytes:
    """Each image in a line of its own, its nearest rows beside it."""
    columns = min(MOST_COLUMNS, 1 + max(len(rows) for _, rows in listed))
    shown = listed[: contact_sheet.MOST // columns]
    grey = np.full((8, 8, 3), 160, np.uint8)
    cells = []
    for each, rows in shown:
        cells.append(contact_sheet.Cell(grey if each.thumbnail is None else each.thumbnail, each.name, "", 0, ""))
        for row in rows[: columns - 1]:
            pixels, share = images.pixels(*row.place), max(0.0, 1 - row.distance)
            thumbnail = grey if pixels is None else pixels
            name = images.name(*row.place)
            cells.append(contact_sheet.Cell(thumbnail, name, row.label, share, f"{row.distance:.3f}"))
    note = images.absent or "distance: 0 is the same picture, 1 has nothing in common; the first of each line was asked"
    return contact_sheet.draw(cells, f"{near.cache.spec.dataset}: the nearest rows", note, columns)

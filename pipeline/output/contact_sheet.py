"""A contact sheet: thumbnails with what was found out about each, as one PNG."""

from __future__ import annotations

import io
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pipeline.data.dataset import Image as Pixels

THUMBNAIL = 160  # pixels a side, at most
MOST = 400  # thumbnails on a sheet: more would be a picture that few programs open
_GAP, _LINE = 16, 18
_MARGIN, _HEAD = 24, 56
_INK, _GREY, _BAR, _RAIL = (20, 20, 20), (110, 110, 110), (31, 119, 180), (225, 225, 225)


@dataclass(frozen=True)
class Cell:
    """A thumbnail, uint8 (h, w, 3), and what is said of it; ``share``, from 0 to 1, is a bar, and told beside it."""

    pixels: Pixels
    path: str
    label: str
    share: float
    told: str = ""


def draw(cells: Sequence[Cell], title: str, note: str, columns: int | None = None) -> bytes:
    """Draw a sheet under two lines of text, and give it as PNG bytes.

    The cells come in so many columns as they are; without a number they are sorted, by class and then the least share.
    """
    from pipeline.output import fonts  # late: it loads matplotlib

    order = list(cells) if columns else sorted(cells, key=lambda cell: (cell.label, cell.share))
    columns = columns or max(3, min(16, math.ceil(math.sqrt(len(cells)))))
    rows = math.ceil(len(cells) / columns)
    width, height = THUMBNAIL + _GAP, THUMBNAIL + 2 * _LINE + 10 + _GAP
    sheet = Image.new("RGB", (2 * _MARGIN + columns * width - _GAP, 2 * _MARGIN + _HEAD + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    captions = _captions([cell.path for cell in order])
    files = fonts.files_for("".join([title, *captions, *(cell.label for cell in cells)]))

    def pieces(text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, str]]:
        return [(ImageFont.truetype(file, size), piece) for file, piece in fonts.runs(text, files)]

    def write(
        place: tuple[float, float], text: str, size: int, colour: tuple[int, ...], room: float, **more: bool
    ) -> None:
        left, top = place
        text = _shorten(
            text, lambda text: sum(font.getlength(piece) for font, piece in pieces(text, size)), room, **more
        )
        baseline = top + ImageFont.truetype(fonts.DEJAVU, size).getmetrics()[0]
        for font, piece in pieces(text, size):
            pen.text((left, baseline), piece, colour, font, anchor="ls")
            left += font.getlength(piece)

    plain, room = ImageFont.truetype(fonts.DEJAVU, 13), sheet.width - 2 * _MARGIN
    write((_MARGIN, _MARGIN), title, 17, _INK, room)
    write((_MARGIN, _MARGIN + 26), note, 13, _GREY, room)
    for index, (cell, caption) in enumerate(zip(order, captions, strict=True)):
        left = _MARGIN + (index % columns) * width
        top = _MARGIN + _HEAD + (index // columns) * height
        picture = _thumbnail(cell.pixels)
        sheet.paste(picture, (left + (THUMBNAIL - picture.width) // 2, top + (THUMBNAIL - picture.height) // 2))
        below = top + THUMBNAIL + 4
        pen.rectangle((left, below, left + THUMBNAIL - 1, below + 3), _RAIL)
        pen.rectangle((left, below, left + round((THUMBNAIL - 1) * cell.share), below + 3), _BAR)
        write((left, below + 7), cell.label, 13, _INK, THUMBNAIL - 6 - pen.textlength(cell.told, plain))
        pen.text((left + THUMBNAIL, below + 7), cell.told, _INK, plain, anchor="ra")
        write((left, below + 7 + _LINE), caption, 11, _GREY, THUMBNAIL, keep_end=True)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _thumbnail(pixels: Pixels) -> Image.Image:
    """Small images grow by whole factors, so that their pixels are seen as they are; large ones shrink."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    factor = THUMBNAIL // max(image.size)
    if factor >= 2:
        return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _captions(paths: Sequence[str]) -> list[str]:
    """The end of each path that tells it from the others: its name, and as many folders as that takes."""
    parts, depths = [PurePath(path).parts for path in paths], [1] * len(paths)
    while True:
        ends = ["/".join(each[-depth:]) for each, depth in zip(parts, depths, strict=True)]
        count = Counter(ends)
        longer = [at for at, end in enumerate(ends) if count[end] > 1 and depths[at] < len(parts[at])]
        if not longer:
            return ends
        for at in longer:
            depths[at] += 1


def _shorten(text: str, length: Callable[[str], float], room: float, *, keep_end: bool = False) -> str:
    """Text that fits into so many pixels; what is left out shows as an ellipsis."""
    if length(text) <= room:
        return text
    while text and length(f"{text}…") > room:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"

"""A contact sheet: thumbnails with what was predicted for each, as one PNG."""

from __future__ import annotations

import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

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
    """A thumbnail, uint8 (h, w, 3), and what is to be said of it."""

    pixels: Pixels
    name: str
    label: str
    probability: float


def draw(cells: Sequence[Cell], title: str, note: str) -> bytes:
    """Draw a sheet and give it as PNG bytes.

    Parameters
    ----------
    cells : sequence of Cell
    title, note : str
        Two lines at the top.
    """
    columns = max(3, min(16, math.ceil(math.sqrt(len(cells)))))
    rows = math.ceil(len(cells) / columns)
    width, height = THUMBNAIL + _GAP, THUMBNAIL + 2 * _LINE + 10 + _GAP
    sheet = Image.new("RGB", (2 * _MARGIN + columns * width - _GAP, 2 * _MARGIN + _HEAD + rows * height), "white")
    pen = ImageDraw.Draw(sheet)
    bold, plain, small = _font(17, bold=True), _font(13), _font(11)
    room = sheet.width - 2 * _MARGIN
    pen.text((_MARGIN, _MARGIN), _shorten(title, bold, room), _INK, bold)
    pen.text((_MARGIN, _MARGIN + 26), _shorten(note, plain, room), _GREY, plain)
    for index, cell in enumerate(cells):
        left = _MARGIN + (index % columns) * width
        top = _MARGIN + _HEAD + (index // columns) * height
        picture = _thumbnail(cell.pixels)
        sheet.paste(picture, (left + (THUMBNAIL - picture.width) // 2, top + (THUMBNAIL - picture.height) // 2))
        percent = f"{100 * cell.probability:.0f} %"
        wide = round(pen.textlength(percent, plain))
        below = top + THUMBNAIL + 4
        pen.rectangle((left, below, left + THUMBNAIL - 1, below + 3), _RAIL)
        pen.rectangle((left, below, left + round((THUMBNAIL - 1) * cell.probability), below + 3), _BAR)
        pen.text((left, below + 7), _shorten(cell.label, plain, THUMBNAIL - wide - 6), _INK, plain)
        pen.text((left + THUMBNAIL - wide, below + 7), percent, _INK, plain)
        pen.text((left, below + 7 + _LINE), _shorten(cell.name, small, THUMBNAIL, keep_end=True), _GREY, small)
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


def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """DejaVu Sans, which matplotlib brings and which knows most alphabets; else Pillow's own."""
    package = importlib.util.find_spec("matplotlib")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "mpl-data" / "fonts" / "ttf" / f"DejaVuSans{'-Bold' if bold else ''}.ttf"
        if file.is_file():
            return ImageFont.truetype(str(file), size)
    return ImageFont.load_default(size)


def _shorten(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float, *, keep_end: bool = False
) -> str:
    """Text that fits into so many pixels; what is left out shows as an ellipsis."""
    if font.getlength(text) <= room:
        return text
    while text and font.getlength(f"{text}…") > room:
        text = text[1:] if keep_end else text[:-1]
    return f"…{text}" if keep_end else f"{text}…"

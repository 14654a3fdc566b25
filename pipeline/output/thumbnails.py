"""Small pictures that a page holds in itself, as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from pipeline.data.dataset import Image as Pixels

SIDE = 64  # pixels a side at most; smaller images stay as they are
QUALITY = 88  # of 100: no visible artefacts at this size
TILE, TILE_QUALITY = 40, 75  # of each of very many on one sheet
# For an image that cannot be had any more: a grey square with a stroke through it.
PLACEHOLDER = "data:image/svg+xml;base64," + base64.b64encode(
    b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><path fill="#8884" d="M0 0h64v64H0z"/>'
    b'<path stroke="#888" stroke-width="2" d="M20 44 44 20"/></svg>'
).decode("ascii")


def data_uri(kind: str, content: bytes) -> str:
    """An image of a kind, as ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def uri(pixels: Pixels | None) -> str:
    """An image, uint8 (h, w, 3), reduced to a thumbnail; the placeholder for None."""
    if pixels is None:
        return PLACEHOLDER
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((SIDE, SIDE))
    return _webp(picture, QUALITY)


def sheet(images: Sequence[Pixels | None]) -> tuple[str, int]:
    """Many images as tiles of one, row by row, and how many there are in a row; grey where there is None."""
    columns = max(1, math.ceil(math.sqrt(len(images))))
    whole = Image.new("RGB", (columns * TILE, max(1, math.ceil(len(images) / columns)) * TILE), (128, 128, 128))
    for number, pixels in enumerate(images):
        if pixels is not None:
            tile = Image.fromarray(np.ascontiguousarray(pixels))
            tile.thumbnail((TILE, TILE))
            left, top = number % columns * TILE, number // columns * TILE
            whole.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
    return _webp(whole, TILE_QUALITY), columns


def _webp(picture: Image.Image, quality: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return data_uri("webp", buffer.getvalue())

"""Small pictures that a page holds in itself, as data URIs."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from pipeline.data.dataset import Image as Pixels

SIDE = 64  # pixels a side at most; smaller images stay as they are
QUALITY = 88  # of 100: no visible artefacts at this size
TILE, TILE_QUALITY = 32, 50  # of each of very many on one sheet: about 0.2 kB each
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
    return data_uri("webp", _webp(_reduced(pixels, SIDE), QUALITY))


def columns(count: int) -> int:
    """How many of so many tiles are in a row of a sheet."""
    return max(1, math.ceil(math.sqrt(count)))


def sheet(get: Callable[[int], Pixels | None], count: int) -> tuple[bytes, bool]:
    """Many images as tiles of one, row by row, as WebP; grey where there is None, and whether there was none such.

    Each is asked for by its number and reduced at once: they are never all in memory at their own size.
    """
    whole = Image.new("RGB", (columns(count) * TILE, math.ceil(count / columns(count)) * TILE), (128, 128, 128))

    def tile(number: int) -> Image.Image | None:
        pixels = get(number)
        return None if pixels is None else _reduced(pixels, TILE)

    absent = 0
    with ThreadPoolExecutor() as pool:
        for number, picture in enumerate(pool.map(tile, range(count))):
            if picture is None:
                absent += 1
                continue
            left, top = number % columns(count) * TILE, number // columns(count) * TILE
            whole.paste(picture, (left + (TILE - picture.width) // 2, top + (TILE - picture.height) // 2))
    return _webp(whole, TILE_QUALITY), not absent


def _reduced(pixels: Pixels, side: int) -> Image.Image:
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((side, side))
    return picture


def _webp(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()

"""Images that show nothing, or hardly anything: blank, tiny, or of an extreme shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from pipeline.data.dataset import Image

BLANK = 3.0  # standard deviation of the pixels, of 255, up to which nothing is to be seen
TINY = 16  # pixels of the shorter side, below which little is, if most images of the set have twice as many
LONG = 5.0  # times as long as wide


class Look(NamedTuple):
    """Size in pixels, and the standard deviation of the pixels, from 0 to 128."""

    height: int
    width: int
    contrast: float


def look(pixels: Image | None) -> Look | None:
    """Look at an image, if it is there."""
    return None if pixels is None else Look(pixels.shape[0], pixels.shape[1], float(pixels.std()))


def faults(seen: Sequence[Look]) -> list[tuple[int, str]]:
    """Which of a set's images are dull, by their numbers, and why."""
    usual = float(np.median([min(each.height, each.width) for each in seen])) if seen else 0.0
    found = []
    for row, (height, width, contrast) in enumerate(seen):
        short, long = sorted((height, width))
        if contrast <= BLANK:
            found.append((row, f"blank: pixels differ by {contrast:.1f} of 255"))
        elif short < TINY and 2 * short <= usual:
            found.append((row, f"tiny: {width} by {height} pixels"))
        elif long > LONG * short:
            found.append((row, f"extreme shape: {width} by {height} pixels"))
    return found

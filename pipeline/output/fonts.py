"""Fonts for names in any script: DejaVu Sans, which matplotlib brings, then what this machine has for the rest."""

from __future__ import annotations

import functools
import itertools
import logging
import sys
from collections.abc import Collection, Sequence

import matplotlib
from matplotlib.font_manager import findSystemFonts
from matplotlib.ft2font import FT2Font

log = logging.getLogger("pipeline")

DEJAVU = f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf"


def files_for(text: str) -> tuple[str, ...]:
    """Font files that together have the characters of a text, as far as there are any; DejaVu Sans first."""
    return (DEJAVU, *_besides(_lacking(DEJAVU, {character for character in text if character > "\x7f"})))


def runs(text: str, files: Sequence[str]) -> list[tuple[str, str]]:
    """A text in pieces, each with the first of some font files that has it, for what draws in one font at a time."""
    if len(files) == 1:
        return [(files[0], text)]
    lacking = {file: _lacking(file, set(text)) for file in files}
    found = [next((file for file in files if each not in lacking[file]), files[0]) for each in text]
    pieces = itertools.groupby(zip(found, text, strict=True), key=lambda item: item[0])
    return [(file, "".join(each for _, each in items)) for file, items in pieces]


def _lacking(file: str, characters: Collection[str]) -> frozenset[str]:
    """Those of some characters that a font file has not; all, where it cannot be read."""
    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):  # of bitmaps, or broken
        return frozenset(characters)
    return frozenset(each for each in characters if each.isprintable() and not font.get_char_index(ord(each)))


@functools.cache
def _besides(missing: frozenset[str]) -> tuple[str, ...]:
    """Font files for what DejaVu Sans lacks, and a warning of what none has.

    They are looked for among the files that there are now: matplotlib's own list is from when it was first used.
    """
    found: list[str] = []
    # Regular faces first: which come first count among equals.
    files = sorted(findSystemFonts(), key=lambda file: ("Regular" not in file, file)) if missing else []
    while files and missing:
        best = min(files, key=lambda file: len(_lacking(file, missing)))
        rest = _lacking(best, missing)
        if rest == missing:
            break
        missing = rest
        found.append(best)
    if missing:
        log.warning(
            "warning: no font on this machine has the characters %s: boxes stand for them in pictures. Put a font that "
            "has them, such as one of https://fonts.google.com/noto, into %s (a .ttf or .otf file is all it takes) and "
            "run the same command again, train with --force",
            "".join(sorted(missing)), "~/Library/Fonts" if sys.platform == "darwin" else "~/.local/share/fonts",
        )  # fmt: skip
    return tuple(found)

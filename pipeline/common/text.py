"""Values as text: for people, and for programs that read what is written."""

from __future__ import annotations

import csv
import difflib
import io
import itertools
import json
import os
import re
import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any


def to_json(value: Any) -> bytes:
    """Readable JSON, as bytes, ending in a line feed."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8")


def to_csv(header: Iterable[str], rows: Iterable[Iterable[Any]]) -> bytes:
    """CSV as bytes, with line feeds."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode("utf-8")


# --- what fits a terminal ---------------------------------------------------------------------


def terminal_width() -> int:
    """Columns of the terminal, as ``COLUMNS`` or itself says; 80 where there is none."""
    return shutil.get_terminal_size().columns


def padded(text: str) -> str:
    """As many characters as the text takes columns: after each that takes two, as Chinese do, a NUL to be removed."""
    return "".join(c + "\0" * (unicodedata.east_asian_width(c) in "WF") for c in text)


def shorten(text: str, most: int) -> str:
    """Fit a name into columns by leaving out its middle: names that begin alike mostly end otherwise."""
    wide = padded(text)
    if len(wide) <= most:
        return text
    tail = max(0, most - 1) // 2
    return f"{wide[: max(0, most - 1 - tail)]}…{wide[len(wide) - tail :]}".replace("\0", "")


def wrap(text: str, most: int | None = None) -> str:
    """Break lines at spaces where they are wider than a terminal; paths stay whole, and labels stand alone."""
    most = most or terminal_width()
    lines = []
    for line in text.splitlines():
        label = re.match(r"\s*(\S+( \S+)*  +)?", line)
        indent = min(len(label[0]), most // 3) if label else 0
        lines += textwrap.wrap(
            padded(line), most, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
        ) or [""]
    return "\n".join(lines).replace("\0", "") + "\n" * text.endswith("\n")


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells under a header, those that look like numbers to the right, as wide as the terminal at most.

    A column without a value is left out, and where it takes that the widest texts are shortened in their middle.
    """
    used = [at for at in range(len(header)) if not rows or any(row[at] for row in rows)]
    numbers = [all(row[at][:1] in "–0123456789" for row in rows) for at in used]
    return aligned([[row[at] for at in used] for row in (header, *rows)], numbers, terminal_width())


def aligned(rows: Sequence[Sequence[str]], numbers: Sequence[bool] = (), most: int = sys.maxsize) -> str:
    """Lay out cells in columns as wide as their widest; see `text_table`. Rows may be of different lengths."""
    widths = [max(map(len, map(padded, cells))) for cells in itertools.zip_longest(*rows, fillvalue="")]
    numbers = numbers or [False] * len(widths)
    texts = [at for at in range(len(widths)) if not numbers[at]]
    while texts and sum(widths) + 2 * (len(widths) - 1) > most:
        widest = max(texts, key=widths.__getitem__)
        if widths[widest] <= 8:
            break
        widths[widest] -= 1
    lines = []
    for row in rows:
        cells = zip(row, widths, numbers, strict=False)
        fitted = [(padded(shorten(cell, width)), width, number) for cell, width, number in cells]
        line = "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in fitted)
        lines.append(line.rstrip().replace("\0", "") + "\n")
    return "".join(lines)


# --- one way to write each thing --------------------------------------------------------------


def percent(share: float | None, digits: int = 2) -> str:
    """A share between 0 and 1 as ``85.04 %``; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{digits}f} %"


def interval(pair: Sequence[float]) -> str:
    """Two shares as ``84.33 to 85.73 %``."""
    return f"{100 * pair[0]:.2f} to {percent(pair[1])}"


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """`` Did you mean X?`` of the nearest name, to follow a sentence; "" where none is near."""
    names = {name.lower(): name for name in known}
    near = difflib.get_close_matches(given.lower(), names, n=1)
    return f" Did you mean {names[near[0]]}?" if near else ""


def printable(name: str) -> str:
    r"""A file name for people: bytes that are not UTF-8, and control characters, as ``\xNN``."""
    text = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def count_of_files(number: int) -> str:
    """``1 file``, ``2 files``."""
    return f"{number:,} {'file' if number == 1 else 'files'}"


def number(value: float | None, form: str, without: str = "–") -> str:
    """A score as ``form`` has it, or what stands for one that there is not: where no test row is left."""
    return without if value is None else format(value, form)

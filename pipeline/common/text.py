"""Values as text: for people, and for programs that read what is written."""

from __future__ import annotations

import csv
import io
import json
import os
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


def text_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out cells in columns as wide as their widest; those that look like numbers stand to the right."""
    widths = [max(len(row[index]) for row in (header, *rows)) for index in range(len(header))]
    numbers = [all(row[index][:1].isdigit() or not row[index] for row in rows) for index in range(len(header))]
    lines = [
        "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        ).rstrip()
        for row in (header, *rows)
    ]
    return "\n".join(lines) + "\n"


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

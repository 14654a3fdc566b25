"""Labels from a table: a CSV file with a row for each image of a folder.

file,label,split,group
scans/0001.jpg,oak,train,tree-17

``split`` and ``group`` may be missing. What separates the columns is found out: comma, semicolon, tab or bar.
"""

from __future__ import annotations

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import did_you_mean, printable
from pipeline.data.dataset import Skipped
from pipeline.data.options import TABLE_COLUMNS

SEPARATORS = ",;\t|"
SPLITS = ("train", "test")


class Entry(NamedTuple):
    """What a table says of a file, by its path in the folder."""

    file: str
    label: str
    split: str  # "" where the table has no splits
    group: str  # "" where it has no groups, or says none


def read(
    path: Path, columns: Mapping[str, str], folder: Path, plain: Callable[[str], str]
) -> tuple[list[Entry], list[Skipped]]:
    """Read a table; return what it says of each file, and which of its rows cannot be used.

    ``columns`` are the names of those of `TABLE_COLUMNS` that it calls otherwise; its paths are relative to ``folder``,
    and ``plain`` gives the one form of each in which equal ones are equal. Raises UserError when it is no such table.
    """
    found: dict[str, list[tuple[int, Entry]]] = defaultdict(list)
    skipped = []
    inside = os.path.abspath(folder)  # noqa: PTH100 - links stay as they are
    for line, row in _rows(path, columns):
        given = row["file"]
        file = os.path.relpath(os.path.join(inside, given), inside)  # noqa: PTH118
        split = row["split"].lower()
        if not given:
            reason = "no file is named"
        elif file.partition(os.sep)[0] == os.pardir:
            reason = "a path out of the folder"
        elif not row["label"]:
            reason = "an empty label"
        elif split not in ("", *SPLITS):
            reason = f"the split {printable(row['split'])} is neither train nor test"
        else:
            found[plain(file)].append((line, Entry(file, row["label"], split, row["group"])))
            continue
        skipped.append(Skipped(given or path.name, f"{reason}, in line {line} of the table"))
    entries = []
    for name, each in found.items():
        if len(each) > 1:  # also where both say the same: which of two was meant is not for a program to guess
            lines = ", ".join(str(line) for line, _ in each)
            skipped.append(Skipped(each[0][1].file, f"more than once in the table, in lines {lines}"))
        else:
            entries.append(each[0][1]._replace(file=name))
    if any(entry.split for entry in entries):
        unsplit = [entry for entry in entries if not entry.split]
        skipped += [Skipped(entry.file, "the table has splits, but none for this file") for entry in unsplit]
        entries = [entry for entry in entries if entry.split]
        absent = set(SPLITS) - {entry.split for entry in entries}
        if absent:
            raise UserError(
                f"The table {path} has no row whose split is {absent.pop()}. Add some, or leave the column away: a "
                f"fifth of the images is test then."
            )
    return entries, skipped


def _rows(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Number of each line and its cells, by `TABLE_COLUMNS`."""
    with file_errors("read the table", path):
        content = path.read_bytes()
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"The table {path} is not UTF-8 text: byte {error.start + 1:,} is none of it. Save it as 'CSV UTF-8'."
        ) from error
    wanted = {name: columns.get(name, name) for name in TABLE_COLUMNS}
    needed = {wanted["file"], wanted["label"], *columns.values()}
    headers = {
        separator: [name.strip() for name in next(csv.reader(io.StringIO(text, newline=""), delimiter=separator), [])]
        for separator in SEPARATORS
    }
    separator = next((each for each, header in headers.items() if needed <= set(header)), "")
    if not separator:
        best = max(headers.values(), key=len)
        missing = sorted(needed - set(best))
        raise UserError(
            f"The table {path} has no column {' and no column '.join(missing)}. Its first line has the columns "
            f"{', '.join(map(printable, best)) or 'none'}.{did_you_mean(missing[0], best)} Say what it calls them with "
            f"--table-columns, as in --table-columns file=path,label=class."
        )
    header = headers[separator]
    repeated = {name for name in wanted.values() if header.count(name) > 1}
    if repeated:
        raise UserError(f"The table {path} has the column {repeated.pop()} twice. Rename one.")
    places = {name: header.index(called) for name, called in wanted.items() if called in header}
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        for line, cells in enumerate(reader, 1):
            if line == 1 or not any(map(str.strip, cells)):
                continue  # the header, or an empty line
            if len(cells) != len(header):
                raise UserError(
                    f"The table {path} must have {len(header)} cells in each line. Line {line} has {len(cells)}: put "
                    f"quotation marks around a cell that has the separator in it."
                )
            yield line, {name: cells[places[name]].strip() if name in places else "" for name in TABLE_COLUMNS}
    except csv.Error as error:
        raise UserError(
            f"The table {path} cannot be read as CSV: {error}, in line {reader.line_num}. Look for a quotation "
            f"mark that is opened and not closed."
        ) from error

"""Rows that a run is to do without, by what an audit found and a person left in its table.

output/audit-<key>/audit.csv         what to look at; `train --exclude` fits without the rows that it lists
                   duplicates.csv    all pairs of near duplicates, for `train --drop-duplicates`
"""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.features import arrays, store
from pipeline.features.layout import SPLITS
from pipeline.models.history import Samples
from pipeline.selection.copies import Grouping
from pipeline.selection.options import TrainOptions

Row = tuple[str, int]  # a split, and a number in it

COLUMNS = ("issue", "score", "split", "row", "file", "label", "suggestion", "data")  # of audit.csv
PAIR_COLUMNS = ("split_1", "row_1", "split_2", "row_2", "distance")


def mark(dataset_digest: str) -> str:
    """What `audit` writes into each row, so that the table of another data set is told; no spreadsheet alters it."""
    return f"sha256:{dataset_digest[:16]}"


@dataclass(frozen=True)
class LeftOut:
    """What a run does without."""

    rows: frozenset[Row] = frozenset()  # neither fitted nor validated on
    pairs: list[tuple[Row, Row]] = field(default_factory=list)  # near duplicates: never on two sides
    source: Mapping[str, str] = field(default_factory=dict)  # which tables say so

    def keyed(self) -> dict[str, Any]:
        """What of it changes a run's result; nothing where nothing is left out."""
        found = {"excluded": sorted(self.rows), "near_duplicates": sorted(self.pairs)}
        return {name: digest_of(rows) for name, rows in found.items() if name in self.source}

    def kept(self, splits: Mapping[str, int]) -> NDArray[np.intp]:
        """Numbers of the rows that are left, ascending, of splits of so many rows one after the other."""
        stay = [np.ones(count, bool) for count in splits.values()]
        for split, row in self.rows:
            if split in splits and row < splits[split]:  # a cache of fewer rows has not all that the table lists
                stay[list(splits).index(split)][row] = False
        return np.flatnonzero(np.concatenate(stay))

    def samples(self, cache: store.Cache, taps: tuple[str, ...], grouping: Grouping, *, test: bool = False) -> Samples:
        """The rows of train that are left, with the columns of ``taps``; behind them those of ``test``, if wanted."""
        rows, labels = arrays.load_all(cache, taps) if test else arrays.load_split(cache, "train", taps)
        data = Samples(rows, labels, grouping.groups[: len(labels)], grouping.images[: len(labels)])
        return data.taken(self.kept(cache.rows if test else {"train": len(labels)})) if self.rows else data

    def joined(self, grouping: Grouping) -> Grouping:
        """The same groups, in which near duplicates are copies of one image."""
        if not self.pairs:
            return grouping
        from pipeline.selection.splits import join_groups  # late: it loads scikit-learn

        first = {"train": 0, "test": grouping.train}
        sizes = {"train": grouping.train, "test": len(grouping.images) - grouping.train}
        places = [
            [first[split] + row for split, row in pair]
            for pair in self.pairs
            if all(row < sizes[split] for split, row in pair)
        ]
        linked = np.array(places, np.intp).reshape(-1, 2)
        images, groups = (join_groups(each, linked=linked) for each in (grouping.images, grouping.groups))
        return dataclasses.replace(grouping, images=images, groups=groups)


def read(options: TrainOptions, dataset_digest: str) -> LeftOut:
    """Read what is asked for.

    Raises UserError when the table is none, is of another data set, or no audit of the data set is there.
    """
    rows: frozenset[Row] = frozenset()
    pairs: list[tuple[Row, Row]] = []
    source = {}
    if options.exclude is not None:
        rows, source["excluded"] = _excluded(options.exclude, dataset_digest), str(options.exclude)
    if options.drop_duplicates:
        path = _pairs_of(options.output_dir, dataset_digest)
        source["near_duplicates"] = str(path)
        pairs = [
            ((line["split_1"], int(line["row_1"])), (line["split_2"], int(line["row_2"])))
            for line in _lines(path, PAIR_COLUMNS)
        ]
    return LeftOut(rows, pairs, source)


def _excluded(path: Path, dataset_digest: str) -> frozenset[Row]:
    found = set()
    for number, line in enumerate(_lines(path, ("split", "row", "data")), 2):
        if line["data"] != mark(dataset_digest):
            raise UserError(
                f"The table {path} is of another data set: line {number} has {line['data'] or 'no digest'}, the data "
                f"set that is asked for is {mark(dataset_digest)}. Name the audit of this one, or make it with "
                f"'python -m pipeline audit'."
            )
        if line["split"] not in SPLITS or not line["row"].isdigit():
            raise UserError(
                f"The table {path} must name a split and a row in each line, as in train and 12. Line {number} has "
                f"{line['split']!r} and {line['row']!r}."
            )
        found.add((line["split"], int(line["row"])))
    return frozenset(found)


def _lines(path: Path, needed: tuple[str, ...]) -> list[dict[str, str]]:
    """Lines of a CSV file with a header, as a spreadsheet may have saved it."""
    with file_errors("read the table", path), open(path, encoding="utf-8-sig", errors="replace", newline="") as stream:
        text = stream.read().splitlines()
    for separator in ",;\t":
        table = csv.DictReader(text, delimiter=separator, restval="")
        if set(needed) <= set(table.fieldnames or ()):
            return list(table)
    raise UserError(
        f"The table {path} is none that audit wrote: it must have the columns {', '.join(needed)}. Make one with "
        f"'python -m pipeline audit'."
    )


def _pairs_of(output_dir: Path, dataset_digest: str) -> Path:
    """The pairs of near duplicates of the newest audit of a data set."""
    found = []
    for path in output_dir.glob("audit-*/audit.json"):
        try:
            about = json.loads(path.read_bytes())
            if about["dataset"]["digest"] == dataset_digest:
                found.append((about["created"], path.parent / "duplicates.csv"))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    if not found:
        raise UserError(
            f"There is no audit of this data set in {output_dir} that says which images are near duplicates. Make it "
            f"with 'python -m pipeline audit', and the same flags for the data."
        )
    return max(found)[1]

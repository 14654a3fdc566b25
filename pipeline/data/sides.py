"""Which side each file of a folder is on, and what must be left out so that a result is right.

Where there is no test split, one is made: in each class, every image has a place by the sha256 of its bytes, and the
first fifth is test. So it is stratified, the same on every machine and under every file name; an image that comes or
goes moves at most one other of its class; and copies of an image are always on the same side. Images of one group are
on one side, too: each group has one place, by the smallest digest in it.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.text import printable
from pipeline.data.dataset import Skipped

log = logging.getLogger("pipeline")

SPLITS = ("train", "test")
TEST_SHARE = 0.2  # of a made split
LEAST_MADE = 3  # images of a class: two to train, of which one validates, and one to test
LEAST_TRAIN = 2


class File(NamedTuple):
    """A file of a class: its path inside the folder, as in `RowIds`, and what its bytes are."""

    split: str  # "" where the folder has no splits
    label: str
    name: str
    digest: bytes = b""
    group: str = ""  # of images that must not be parted


def without_copies(files: Sequence[File], *, made: bool) -> tuple[list[File], list[Skipped]]:
    """Leave out what would make a result wrong: leaks of test into train, and images under two labels."""
    groups: dict[bytes, list[File]] = defaultdict(list)
    for file in files:
        groups[file.digest].append(file)
    kept: list[File] = []
    skipped: list[Skipped] = []
    copies = 0
    for group in groups.values():
        train = [file for file in group if file.split != "test"]
        test = [file for file in group if file.split == "test"]
        if train:
            where = printable(train[0].name)
            skipped += [Skipped.leak(file.name, f"the same bytes as {where}") for file in test]
            test = []
        for side in (train, test):
            if len({file.label for file in side}) > 1:
                for file in side:
                    other = next(printable(other.name) for other in side if other is not file)
                    reason = f"a conflict: the same bytes under two classes, as {other}"
                    skipped.append(Skipped(file.name, reason))
            else:
                kept += side
                copies += max(0, len(side) - 1)
    if copies:
        log.warning(
            "warning: %s that are copies of others of their class are used, %s", f"{copies:,} images",
            "always on the same side of the split" if made else "each within its split",
        )  # fmt: skip
    return kept, skipped


def without_shared_groups(files: Sequence[File]) -> tuple[list[File], list[Skipped]]:
    """Leave out of a given test split what has a group that train has, too: leaks."""
    train = {file.group: file.name for file in reversed(files) if file.split == "train" and file.group}
    shared = {file.name: file.group for file in files if file.split == "test" and file.group in train}
    leaks = [
        Skipped.leak(name, f"of the group {printable(group)}, as {printable(train[group])} of train")
        for name, group in shared.items()
    ]
    return [file for file in files if file.name not in shared], leaks


def units_of(files: Sequence[File]) -> dict[bytes, bytes]:
    """Of each digest the smallest of those that must be on its side: copies, and images of one group."""
    above: dict[bytes | str, bytes | str] = {}

    def top(each: bytes | str) -> bytes | str:
        while above.setdefault(each, each) != each:
            above[each] = each = above[above[each]]
        return each

    for file in files:
        if file.group:
            above[top(file.digest)] = top(file.group)
    smallest: dict[bytes | str, bytes] = {}
    for file in files:
        smallest[top(file.digest)] = min(file.digest, smallest.get(top(file.digest), file.digest))
    return {file.digest: smallest[top(file.digest)] for file in files}


def make_split(files: Sequence[File], units: Mapping[bytes, bytes]) -> list[File]:
    """Put the first fifth of each class's units, by the order of salted digests, into test."""
    size = Counter(file.label for file in files)
    of: dict[str, set[bytes]] = defaultdict(set)
    rarest = {units[file.digest]: file.label for file in sorted(files, key=lambda file: -size[file.label])}
    for unit, label in rarest.items():  # a group of several classes counts as one of its rarest
        of[label].add(unit)
    test: set[bytes] = set()
    for own in of.values():
        order = sorted(own, key=lambda unit: hashlib.sha256(b"test" + unit).digest())
        test.update(order[: max(1, round(TEST_SHARE * len(order)))])
    return [file._replace(split="test" if units[file.digest] in test else "train") for file in files]


def check_counts(
    folder: Path, files: Sequence[File], classes: Sequence[str], units: Mapping[bytes, bytes], *, made: bool
) -> None:
    """Refuse classes of too few images, or groups, to train and test on."""
    different: dict[tuple[str, str], set[bytes]] = defaultdict(set)
    for file in files:
        different[file.split, file.label].add(units[file.digest])
    few = []
    for label in classes:
        train, test = (len(different[split, label]) for split in SPLITS)
        if made and train + test < LEAST_MADE:
            few.append(f"{label} ({train + test})")
        elif train < LEAST_TRAIN:
            few.append(f"{label} ({train} in train)")
    if few:
        what = "images of different groups" if any(file.group for file in files) else "different images"
        needed = (
            f"{LEAST_MADE} {what}: two to train on, of which one validates, and one to test"
            if made
            else f"{LEAST_TRAIN} {what} in train, of which one validates"
        )
        raise UserError(
            f"Every class in {folder} must have at least {needed}. Fewer that can be used were found for "
            f"{', '.join(few)}. Add images, or move these classes away."
        )
    untested = [label for label in classes if not different["test", label]]
    if untested:
        log.warning("warning: test has no image of %s, so nothing will be said of it", ", ".join(untested))

"""Which rows are copies of one image or of one group, and their numbers, kept so that a run is found at once.

output/copies/<features key>.json    rows and distinct images of each split
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.text import to_json
from pipeline.features import store
from pipeline.features.layout import SPLITS
from pipeline.network.taps import TAP_COLUMNS

Rows = NDArray[np.intp]

FOLDER = "copies"
BLOCK_ROWS = 16384  # that are read together: memory does not grow with rows
# Part of a run's key: another number means that the same inputs give another result. Rows without copies give what
# they always gave, so that their runs are found.
PROTOCOL, PROTOCOL_WITH_COPIES = 2, 3


@dataclass(frozen=True)
class Grouping:
    """Which rows, those of train first, belong together: those with equal numbers (n,)."""

    images: Rows  # they are copies of one image, of which one is scored
    groups: Rows  # a split must not part them: copies, and groups of one's own
    own: bool  # whether there are groups of one's own
    train: int  # how many rows are of train


@dataclass(frozen=True)
class Images:
    """How many rows and how many distinct images there are."""

    rows: Mapping[str, int]  # of each split
    distinct: Mapping[str, int]
    shared: int  # distinct images of test that are in train, too
    groups: Mapping[str, int] | None = None  # of one's own, and of images without one; None where there are none

    @property
    def protocol(self) -> int:
        """The number in the key of a run on these rows."""
        return PROTOCOL if self.rows == self.distinct else PROTOCOL_WITH_COPIES


def group(cache: store.Cache, choices: Sequence[tuple[str, ...]]) -> Grouping:
    """Which rows are copies of one image, and which are of one group.

    They are of one image where its digest is the same, or all features, bit for bit, of one of ``choices`` of taps: the
    network saw the same pixels then.
    """
    from pipeline.selection.splits import join_groups  # late: a run that is there is found without scikit-learn

    labelings = [_alike(cache, taps) for taps in choices]
    named: list[str] = []
    if cache.has_members:
        members = [cache.members(split) for split in SPLITS]
        digests = np.concatenate([who.digests for who in members])
        labelings.append(np.unique(digests.view((np.void, digests.shape[1])).ravel(), return_inverse=True)[1])
        named = [name for who in members for name in who.groups]

    images = joined = join_groups(*labelings)
    if named:
        numbers = {name: number for number, name in enumerate(named) if name}
        joined = join_groups(images, np.array([numbers.get(name, -1 - row) for row, name in enumerate(named)]))
    return Grouping(images, joined, own=bool(named), train=cache.rows["train"])


def _alike(cache: store.Cache, taps: tuple[str, ...]) -> NDArray[np.int64]:
    """Numbers (n,) of the rows of both splits, equal where all features are; more taps are read only where it takes."""
    train, total = cache.rows["train"], sum(cache.rows[split] for split in SPLITS)
    numbers, left = -1 - np.arange(total), np.arange(total)  # rows that may yet have a copy
    found = np.zeros(total, np.int64)
    for tap in sorted(taps, key=TAP_COLUMNS.__getitem__):
        hashes = np.zeros(len(left), np.int64)
        for start in range(0, len(left), BLOCK_ROWS):
            rows = left[start : start + BLOCK_ROWS]
            values = [
                row
                for split, own in (("train", rows[rows < train]), ("test", rows[rows >= train] - train))
                for _, block in cache.feature_rows(split, [tap]).take(own).blocks(BLOCK_ROWS)
                for row in block
            ]
            hashes[start : start + len(rows)] = [
                int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little", signed=True) for row in values
            ]
        both = np.stack([found[left], hashes])
        _, same, count = np.unique(both, axis=1, return_inverse=True, return_counts=True)
        found[left] = same
        left = left[count[same] > 1]
        if not len(left):
            break
    numbers[left] = found[left]
    return numbers


def count(grouping: Grouping) -> Images:
    """Count what `group` found."""
    images, groups = (np.split(each, [grouping.train]) for each in (grouping.images, grouping.groups))

    def of_splits(counts: Iterable[int]) -> dict[str, int]:
        return dict(zip(SPLITS, counts, strict=True))

    return Images(
        of_splits(map(len, images)),
        of_splits(len(np.unique(each)) for each in images),
        len(np.intersect1d(images[0], images[1])),
        of_splits(len(np.unique(each)) for each in groups) if grouping.own else None,
    )


def recall(output_dir: Path, features: str) -> Images | None:
    """What is remembered of the rows of a features key; None when nothing is."""
    try:
        return Images(**json.loads(_path(output_dir, features).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


def remember(output_dir: Path, features: str, images: Images) -> None:
    """Keep what was counted; where it cannot be written it is counted again next time."""
    with contextlib.suppress(OSError):
        atomic.make_folder(output_dir / FOLDER)
        atomic.write_atomically(_path(output_dir, features), to_json(asdict(images)))


def _path(output_dir: Path, features: str) -> Path:
    return output_dir / FOLDER / f"{features[:16]}.json"

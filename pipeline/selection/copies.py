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
    """Numbers (n,) of the rows of both splits, equal where all features are.

    All taps are read only of rows that have the smallest one in common with another.
    """
    every = np.arange(sum(cache.rows[split] for split in SPLITS))
    found = _hashes(cache, [min(taps, key=TAP_COLUMNS.__getitem__)], every)
    _, same, count = np.unique(found, return_inverse=True, return_counts=True)
    doubtful = np.flatnonzero(count[same] > 1)
    found[doubtful] = _hashes(cache, taps, doubtful)
    return found


def _hashes(cache: store.Cache, taps: Sequence[str], rows: Rows) -> NDArray[np.int64]:
    """64 bits of the features of rows (n,), ascending."""
    train = cache.rows["train"]
    found = [
        hashlib.blake2b(row, digest_size=8).digest()
        for split, own in (("train", rows[rows < train]), ("test", rows[rows >= train] - train))
        for _, block in cache.feature_rows(split, taps).take(own).blocks(BLOCK_ROWS)
        for row in block
    ]
    return np.frombuffer(b"".join(found), np.int64).copy()


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

"""Cached features as two arrays, for notebooks and scripts.

>>> from pipeline import load_features
>>> X, y = load_features("features/digits-vgg16-64px-….h5", taps="top")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.text import did_you_mean, printable
from pipeline.features import store
from pipeline.network.taps import parse_taps
from pipeline.selection import copies, splits

# What can be asked for, and the split of the file that it is, or is a part of.
ROWS = {"train": "train", "test": "test", "fit": "train", "validation": "train"}


def load_features(
    file: str | Path | Sequence[str | Path],
    split: str = "train",
    taps: str | Sequence[str] | None = None,
    *,
    seed: int = 0,
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Read rows of a feature file, after every byte of the file has been verified.

    Parameters
    ----------
    file : str or Path, or a sequence of these
        A cache that ``features`` wrote. Of several, which must hold the same images, the columns stand side by side, in
        their order; rows are those of the first, found in the others by their digests or, without, their numbers.
    split : {'train', 'test', 'fit', 'validation'}
        ``validation`` are the rows of train that `train` chooses by, of the first file and under the same taps and
        seed, and ``fit`` all those that it fits on meanwhile. Both ascend.
    taps : str or sequence of str, optional
        ``all``, ``top``, names separated by commas, or a sequence of names; all that a file has when left out.
        Columns are in network order.
    seed : int
        Of the validation split.

    Returns
    -------
    X : ndarray, float32 (n, columns)
    y : ndarray, uint8 or int64 (n,)
        Labels; `class_names` says what they mean, `row_names` which images they are of.

    Raises
    ------
    UserError
        When there is no such file, it does not verify, or has not what was asked for; or files hold different images.
    """
    paths = [file] if isinstance(file, str | Path) else list(file)
    if not paths:
        raise UserError("The file parameter must name a feature file, or several. Got an empty sequence.")
    with ExitStack() as stack:
        caches = [stack.enter_context(store.open(Path(path))) for path in paths]
        rows = _rows(caches[0], split, taps, seed)
        source = ROWS[split]
        blocks = [
            cache.features(source, _taps(cache, taps))[cache.places_of(caches[0], source)][rows] for cache in caches
        ]
        return np.hstack(blocks) if len(blocks) > 1 else blocks[0], caches[0].labels(source)[rows]


def row_names(
    file: str | Path, split: str = "train", taps: str | Sequence[str] | None = None, *, seed: int = 0
) -> NDArray[np.str_]:
    """Which image each row is of that `load_features` gives for the same parameters.

    Returns
    -------
    ndarray of str (n,)
        Path of the image's file inside its data set; where rows are no files, their numbers in train or test.
    """
    with store.open(Path(file)) as cache:
        rows, source = _rows(cache, split, taps, seed), ROWS[split]
        numbers = np.arange(cache.rows[source])[rows]
        return np.array(
            [printable(cache.members(source).names[row]) for row in numbers] if cache.has_members else numbers, np.str_
        )


def _taps(cache: store.Cache, taps: str | Sequence[str] | None) -> tuple[str, ...]:
    return cache.spec.taps if taps is None else parse_taps(taps)


def _rows(cache: store.Cache, split: str, taps: str | Sequence[str] | None, seed: int) -> Any:
    """What of its split of the file is asked for, as an index."""
    if split not in ROWS:
        raise UserError(
            f"The split parameter must be one of {', '.join(ROWS)}. Got {split!r}.{did_you_mean(str(split), ROWS)}"
        )
    if split == ROWS[split]:
        return slice(None)
    grouping = copies.group(cache, [_taps(cache, taps)])
    groups, images = grouping.groups[: grouping.train], grouping.images[: grouping.train]
    parts = splits.split(cache.labels("train"), groups, seed, cache.class_names, images)
    return np.sort(parts.fit if split == "fit" else parts.held_out)

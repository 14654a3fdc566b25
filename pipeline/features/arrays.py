"""Cached features as two arrays, for notebooks and scripts.

>>> from pipeline import load_features
>>> X, y = load_features("features/digits-vgg16-64px-….h5", taps="top")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.progress import Progress
from pipeline.features import layout, store
from pipeline.features.rows import FeatureRows
from pipeline.network.taps import parse_taps


def load_features(
    file: str | Path, split: str = "train", taps: str | Sequence[str] | None = None
) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """Read a split of a feature file, after every byte of the file has been verified.

    Parameters
    ----------
    file : str or Path
        A cache that ``features`` wrote.
    split : {'train', 'test'}
    taps : str or sequence of str, optional
        ``all``, ``top``, names separated by commas, or a sequence of names; all that the file has when left out.
        Columns are in network order.

    Returns
    -------
    X : ndarray, float32 (n, columns)
    y : ndarray, uint8 or int64 (n,)
        Labels; `class_names` says what they mean.

    Raises
    ------
    UserError
        When there is no such file, it does not verify, or has not what was asked for.
    """
    if split not in layout.SPLITS:
        raise UserError(f"The split parameter must be one of {', '.join(layout.SPLITS)}. Got {split!r}.")
    with store.open(Path(file)) as cache:
        wanted = cache.spec.taps if taps is None else parse_taps(taps if isinstance(taps, str) else ",".join(taps))
        return cache.features(split, wanted), cache.labels(split)


def class_names(file: str | Path) -> tuple[str, ...]:
    """What the labels of a feature file mean: label ``i`` is ``class_names(file)[i]``."""
    with store.open(Path(file)) as cache:
        return cache.class_names


def load_split(cache: store.Cache, split: str, taps: tuple[str, ...]) -> tuple[FeatureRows, NDArray[Any]]:
    """Features (n, columns) and labels (n,) of a split, read with progress if they fit into memory."""
    features = cache.feature_rows(split, taps)
    with Progress(f"reading {split}", features.nbytes, "B", scale=True) as progress, store.read_errors(cache.path):
        return features.in_memory(progress.update), cache.labels(split)

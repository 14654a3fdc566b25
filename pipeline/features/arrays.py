"""What stage two and scripts read of a feature file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.progress import Progress
from pipeline.features import store
from pipeline.features.layout import SPLITS
from pipeline.features.rows import FeatureRows


def class_names(file: str | Path) -> tuple[str, ...]:
    """What the labels of a feature file mean: label ``i`` is ``class_names(file)[i]``."""
    with store.open(Path(file)) as cache:
        return cache.class_names


def load_split(cache: store.Cache, split: str, taps: tuple[str, ...]) -> tuple[FeatureRows, NDArray[Any]]:
    """Features (n, columns) and labels (n,) of a split, read with progress if they fit into memory."""
    features = cache.feature_rows(split, taps)
    with Progress(f"reading {split}", features.nbytes, "B", scale=True) as progress, store.read_errors(cache.path):
        return features.in_memory(progress.update), cache.labels(split)


def load_all(cache: store.Cache, taps: tuple[str, ...]) -> tuple[FeatureRows, NDArray[Any]]:
    """Features (n, columns) and labels (n,) of all rows in memory, those of train first."""
    sides = [cache.feature_rows(split, taps) for split in SPLITS]
    result = np.empty((sum(side.shape[0] for side in sides), sides[0].shape[1]), np.float16)
    start = 0
    with Progress("reading", result.nbytes, "B", scale=True) as progress, store.read_errors(cache.path):
        for side in sides:
            side.array(progress.update, result[start : start + side.shape[0]])
            start += side.shape[0]
        return FeatureRows([result]), np.concatenate([cache.labels(split) for split in SPLITS])


def place_of(row: int, cache: store.Cache) -> tuple[str, int]:
    """The split of one of all rows, those of train first, and its number there."""
    train = cache.rows[SPLITS[0]]
    return (SPLITS[0], row) if row < train else (SPLITS[1], row - train)

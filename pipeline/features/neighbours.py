"""Which rows of a cache are most like an image: exact search by the cosine of standardised features.

>>> from pipeline import Neighbours
>>> near = Neighbours("features/photos-vgg16-64px-….h5")  # doctest: +SKIP
>>> distances, rows = near.kneighbors(["cat.jpg"], n_neighbors=5)  # doctest: +SKIP
>>> near.names[rows[0]]  # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import logging
import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.memory import free_memory
from pipeline.common.progress import Progress
from pipeline.common.text import printable
from pipeline.data.dataset import LazyImages
from pipeline.features import store
from pipeline.features.images import ImageFeatures, identified
from pipeline.features.layout import SPLITS
from pipeline.features.rows import FeatureRows, Scale, moments
from pipeline.network.taps import parse_taps

MOST_EXACT = 1_000_000  # rows that are all compared
DISTANCES = 1 << 24  # that are held at a time
PAIRS = 1024  # rows that are compared with as many others at a time
TINY = np.finfo(np.float32).tiny

log = logging.getLogger("pipeline")

Found = tuple[NDArray[np.float32], NDArray[np.intp]]


class Neighbours:
    """The rows of a cache, those of train first, then those of test; open until it is closed.

    They are read beside what the caller does, until they are searched.

    The distance is one minus the cosine between standardised features: 0 for the same picture, about 1 for two
    that have nothing in common, 2 at most. All rows are compared, in blocks of a matrix product; of more than a million
    those that an index by faiss proposes, where that is installed, which is built once and kept beside the cache.

    Parameters
    ----------
    cache : str or Path
        A feature file.
    taps : str or sequence of str, optional
        ``all``, ``top``, names separated by commas, or a sequence of names; all that the file has when left out.
    data_dir : str or Path
        Where the weights of VGG16 are, or go.
    weights : str, optional
        Where the file's own weights are now, if they were a file.

    Attributes
    ----------
    class_names : tuple of str
    labels : ndarray, int (rows,)

    Raises
    ------
    UserError
        When there is no such file, it does not verify, or lacks a tap.
    """

    def __init__(
        self,
        cache: str | Path,
        taps: str | Sequence[str] | None = None,
        *,
        data_dir: str | Path = "data",
        weights: str | None = None,
    ) -> None:
        self.cache = store.open(Path(cache))
        spec = self.cache.spec
        chosen = spec.taps if taps is None else parse_taps(taps)
        sides = [self.cache.feature_rows(split, chosen) for split in SPLITS if self.cache.rows[split]]
        pool = ThreadPoolExecutor(1)
        self._closed = threading.Event()
        self._reading = pool.submit(self._read, sides, chosen)
        pool.shutdown(wait=False)
        self.class_names = self.cache.class_names
        self.labels = np.concatenate([self.cache.labels(split) for split in SPLITS])
        own = dataclasses.replace(spec, taps=chosen)
        self._columns = own.columns
        self._images = ImageFeatures(
            own, self.cache.provenance["weights"], f"The feature file {cache}",
            data_dir=Path(data_dir), weights=weights,
        )  # fmt: skip

    def __enter__(self) -> Neighbours:
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        wait([self._reading])
        self.cache.close()

    def __len__(self) -> int:
        return len(self.labels)

    def _read(self, sides: Sequence[FeatureRows], taps: Sequence[str]) -> Index:
        def told(count: int) -> None:
            if self._closed.is_set():
                raise CancelledError
            progress.update(count)

        with Progress("reading", 0, "B", scale=True) as progress:
            if sum(side.shape[0] for side in sides) > MOST_EXACT:
                from pipeline.features import approximate  # late: it is built on what is here

                if approximate.is_there():
                    return approximate.load(self.cache, taps, sides, told)
                log.info(
                    "comparing all rows; faiss would build an index of them once and search that: 'make index' "
                    "installs it; without make, pip install 'vgg16-features[index]'"
                )
            return Index(sides, told)  # in the file, which was just hashed: for one search a copy takes longer

    @property
    def _index(self) -> Index:
        return self._reading.result()

    @cached_property
    def names(self) -> NDArray[np.str_]:
        """Who the rows are, str (rows,).

        Path of each row's image inside its data set; where rows are no files, ``train:12`` for row 12 of train.
        """
        if self.cache.has_members:
            return np.array([printable(name) for split in SPLITS for name in self.cache.members(split).names], np.str_)
        return np.array([f"{split}:{row}" for split in SPLITS for row in range(self.cache.rows[split])], np.str_)

    def kneighbors(self, images: Any, n_neighbors: int = 10) -> Found:
        """The rows that are most like each of some images, the nearest first.

        Parameters
        ----------
        images : ndarray, uint8 (n, h, w, 3), or sequence of ndarray, uint8 (h, w, 3), or of paths
        n_neighbors : int

        Returns
        -------
        distances : ndarray, float32 (n, n_neighbors)
        rows : ndarray, int (n, n_neighbors)

        Raises
        ------
        UserError
            When an image cannot be used, or the weights that the file was made with cannot be had.
        """
        given = identified(images, guarded=True)
        features, faults = self.features(given)
        for row, why in faults.items():
            raise UserError(f"The image {given.ids.names[row]} cannot be used: {why}. Leave it out.")
        self._index.widen()  # there may be more calls
        return self.search(features, n_neighbors)

    def features(self, images: LazyImages) -> tuple[NDArray[np.float32], dict[int, str]]:
        """Features (usable images, columns), and why others cannot be used, by their numbers."""
        blocks, faults = [np.empty((0, self._columns), np.float32)], dict[int, str]()
        for _, block, found in self._images.batches(images, "computing"):
            blocks.append(block)
            faults.update(found)
        return np.concatenate(blocks), faults

    def of_rows(self, rows: Sequence[int]) -> NDArray[np.float32]:
        """Features (n, columns) of rows of the cache."""
        return self._index.rows(np.asarray(rows, np.intp))

    def search(self, features: NDArray[np.float32], n_neighbors: int) -> Found:
        """The nearest rows of features (n, columns), as `kneighbors` gives them."""
        if not 1 <= n_neighbors <= len(self):
            raise UserError(f"The n_neighbors parameter must be between 1 and {len(self):,}. Got {n_neighbors!r}.")
        return self._index.search(features, n_neighbors)


class Index:
    """Rows that can be searched: one after the other, (n, columns) each, standardised by the first of them.

    ``progress`` is told the bytes seen to find their scale and their lengths, if these are not ``known``.
    """

    def __init__(
        self,
        sides: Sequence[FeatureRows],
        progress: Callable[[int], object] = lambda count: None,
        known: tuple[Scale, NDArray[np.float32]] | None = None,
    ) -> None:
        self._sides, self.columns = list(sides), sides[0].shape[1]
        self._ends = np.cumsum([side.shape[0] for side in sides])
        self.scale, self._lengths = self._measured(progress) if known is None else known
        self._wide: NDArray[np.float32] | None = None  # all rows, in memory

    def rows(self, rows: NDArray[np.intp]) -> NDArray[np.float32]:
        """Features (n, columns) of rows, by their numbers in any order."""
        once, places = np.unique(rows, return_inverse=True)
        result = np.empty((len(once), self.columns), np.float32)
        for side, end in zip(self._sides, self._ends, strict=True):
            mine = (once >= end - side.shape[0]) & (once < end)
            result[mine] = side.read(once[mine] - (end - side.shape[0]))
        return result[places]

    def widen(self) -> None:
        """Have all rows in memory as float32, if there is so much room, and search several times faster."""
        shape, free = (len(self._lengths), self.columns), free_memory()
        if self._wide is None and (free is None or 4 * math.prod(shape) <= free // 2):
            wide = np.empty(shape, np.float32)
            self._visit(lambda rows, block: np.copyto(wide[rows], block))
            self._wide = wide

    def distances(self, one: NDArray[np.intp], other: NDArray[np.intp]) -> NDArray[np.float32]:
        """Distances (n,) between rows and other rows (n,)."""
        found = np.empty(len(one), np.float32)
        for at in range(0, len(one), PAIRS):
            pairs = slice(at, at + PAIRS)
            a, b = (self.scale.standardise(self.rows(each[pairs])) for each in (one, other))
            lengths = self._lengths[one[pairs]] * self._lengths[other[pairs]]
            found[pairs] = 1 - np.einsum("ij,ij->i", a, b) / np.maximum(lengths, TINY)
        return np.clip(found, 0, 2)

    def search(self, features: NDArray[np.float32], count: int) -> Found:
        """The nearest rows of features (n, columns): their distances and numbers (n, count)."""
        size = max(1, DISTANCES // len(self._lengths))
        found = [self._search(features[at : at + size], count) for at in range(0, len(features), size)]
        if not found:
            return np.empty((0, count), np.float32), np.empty((0, count), np.intp)
        distances, rows = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(rows)

    def _search(self, features: NDArray[np.float32], count: int) -> Found:
        # With z = (x - mean) * gain the product of two rows is z.z' = x.w - mean.w where w = gain * z': what is
        # standardised is the few rows asked for, not the many that there are.
        asked = self.scale.standardise(features.copy())
        lengths = np.linalg.norm(asked, axis=1)
        weights = np.ascontiguousarray((asked * self.scale.gain.astype(np.float32)).T)
        products = np.empty((len(self._lengths), len(features)), np.float32)
        if self._wide is None:
            self._visit(lambda rows, block: np.matmul(block, weights, out=products[rows]))
        else:
            np.matmul(self._wide, weights, out=products)
        products -= self.scale.mean.astype(np.float32) @ weights
        distances = np.clip(1 - products / np.maximum(self._lengths[:, None] * lengths, TINY), 0, 2).T
        nearest = np.argpartition(distances, count - 1, axis=1)[:, :count]
        order = np.take_along_axis(distances, nearest, axis=1).argsort(axis=1, kind="stable")
        nearest = np.take_along_axis(nearest, order, axis=1)
        return np.take_along_axis(distances, nearest, axis=1), nearest

    def _measured(self, progress: Callable[[int], object]) -> tuple[Scale, NDArray[np.float32]]:
        """What standardises the rows, and the lengths (n,) that they have then."""
        scale, lengths = moments(self._sides[0], progress), np.empty(self._ends[-1], np.float32)

        def visit(rows: slice, block: NDArray[np.float32]) -> None:
            scale.standardise(block)
            lengths[rows] = np.sqrt(np.einsum("ij,ij->i", block, block))
            progress(2 * block.size)

        self._visit(visit)
        return scale, lengths

    def _visit(self, visit: Callable[[slice, NDArray[np.float32]], object]) -> None:
        """Show all rows, block by block, with their numbers."""

        def shifted(rows: slice, block: NDArray[np.float32], first: int) -> None:
            visit(slice(first + rows.start, first + rows.stop), block)

        for side, end in zip(self._sides, self._ends, strict=True):
            side.reduce(shifted, partial(int, end - side.shape[0]))


def unit(block: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Rows of length one, in place, and what their lengths were."""
    lengths = np.linalg.norm(block, axis=1)
    block /= np.maximum(lengths, TINY)[:, None]
    return block, lengths

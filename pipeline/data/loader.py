"""Images to the network, batch by batch, in order: decoding runs beside computing and never far ahead of it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.dataset import Image, LazyImages, Split, Unusable
from pipeline.data.options import ImageOptions

Row = tuple[str, int]  # a split and a row of it
Decoded = tuple[Row, Image | Unusable]
Features = Mapping[str, NDArray[np.float16]]

_CHUNK = 16  # images that a thread decodes at a time: small ones take less time than handing them over does


@contextmanager
def batches(
    splits: Mapping[str, Split], rows: Sequence[Row], how: ImageOptions, *, batch_size: int
) -> Iterator[Iterator[list[Decoded]]]:
    """Give the images of some rows, in that order, in batches; what comes next is being decoded meanwhile.

    Parameters
    ----------
    splits : mapping of str to Split
    rows : sequence of (str, int)
    how : ImageOptions
        Arrays are given as they are.
    batch_size : int
    """
    decoders: dict[str, Callable[[int], Image]] = {name: _decoder(split.images, how) for name, split in splits.items()}

    def decode(chunk: Sequence[Row]) -> list[Decoded]:
        return [(row, _attempt(decoders[row[0]], row[1])) for row in chunk]

    pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="decode")
    try:
        yield _ahead(pool, decode, rows, batch_size)
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor, decode: Callable[[Sequence[Row]], list[Decoded]], rows: Sequence[Row], batch_size: int
) -> Iterator[list[Decoded]]:
    """Keep two batches in the making beside the one that is given."""
    waiting: deque[list[Future[list[Decoded]]]] = deque()
    for start in range(0, len(rows) + 2 * batch_size, batch_size):
        batch = rows[start : start + batch_size]
        if batch:
            waiting.append([pool.submit(decode, batch[at : at + _CHUNK]) for at in range(0, len(batch), _CHUNK)])
        if start >= 2 * batch_size and waiting:
            yield [item for future in waiting.popleft() for item in future.result()]


def _decoder(images: NDArray[np.uint8] | LazyImages, how: ImageOptions) -> Callable[[int], Image]:
    if isinstance(images, np.ndarray):
        return lambda row: np.ascontiguousarray(images[row])  # read and put into order here, not where it is computed
    return images.decoder(how)


def _attempt(decode: Callable[[int], Image], row: int) -> Image | Unusable:
    try:
        return decode(row)
    except Unusable as error:
        return error


class Stream:
    """Features of some rows, computed batch by batch as they are taken, in order.

    Parameters
    ----------
    source : iterator
        As `batches` gives it.
    compute : callable
        Features of a sequence of images: for each tap float16 (n, columns).
    done : callable
        Told the number of rows of each batch that was computed.
    """

    def __init__(
        self,
        source: Iterator[list[Decoded]],
        compute: Callable[[Sequence[Image]], Features],
        done: Callable[[int], Any],
    ) -> None:
        self._source, self._compute, self._done = source, compute, done
        self._taken = self._made = 0  # rows
        self._faults: dict[int, str] = {}
        self._features: deque[tuple[NDArray[np.intp], Features]] = deque()  # positions of rows, and their features

    def take(self, count: int) -> tuple[list[Features], dict[int, str]]:
        """Take the next rows.

        Returns
        -------
        features : list of mapping
            Of the usable ones among them, in pieces, in order.
        faults : dict
            Of the others: position among the rows taken, and why.
        """
        start, stop = self._taken, self._taken + count
        while self._made < stop:
            self._make()
        self._taken = stop
        pieces: list[Features] = []
        for positions, features in self._features:
            first, last = np.searchsorted(positions, (start, stop))
            if first < last:
                pieces.append({tap: values[first:last] for tap, values in features.items()})
        while self._features and self._features[0][0][-1] < stop:
            self._features.popleft()
        faults = {row - start: self._faults.pop(row) for row in sorted(self._faults) if row < stop}
        return pieces, faults

    def _make(self) -> None:
        batch = next(self._source)
        usable = []
        for position, (_, image) in enumerate(batch, self._made):
            if isinstance(image, Unusable):
                self._faults[position] = str(image)
            else:
                usable.append((position, image))
        if usable:
            features = self._compute([image for _, image in usable])
            self._features.append((np.array([position for position, _ in usable]), features))
        self._made += len(batch)
        self._done(len(batch))

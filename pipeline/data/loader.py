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

from pipeline.data.dataset import Image, Split, Unusable
from pipeline.data.options import ImageOptions

Row = tuple[str, int]  # a split and a row of it
Decoded = tuple[Row, Image | Unusable]
Features = NDArray[np.float16]  # (n, columns): the taps side by side
Compute = Callable[[Sequence[Image]], Mapping[str, NDArray[np.float16]]]  # for each tap (n, columns)

_CHUNK = 16  # images that a thread decodes at a time: small ones take less time than handing them over does


@contextmanager
def batches(
    splits: Mapping[str, Split], rows: Sequence[Row], how: ImageOptions, *, batch_size: int, threads: int | None = None
) -> Iterator[Iterator[list[Decoded]]]:
    """Give the images of some rows, in that order, in batches; what comes next is being decoded meanwhile.

    Images in an array are given as they are, whatever ``how`` says. There is a thread for each core, if no number of
    ``threads`` is given.
    """

    def attempt(row: Row) -> Image | Unusable:
        split, number = row
        images = splits[split].images
        try:
            if isinstance(images, np.ndarray):
                return np.ascontiguousarray(images[number])  # read and put into order here, not where it is computed
            return images.decode(number, how)
        except Unusable as error:
            return error

    def decode(chunk: Sequence[Row]) -> list[Decoded]:
        return [(row, attempt(row)) for row in chunk]

    pool = ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="decode")
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


def compute_rows(
    source: Iterator[list[Decoded]], compute: Compute, done: Callable[[int], Any]
) -> Iterator[Features | str]:
    """Push batches, as `batches` gives them, through the network as their rows are asked for.

    Of each row, in order: float16 (columns,), or why its image cannot be used. ``done`` is told the number of rows of
    each batch.
    """
    for batch in source:
        found = compute_batch(batch, compute)
        done(len(batch))
        yield from each_row(*found)


def compute_batch(batch: Sequence[Decoded], compute: Compute) -> tuple[list[str | None], Features]:
    """Of each image of a batch why it cannot be used, if so; and the features of the others."""
    faults = [str(image) if isinstance(image, Unusable) else None for _, image in batch]
    usable = [image for _, image in batch if not isinstance(image, Unusable)]
    return faults, np.hstack([*compute(usable).values()]) if usable else np.empty((0, 0), np.float16)


def each_row(faults: Sequence[str | None], features: Features) -> Iterator[Features | str]:
    """Give, row by row, its features, of those in ``features``, or why its image cannot be used."""
    rows = iter(features)
    return (next(rows) if fault is None else fault for fault in faults)

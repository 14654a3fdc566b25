"""What goes on beside the network: the next images are read and the last features written while it computes.

The network keeps every core busy most of the time, but not all of it; and a disk or a decoder that is slow must not
make it wait. Both helpers use one thread and hold at most one piece, so order and memory are as without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.spec import TAP_COLUMNS

Extract = Callable[[Any], Mapping[str, NDArray[np.float16]]]


class Images(Protocol):
    """A split's images: an array uint8 (n, h, w, 3), or anything that gives slices of such images."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> Any: ...


class Aside:
    """Does one thing at a time in a thread, in the order in which they are handed over.

    An error of that thread is raised at the next `do` or `wait`, as itself. Leaving the block waits for what was begun,
    also after an error or an interrupt: a file that is being written is finished or removed, never left.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="aside")
        self._begun: Future[Any] | None = None

    def __enter__(self) -> Aside:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._pool.shutdown(wait=True)

    def do(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Begin some work, once the work before it is done."""
        self.wait()
        self._begun = self._pool.submit(work, *arguments)

    def wait(self) -> Any:
        """Wait for the work begun, if any, and return its result."""
        begun, self._begun = self._begun, None
        return begun.result() if begun is not None else None


class ReadAhead:
    """A split's images, batch by batch: while one is computed, the one that follows is read.

    Parameters
    ----------
    images : Images
    batch_size, part_rows : int
        Batches have ``batch_size`` rows, fewer at the end of a part and of the split.
    """

    def __init__(self, images: Images, batch_size: int, part_rows: int) -> None:
        self._images, self._batch_size, self._part_rows = images, batch_size, part_rows
        self._reader = Aside()
        self._ahead = range(0)

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(Exception):  # what was wrong with images that nobody asked for
            self._reader.wait()
        self._reader.__exit__(kind, error, trace)

    def rows(self, start: int) -> range:
        """Rows of the batch that begins at a row."""
        part_end = (start // self._part_rows + 1) * self._part_rows
        return range(start, min(start + self._batch_size, part_end, len(self._images)))

    def batch(self, rows: range) -> Any:
        """Images of some rows: read by now if they follow those of the batch before."""
        if rows == self._ahead:
            found = self._reader.wait()
        else:
            with suppress(Exception):
                self._reader.wait()
            found = self._read(rows)
        self._ahead = self.rows(rows.stop)
        if self._ahead:
            self._reader.do(self._read, self._ahead)
        return found

    def _read(self, rows: range) -> Any:
        images = self._images[rows.start : rows.stop]
        return np.ascontiguousarray(images) if isinstance(images, np.ndarray) else images


def features(
    extract: Extract, images: ReadAhead, rows: range, taps: Sequence[str], progress: Callable[[int], None]
) -> dict[str, NDArray[np.float16]]:
    """Features of a part's rows, batch by batch: for each tap, float16 (rows, columns)."""
    result = {tap: np.full((len(rows), TAP_COLUMNS[tap]), np.nan, np.float16) for tap in taps}
    start = rows.start
    while start < rows.stop:
        batch = images.rows(start)
        for tap, values in extract(images.batch(batch)).items():
            result[tap][start - rows.start : batch.stop - rows.start] = values
        progress(len(batch))
        start = batch.stop
    # Preallocated with an impossible value, then asserted gone: every row was written. Rows are written whole.
    for tap, values in result.items():
        if np.isnan(values[:, -1]).any():
            raise AssertionError(f"rows of {tap} were not written")
    return result

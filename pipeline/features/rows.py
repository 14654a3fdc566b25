"""Rows of features as float16, in memory or in their verified file, given to many threads in blocks of float32.

A block is widened where it is used, in the processor's cache: no float32 copy of all rows is ever made, and what
does not fit into memory is read from the file, ahead of its use. So memory does not grow with rows.
"""

from __future__ import annotations

import functools
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.common.errors import UserError
from pipeline.common.memory import free_memory
from pipeline.network import device

BLOCK_BYTES = 3 << 20  # of a float32 block: it stays in the processor's cache between its uses, and is not too many
CHUNK_BYTES = 4 << 20  # of float16 that a thread reads from a file at once
RUN = 64  # neighbours that stay together when rows in a file are shuffled
IN_MEMORY = 5 << 28  # bytes of float16 rows up to which they are kept in memory

State = TypeVar("State")


@dataclass(frozen=True)
class FilePart:
    """A contiguous float16 array in an open file: its descriptor, the byte where it begins, and its shape."""

    descriptor: int
    offset: int
    shape: tuple[int, int]

    def read(self, start: int, stop: int, ahead: int = 0) -> NDArray[np.float16]:
        """Rows of the array; as many more as ``ahead`` are asked of the disk meanwhile."""
        width = 2 * self.shape[1]
        if ahead and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.descriptor, self.offset + stop * width, ahead * width, os.POSIX_FADV_WILLNEED)
        content = os.pread(self.descriptor, (stop - start) * width, self.offset + start * width)
        if len(content) < (stop - start) * width:
            raise OSError("the file of the features became shorter while it was read")
        return np.frombuffer(content, np.float16).reshape(stop - start, -1)


Part = NDArray[Any] | FilePart


class FeatureRows:
    """Features of some rows, float16 (n, columns): parts side by side, all in memory or all in a file.

    An array in memory may be of any float type. ``index`` are the ascending numbers of the rows meant, int (n,); None
    for all.
    """

    def __init__(self, parts: Sequence[Part], index: NDArray[np.intp] | None = None) -> None:
        self._parts: tuple[Any, ...] = tuple(parts)
        self._index, self._rows = index, parts[0].shape[0]
        self._on_disk = isinstance(parts[0], FilePart)
        self.shape = (self._rows if index is None else len(index), sum(part.shape[1] for part in parts))

    @property
    def nbytes(self) -> int:
        """Bytes of the rows as float16."""
        return 2 * math.prod(self.shape)

    def take(self, index: NDArray[Any]) -> FeatureRows:
        """Some of the rows, by their ascending numbers."""
        chosen = np.asarray(index) if self._index is None else self._index[index]
        return FeatureRows(self._parts, chosen.astype(np.intp))

    def in_memory(self, progress: Callable[[int], object] = lambda count: None) -> FeatureRows:
        """The same rows, read into memory if they are small enough; ``progress`` is told the bytes read."""
        free = free_memory()
        if not self._on_disk or self.nbytes > min(IN_MEMORY, IN_MEMORY if free is None else free // 2):
            return self
        return FeatureRows([self.array(progress)])

    def array(
        self, progress: Callable[[int], object] = lambda count: None, out: NDArray[np.float16] | None = None
    ) -> NDArray[np.float16]:
        """A copy of the rows, in ``out`` if that is given; ``progress`` is told the bytes read."""
        result = np.empty(self.shape, np.float16) if out is None else out
        for start, stop, pieces in self._chunks(0, self.shape[0]):
            for columns, piece in zip(self._columns(), pieces, strict=True):
                result[start:stop, columns] = piece
            progress(2 * (stop - start) * self.shape[1])
        return result

    def columns(self, chosen: Sequence[slice]) -> FeatureRows:
        """Some of the columns, without a copy; of rows in a file, those of whole parts."""
        if self._on_disk:
            held = dict(zip((each.start for each in self._columns()), self._parts, strict=True))
            return FeatureRows([held[each.start] for each in chosen], self._index)
        (array,) = self._parts
        merged: list[slice] = []
        for each in chosen:  # neighbours are widened in one go
            joins = merged and merged[-1].stop == each.start
            merged.append(slice(merged.pop().start, each.stop) if joins else each)
        return FeatureRows([array[:, each] for each in merged], self._index)

    def read(
        self, index: NDArray[Any], scale: Scale | None = None, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """A copy of some rows, by their numbers in any order, standardised if it is told by what.

        It is the first rows of ``out``, if that is given.
        """
        order = np.argsort(index)
        result = np.empty((len(index), self.shape[1]), np.float32) if out is None else out[: len(index)]
        for rows, block in self.take(index[order]).blocks(self._block_rows()):
            result[order[rows]] = block if scale is None else scale.standardise(block)
        return result

    def shuffled(self, generator: np.random.RandomState, size: int) -> list[NDArray[np.intp]]:
        """Numbers of all rows in random order, parted into pieces of about ``size``.

        Rows in a file stay together in runs, so that it is not read again and again; within a piece they are mixed.
        """
        run = RUN if self._on_disk else 1
        starts = generator.permutation(-(-self.shape[0] // run)) * run
        numbers = (starts[:, None] + np.arange(run)).ravel()
        numbers = numbers[numbers < self.shape[0]]
        pieces = np.array_split(numbers, -(-self.shape[0] // size))
        return [generator.permutation(piece) for piece in pieces] if self._on_disk else pieces

    def blocks(self, size: int) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """All rows in order, ``size`` at a time, as float32 arrays of their own."""
        for start in range(0, self.shape[0], size):
            rows = slice(start, min(start + size, self.shape[0]))
            block = np.empty((rows.stop - start, self.shape[1]), np.float32)
            self._fill(block, rows)
            yield rows, block

    def reduce(
        self, visit: Callable[[slice, NDArray[Any], State], object], make: Callable[[], State], dtype: Any = np.float32
    ) -> list[State]:
        """Show all rows, block by block, to a thread for each core, each with a state of its own that ``make`` makes.

        ``visit`` is given the numbers of the rows, their features (b, columns), float32 or float64 as ``dtype`` says,
        which are overwritten afterwards, and the state. The states returned are in the order of the rows, so that
        equal inputs give equal bits on as many cores.
        """
        size = self._block_rows()
        threads = max(1, min(cores(), self.shape[0] // (4 * size)))
        bounds = np.linspace(0, self.shape[0], threads + 1).astype(int)

        def share(start: int, end: int) -> State:
            state, block = make(), np.empty((size, self.shape[1]), np.float32)
            wide = block if dtype == np.float32 else np.empty_like(block, dtype)
            for first in range(start, end, size):
                rows = slice(first, min(first + size, end))
                count = rows.stop - first
                self._fill(block[:count], rows)
                if wide is not block:
                    wide[:count] = block[:count]
                visit(rows, wide[:count], state)
            return state

        if threads == 1:
            return [share(0, self.shape[0])]
        with _libraries().limit(limits=1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
            return list(pool.map(share, bounds[:-1].tolist(), bounds[1:].tolist()))

    def _block_rows(self) -> int:
        """How many rows are widened together."""
        columns: int = self.shape[1]
        return max(8, BLOCK_BYTES // (4 * columns) // 8 * 8)

    def _columns(self) -> list[slice]:
        ends = np.cumsum([0, *(part.shape[1] for part in self._parts)]).tolist()
        return [slice(*pair) for pair in itertools.pairwise(ends)]

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, int, list[NDArray[Any]]]]:
        """Rows from ``start`` to ``end``: where each chunk begins and ends, and what each part has of it.

        Of rows in a file, as many as fit into a chunk are read in one go, those between them included.
        """
        if not self._on_disk:
            rows: Any = slice(start, end) if self._index is None else self._index[start:end]
            yield start, end, [part[rows] for part in self._parts]
            return
        span = max(1, CHUNK_BYTES // (2 * self.shape[1]))
        while start < end:
            low, stop, rows = start, min(start + span, end), slice(None)
            high = stop
            if self._index is not None:
                low = int(self._index[start])
                stop = min(int(np.searchsorted(self._index, low + span)), end)
                high, rows = int(self._index[stop - 1]) + 1, self._index[start:stop] - low
            yield start, stop, [part.read(low, high, min(span, self._rows - high))[rows] for part in self._parts]
            start = stop

    def _fill(self, out: NDArray[np.float32], rows: slice) -> None:
        """Write rows into a block."""
        for first, stop, pieces in self._chunks(rows.start, rows.stop):
            self._widen(pieces, out[first - rows.start : stop - rows.start])

    def _widen(self, pieces: Sequence[Any], out: NDArray[np.float32]) -> None:
        """Write float16 pieces side by side into a float32 block, exactly.

        NumPy's own cast takes one number at a time. As integers, the bits of a half, moved to where float32 has
        them, are the same number over 2**112, its exponent being biased by 15 and not by 127; subnormals too. What
        is not finite becomes something from 65,536 up, which `moments` refuses.
        """
        if pieces[0].dtype != np.float16:
            out[:] = pieces[0]
            return
        bits = out.view(np.int32)
        for columns, piece in zip(self._columns(), pieces, strict=True):
            bits[:, columns] = piece.view(np.int16)  # keeps the sign, in all upper bits
        np.left_shift(bits, 13, out=bits)
        np.bitwise_and(bits, np.int32(-0x70000001), out=bits)  # sign, exponent and fraction
        np.multiply(out, np.float32(2.0**112), out=out)


@functools.cache
def _libraries() -> ThreadpoolController:
    """Found once: to look for them takes as long as a pass over a few thousand rows."""
    return ThreadpoolController()


def cores() -> int:
    """Processor cores that this process may use; fewer when OMP_NUM_THREADS says so."""
    limit = os.environ.get("OMP_NUM_THREADS", "")
    return min(device.cores(), int(limit)) if limit.isdigit() and int(limit) else device.cores()


@dataclass(frozen=True)
class Scale:
    """Means and variances of columns, float64 (columns,), and over how many rows; of a constant column exactly 0."""

    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    rows: int

    @property
    def gain(self) -> NDArray[np.float64]:
        """What centred columns are multiplied with: one over their deviation, 0 for constant ones."""
        return np.divide(1, np.sqrt(self.variance), out=np.zeros_like(self.variance), where=self.variance > 0)

    def standardise(self, block: NDArray[np.float32]) -> NDArray[np.float32]:
        """Standardise rows, float32 (b, columns), in place, and return them."""
        mean, gain = self._in_float32
        block -= mean
        block *= gain
        return block

    @functools.cached_property
    def _in_float32(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self.mean.astype(np.float32), self.gain.astype(np.float32)


def moments(rows: FeatureRows, progress: Callable[[int], object] = lambda count: None) -> Scale:
    """Means and deviations in one pass, summed up in float64, in which the squares of halves are exact.

    ``progress`` is told the bytes seen. Raises UserError when a number is not finite.
    """

    def visit(_: slice, block: NDArray[np.float64], sums: NDArray[np.float64]) -> None:
        if not (block.min() > -65_536 and block.max() < 65_536):  # one above the largest half
            raise UserError("The features hold numbers that are not finite. Compute them again.")
        ones = np.ones(len(block))
        sums[0] += ones @ block  # by BLAS, several times faster than sum(axis=0)
        np.square(block, out=block)
        sums[1] += ones @ block
        progress(2 * block.size)

    sums, squares = np.sum(rows.reduce(visit, lambda: np.zeros((2, rows.shape[1])), np.float64), axis=0)
    count = rows.shape[0]
    mean = sums / count
    variance = np.maximum(squares / count - mean**2, 0)
    # What the sums' rounding alone can make of a constant: StandardScaler's own bound.
    epsilon = count * np.finfo(float).eps
    constant = variance <= epsilon * variance + (epsilon * mean) ** 2
    return Scale(mean, np.where(constant, 0.0, variance), count)

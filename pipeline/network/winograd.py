"""3 × 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4 × 4, 3 × 3).

A map is cut into tiles of 4 × 4 that are to be computed, each from 6 × 6 pixels. Those and the kernels are transformed,
their channels multiplied at each of the 36 places by itself, and the sums transformed back:

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

36 multiplications for each tile and pair of channels, where the convolution has 144. From Lavin & Gray 2015, "Fast
algorithms for convolutional neural networks", https://arxiv.org/abs/1509.09308, section 4.1 and 4.3, whose matrices
these are. What remains are matrix products: of rows as many as tiles and images, which numpy's BLAS computes at the
processor's ceiling, and in threads of Python side by side, as it lets go of the interpreter meanwhile.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.network import device

Maps = NDArray[np.float32]

TILE, SPAN = 4, 6  # pixels of a tile that is computed, and of what it is computed from, on a side
_INPUT = np.array(  # Bᵀ
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_KERNEL = np.array(  # G
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]],
) / np.array([[24.0]])  # fmt: skip
_OUTPUT = np.array(  # Aᵀ
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]], np.float32
)
# Aᵀ of a matrix that is 1 here and 0 elsewhere is 1 at all of the tile: what a bias is added to.
_ONES = (1, 1)

ROWS = 512  # of a matrix product: its kernels are read seldom, and what it makes stays in the cache
# What a multiplication of a product takes, and the transforms of a pixel of a channel, in the time of a multiplication
# of a direct convolution: fitted to the layers of VGG16 at 32 and 64 pixels, on an Intel Xeon with AVX-512.
PRODUCT, TRANSFORM = 1.2, 165
# Multiplications of a product that OpenBLAS computes from where its factors are. For more it packs them first, which
# takes longer than to multiply by a matrix of 6 × 6. With fewer rows than 64 it is slow either way.
UNPACKED, FEW_ROWS = 10**6, 64
LEAST = 8  # images that go through together: a product of fewer rows may add up in another order
_ALIGNED = 64  # bytes: TensorFlow takes such memory over without copying it


def is_of_use() -> bool:
    """Whether numpy's BLAS multiplies as fast as the processor can, so that fewer multiplications take less time.

    It needs AVX2; and a BLAS that was loaded for AVX2 has half the speed of convolutions by AVX-512.
    """
    flags = device.flags()
    if "avx2" not in flags or "fma" not in flags:
        return False
    kinds = {str(library.get("architecture")) for library in ThreadpoolController().info()}
    return not flags >= device.AVX512 or bool(kinds & {"SkylakeX", "Cooperlake", "SapphireRapids"})


def suits(height: int, width: int, images: int, channels: int, results: int) -> bool:
    """Whether a convolution of so many channels, to so many, takes less time so than directly.

    Counted in multiplications of the direct one, which has none for what lies outside of a map; tiles have, and need
    not be full either.
    """
    direct = (3 * height - 2) * (3 * width - 2) * channels * results
    tile = PRODUCT * SPAN**2 * channels * results + TRANSFORM * TILE**2 * (channels + results)
    return images % LEAST == 0 and direct > tile * _tiles(height) * _tiles(width)


def _tiles(side: int) -> int:
    return -(-side // TILE)


class Workers:
    """Threads that compute items of work side by side, each with memory of its own that it uses again and again."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="winograd")
        self._blas = ThreadpoolController()
        self._local = threading.local()
        self._places = [_aligned(0), _aligned(0)]

    def images_together(self, images: int, tiles: int) -> int:
        """Images of an item that has so many tiles of each: about ``ROWS`` rows, and an item for each thread."""
        wanted = max(LEAST, min(ROWS // tiles, images // self._threads))
        together = LEAST
        while 2 * together <= wanted and images % (2 * together) == 0:
            together *= 2
        return together

    def run(self, work: Callable[..., None], items: Iterable[tuple[slice, slice]]) -> None:
        """Do the work of all items; BLAS itself has one thread meanwhile."""
        with self._blas.limit(limits=1, user_api="blas"):
            for done in [self._pool.submit(work, *item) for item in items]:
                done.result()

    def place(self, turn: int, *shape: int) -> Maps:
        """One of two places for results; new memory for each would cost more time than to write to it."""
        size = math.prod(shape)
        if self._places[turn].size < size:
            self._places[turn] = _aligned(size)
        return self._places[turn][:size].reshape(shape)

    def steps(self, *shape: int) -> _Steps:
        """Memory of this thread for the steps of a convolution, with whatever it was left with."""
        mine = self._local.__dict__
        if mine.get("shape") != shape:  # most often it is that of the last item
            mine.update(shape=shape, steps=_Steps(self._memory, *shape))
        found: _Steps = mine["steps"]
        return found

    def _memory(self, name: str, *shape: int) -> Maps:
        there: dict[str, Maps] = self._local.__dict__
        size = math.prod(shape)
        if name not in there or there[name].size < size:
            there[name] = np.empty(size, np.float32)
        return there[name][:size].reshape(shape)


class Convolution:
    """A 3 × 3 convolution of float32 maps with zeros around them, its bias and ReLU, and what is wanted of its maps.

    Parameters
    ----------
    kernel : ndarray, float32 (3, 3, channels, channels of the result)
    bias : ndarray, float32 (channels of the result,)
    workers : Workers
        The threads that compute it.
    turn : {0, 1}
        Which of their two places for results it uses.
    halve : bool
        Whether the result is the largest of each 2 × 2 positions, instead of all.
    average : bool
        Whether the averages of whole maps are wanted.
    """

    def __init__(
        self, kernel: Maps, bias: Maps, workers: Workers, turn: int = 0, *, halve: bool = False, average: bool = False
    ) -> None:
        _, _, channels, results = kernel.shape
        both = np.kron(_KERNEL, _KERNEL).astype(np.float32)  # G g Gᵀ of all kernels by one matrix product
        self._kernels = (both @ kernel.reshape(9, -1)).reshape(SPAN, SPAN, channels, results)
        self._bias, self._workers, self._turn = bias, workers, turn
        self._halve, self._average = halve, average

    def __call__(self, maps: Maps) -> list[Maps]:
        """Convolve maps, float32 (height, width, image, channel); the number of images is a multiple of ``LEAST``.

        The result, and the averages (image, channel) if they are wanted. The result is there until a convolution of the
        same turn is computed by these workers.
        """
        height, width, images, _ = maps.shape
        step, results = 1 + self._halve, self._kernels.shape[-1]
        result = self._workers.place(self._turn, height // step, width // step, images, results)
        # Each line of tiles has sums of its own, so that they add up in the same order whatever is computed together.
        sums = np.empty((_tiles(height) if self._average else 0, images, results), np.float32)

        together = self._workers.images_together(images, _tiles(width))
        lines = max(1, ROWS // (together * _tiles(width)))

        def work(some: slice, lines: slice) -> None:
            self._convolve(maps[:, :, some], result[:, :, some], sums[:, some], lines)

        self._workers.run(work, itertools.product(_slices(images, together), _slices(_tiles(height), lines)))
        return [result, sums.sum(axis=0) / np.float32(height * width)] if self._average else [result]

    def _convolve(self, maps: Maps, result: Maps, sums: Maps, lines: slice) -> None:
        """Compute some lines of tiles. Images and channels are one axis where each is by itself."""
        height, width, images, channels = maps.shape
        steps = self._workers.steps(lines.stop - lines.start, width, images, channels, result.shape[3])
        # Bᵀ d, along the height; what is above and below a map is left out.
        for tall, line in zip(steps.tall, range(lines.start, lines.stop), strict=True):
            top = TILE * line - 1
            first, last = max(0, -top), min(SPAN, height - top)
            seen = maps[top + first : top + last].reshape(last - first, width, -1)
            np.matmul(_INPUT[:, first:last], _columns(seen), out=tall)
        # One of six lines of places at a time, so that what a step makes is in the cache when the next one takes it.
        for i in range(SPAN):
            np.matmul(_INPUT, steps.tiles[i], out=steps.place)  # (Bᵀ d) B, along the width
            # all channels, at each place by itself
            np.matmul(steps.rows, self._kernels[i, :, np.newaxis], out=steps.products)
            if i == _ONES[0]:
                steps.sums[_ONES[1]] += self._bias
            np.matmul(_OUTPUT, steps.sum_columns, out=steps.wide_columns[i])  # m A, along the width
        for wide, line in zip(steps.wide, range(lines.start, lines.stop), strict=True):
            np.matmul(_OUTPUT, wide, out=steps.made)  # Aᵀ (m A), along the height
            whole = steps.whole[: height - TILE * line]
            there = whole if self._halve else result[TILE * line :][:TILE]
            np.maximum(whole, 0, out=there)
            if self._average:
                np.add.reduce(there, axis=(0, 1), out=sums[line])
            if self._halve:
                there = result[TILE // 2 * line :][: TILE // 2]
                end = 2 * len(there)
                higher = np.maximum(whole[:end:2], whole[1:end:2], out=whole[:end:2])
                end = width - width % 2
                np.maximum(higher[:, :end:2], higher[:, 1:end:2], out=there)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class _Steps:
    """Memory of a thread for what the steps make of some lines of tiles, as each step has it or takes it."""

    def __init__(self, memory: Callable[..., Maps], lines: int, width: int, images: int, channels: int, results: int):
        across = _tiles(width)
        rows, together = lines * across * images, images * channels
        tall = memory("tall", SPAN, lines, TILE * across + 2, together)
        tall[:, :, 0] = tall[:, :, width + 1 :] = 0  # what is left and right of a map
        self.tall = [_columns(tall[:, i, 1 : width + 1]) for i in range(lines)]
        _, line, pixel, number = tall.strides
        shape, strides = (SPAN, lines, across, together), (pixel, line, TILE * pixel, number)
        self.tiles = [_columns(as_strided(place, shape, strides)) for place in tall]  # of which neighbours overlap
        self.pixels = memory("pixels", SPAN, rows, channels)
        self.place = _columns(self.pixels.reshape(SPAN, lines, across, together))
        self.sums = memory("sums", SPAN, rows, results)
        most = UNPACKED // (channels * results)
        pieces = _pieces(rows, most) if most >= FEW_ROWS else 1
        self.rows = self.pixels.reshape(SPAN, pieces, -1, channels)
        self.products = self.sums.reshape(SPAN, pieces, -1, results)
        self.sum_columns = _columns(self.sums.reshape(SPAN, -1))
        wide = memory("wide", SPAN, TILE, lines, across, images * results)
        self.wide_columns = [_columns(place.reshape(TILE, -1)) for place in wide]
        self.wide = [_columns(wide[:, :, i]) for i in range(lines)]
        made = memory("made", TILE, across, TILE, images * results)
        self.made = _columns(made.swapaxes(1, 2))
        self.whole = made.reshape(TILE, TILE * across, images, results)[:, :width]


def _columns(values: Maps) -> Maps:
    """Values (place, ..., number) as matrices (..., piece, place, number of the piece), whose places are multiplied."""
    place, *middle, numbers = values.shape
    return np.moveaxis(values.reshape(place, *middle, _pieces(numbers, UNPACKED // SPAN**2), -1), 0, -2)


def _pieces(total: int, most: int) -> int:
    """How many equal pieces, a power of two, have at most so many each, if there are."""
    pieces = 1
    while total // pieces > most and total % (2 * pieces) == 0:
        pieces *= 2
    return pieces


def _aligned(size: int) -> Maps:
    """Memory that TensorFlow takes as it is, without copying it: float32, at a multiple of 64 bytes."""
    memory = np.empty(size + _ALIGNED // 4, np.float32)
    start = -memory.ctypes.data % _ALIGNED // 4
    return memory[start : start + size]

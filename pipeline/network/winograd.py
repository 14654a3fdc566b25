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

import math
import threading
from collections.abc import Callable, Sequence
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

    def run(self, work: Callable[[int, int], None], items: Sequence[tuple[int, int]]) -> None:
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
    """A 3 × 3 convolution of float32 maps with zeros around them, its bias and ReLU.

    Parameters
    ----------
    kernel : ndarray, float32 (3, 3, channels, channels of the result)
    bias : ndarray, float32 (channels of the result,)
    workers : Workers
        The threads that compute it.
    turn : {0, 1}
        Which of their two places for results it uses.
    """

    def __init__(self, kernel: Maps, bias: Maps, workers: Workers, turn: int = 0) -> None:
        _, _, channels, results = kernel.shape
        both = np.kron(_KERNEL, _KERNEL).astype(np.float32)  # G g Gᵀ of all kernels by one matrix product
        self._kernels = (both @ kernel.reshape(9, -1)).reshape(SPAN, SPAN, channels, results)
        self._bias, self._workers, self._turn = bias, workers, turn

    def __call__(self, maps: Maps) -> Maps:
        """Convolve maps, float32 (height, width, image, channel); the number of images is a multiple of ``LEAST``.

        The result is there until a convolution of the same turn is computed by these workers.
        """
        height, width, images, _ = maps.shape
        down, across = _tiles(height), _tiles(width)
        result = self._workers.place(self._turn, height, width, images, self._kernels.shape[-1])
        together = self._workers.images_together(images, across)
        lines = max(1, ROWS // (together * across))

        def work(image: int, line: int) -> None:
            some = slice(image, image + together)
            self._convolve(maps[:, :, some], result[:, :, some], line, min(lines, down - line))

        self._workers.run(work, [(i, line) for i in range(0, images, together) for line in range(0, down, lines)])
        return result

    def _convolve(self, maps: Maps, result: Maps, line: int, lines: int) -> None:
        """Compute some lines of tiles. Images and channels are one axis where each is by itself."""
        height, width, images, channels = maps.shape
        steps = self._workers.steps(lines, width, images, channels, result.shape[3])
        # Bᵀ d, along the height; what is above and below a map is left out.
        for i in range(lines):
            top = TILE * (line + i) - 1
            first, last = max(0, -top), min(SPAN, height - top)
            seen = maps[top + first : top + last].reshape(last - first, width, -1)
            np.matmul(_INPUT[:, first:last], seen.swapaxes(0, 1), out=steps.tall[i])
        # One of six lines of places at a time, so that what a step makes is in the cache when the next one takes it.
        for i in range(SPAN):
            np.matmul(_INPUT, steps.tiles[i], out=steps.place)  # (Bᵀ d) B, along the width
            np.matmul(steps.pixels, self._kernels[i], out=steps.sums)  # all channels, at each place by itself
            if i == _ONES[0]:
                steps.sums[_ONES[1]] += self._bias
            np.matmul(_OUTPUT, steps.sums_flat, out=steps.wide_flat[i])  # m A, along the width
        # Aᵀ (m A), along the height, which is put where it belongs, and ReLU.
        for i in range(lines):
            np.matmul(_OUTPUT, steps.wide[i], out=steps.made)
            there = result[TILE * (line + i) :][:TILE]
            np.maximum(steps.whole[: len(there)], 0, out=there)


class _Steps:
    """Memory of a thread for what the steps make of some lines of tiles, as each step has it or takes it."""

    def __init__(self, memory: Callable[..., Maps], lines: int, width: int, images: int, channels: int, results: int):
        across = _tiles(width)
        rows, together = lines * across * images, images * channels
        tall = memory("tall", SPAN, lines, TILE * across + 2, together)
        tall[:, :, 0] = tall[:, :, width + 1 :] = 0  # what is left and right of a map
        self.tall = [tall[:, i, 1 : width + 1].swapaxes(0, 1) for i in range(lines)]
        place, line, pixel, number = tall.strides
        shape, strides = (SPAN, lines, across, SPAN, together), (place, line, TILE * pixel, pixel, number)
        self.tiles = as_strided(tall, shape, strides)  # of which neighbours overlap
        self.pixels = memory("pixels", SPAN, rows, channels)
        self.place = np.moveaxis(self.pixels.reshape(SPAN, lines, across, together), 0, 2)
        self.sums = memory("sums", SPAN, rows, results)
        self.sums_flat = self.sums.reshape(SPAN, -1)
        wide = memory("wide", SPAN, TILE, lines, across, images * results)
        self.wide_flat = wide.reshape(SPAN, TILE, -1)
        self.wide = [np.moveaxis(wide[:, :, i], 0, 2) for i in range(lines)]
        made = memory("made", TILE, across, TILE, images * results)
        self.made = made.swapaxes(0, 2)
        self.whole = made.reshape(TILE, TILE * across, images, results)[:, :width]


def _aligned(size: int) -> Maps:
    """Memory that TensorFlow takes as it is, without copying it: float32, at a multiple of 64 bytes."""
    memory = np.empty(size + _ALIGNED // 4, np.float32)
    start = -memory.ctypes.data % _ALIGNED // 4
    return memory[start : start + size]

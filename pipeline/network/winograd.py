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

ROWS = 256  # of a matrix product: enough for its kernels to be read once, and it stays in the processor's cache
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


def suits(height: int, width: int, images: int, channels: int) -> bool:
    """Whether a convolution of so many channels takes less time so than directly.

    Transforms take the time of about 40 multiplications for each pixel and channel; and what lies outside of a map is
    not multiplied by the direct one, but is part of the tiles here, which need not be full either.
    """
    direct = (3 * height - 2) * (3 * width - 2)
    return images % LEAST == 0 and channels >= 64 and direct >= 1.7 * SPAN**2 * _tiles(height) * _tiles(width)


def _tiles(side: int) -> int:
    return -(-side // TILE)


class Workers:
    """Threads that compute items of work side by side, each with memory of its own that it uses again and again."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="winograd")
        self._blas = ThreadpoolController()
        self._local = threading.local()

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

    def memory(self, name: str, *shape: int) -> Maps:
        """Memory of this thread under a name, float32, with whatever it was left with."""
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
    """

    def __init__(self, kernel: Maps, bias: Maps, workers: Workers) -> None:
        _, _, channels, results = kernel.shape
        both = np.kron(_KERNEL, _KERNEL).astype(np.float32)  # G g Gᵀ of all kernels by one matrix product
        self._kernels = (both @ kernel.reshape(9, -1)).reshape(SPAN, SPAN, channels, results)
        self._bias, self._workers = bias, workers

    def __call__(self, maps: Maps) -> Maps:
        """Convolve maps, float32 (height, width, image, channel); the number of images is a multiple of ``LEAST``."""
        height, width, images, _ = maps.shape
        down, across = _tiles(height), _tiles(width)
        result = _aligned(TILE * down, TILE * across, images, self._kernels.shape[-1])
        together = self._workers.images_together(images, across)
        lines = max(1, ROWS // (together * across))

        def work(image: int, line: int) -> None:
            some = slice(image, image + together)
            self._convolve(maps[:, :, some], result[:, :, some], line, min(lines, down - line))

        self._workers.run(work, [(i, line) for i in range(0, images, together) for line in range(0, down, lines)])
        if result.shape[:2] == (height, width):
            return result
        cut = _aligned(height, width, *result.shape[2:])
        cut[...] = result[:height, :width]
        return cut

    def _convolve(self, maps: Maps, result: Maps, line: int, lines: int) -> None:
        """Compute some lines of tiles. Images and channels are one axis where each is by itself."""
        height, width, images, channels = maps.shape
        across, results, memory = result.shape[1] // TILE, result.shape[3], self._workers.memory
        rows = lines * across * images
        # What a step makes, the next one takes, and then its memory is free for what that one's successor makes.
        # Bᵀ d, along the height; what is left and right of a map is 0, and what is above and below is left out.
        tall = memory("odd", SPAN, lines, TILE * across + 2, images * channels)
        tall[:, :, 0] = tall[:, :, width + 1 :] = 0
        for i in range(lines):
            top = TILE * (line + i) - 1
            first, last = max(0, -top), min(SPAN, height - top)
            seen = maps[top + first : top + last].reshape(last - first, width, -1)
            np.matmul(_INPUT[:, first:last], seen.swapaxes(0, 1), out=tall[:, i, 1 : width + 1].swapaxes(0, 1))
        # (Bᵀ d) B, along the width: tiles, of which neighbours overlap.
        place, down, pixel, number = tall.strides
        tiles = as_strided(
            tall, (SPAN, lines, across, SPAN, images * channels), (place, down, TILE * pixel, pixel, number)
        )
        pixels = memory("even", SPAN, SPAN, rows, channels)
        apart = pixels.reshape(SPAN, SPAN, lines, across, -1)
        np.matmul(_INPUT, tiles, out=np.moveaxis(apart, 1, 3))
        # All channels, at each place by itself, and the bias.
        sums = memory("odd", SPAN, SPAN, rows, results)
        np.matmul(pixels, self._kernels, out=sums)
        sums[_ONES] += self._bias
        # Aᵀ m, then (Aᵀ m) A, which is put where it belongs, and ReLU.
        apart = sums.reshape(SPAN, SPAN, lines, across, -1)
        wide = memory("even", TILE, SPAN, lines, across, images * results)
        np.matmul(_OUTPUT, np.moveaxis(apart, 0, 3), out=np.moveaxis(wide, 0, 3))
        for i in range(lines):
            top = TILE * (line + i)
            made = result[top : top + TILE].reshape(TILE, across, TILE, -1, copy=False)
            np.matmul(_OUTPUT, wide[:, :, i].swapaxes(1, 2), out=made)
            np.maximum(made, 0, out=made)


def _aligned(*shape: int) -> Maps:
    """Memory that TensorFlow takes over as it is, without copying it: float32, at a multiple of 64 bytes."""
    size = math.prod(shape)
    memory = np.empty(size + _ALIGNED // 4, np.float32)
    start = -memory.ctypes.data % _ALIGNED // 4
    return memory[start : start + size].reshape(shape)

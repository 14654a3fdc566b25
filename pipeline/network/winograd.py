"""3 × 3 convolutions with a quarter of the multiplications: Winograd's minimal filtering F(4 × 4, 3 × 3), and F(6 × 6).

A map is cut into tiles that are to be computed, each from a tile that is two pixels larger. Those and the kernels are
transformed, their channels multiplied at each place of the larger tile by itself, and the sums transformed back:

    Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A

36 multiplications for each 4 × 4 pixels and pair of channels, where the convolution has 144; 64 for 6 × 6, where it has
324. From Lavin & Gray 2015, "Fast algorithms for convolutional neural networks", https://arxiv.org/abs/1509.09308,
section 4. What remains are matrix products: of rows as many as tiles and images, which numpy's BLAS computes at the
processor's ceiling, and in threads of Python side by side, as it lets go of the interpreter meanwhile.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from pipeline.network import device

Maps = NDArray[np.float32]

ROWS = 512  # of a matrix product: its kernels are read seldom, and what it makes stays in the cache
# What a multiplication of a product takes, and the transforms of a pixel of a channel, in the time of a multiplication
# of a direct convolution: fitted to the layers of VGG16 at 32 and 64 pixels, on an Intel Xeon with AVX-512, for tiles
# of 4 × 4. They foretell where those of 6 × 6 are faster, too, by some percent at 128 and 224 pixels, by a fifth at 96.
PRODUCT, TRANSFORM = 1.2, 165
# Multiplications of a product that OpenBLAS computes from where its factors are. For more it packs them first, which
# takes longer than to multiply by a matrix of 6 × 6. With fewer rows than 64 it is slow either way.
UNPACKED, FEW_ROWS = 10**6, 64
LEAST = 8  # images that go through together: a product of fewer rows may add up in another order
_ALIGNED = 64  # bytes: TensorFlow takes such memory over without copying it


@dataclass(frozen=True, eq=False)
class Filtering:
    """One algorithm of the family: F(tile × tile, 3 × 3)."""

    tile: int  # pixels of a tile, on a side
    span: int  # and of what it is computed from: two more
    input: Maps  # Bᵀ (span, span)
    kernel: NDArray[np.float64]  # G (span, 3)
    output: Maps  # Aᵀ (tile, span)

    def tiles(self, side: int) -> int:
        """Tiles that cover a side of a map; the last may overhang."""
        return -(-side // self.tile)

    def cost(self, height: int, width: int, channels: int, results: int) -> float:
        """What a convolution of maps takes, in the time of a multiplication of a direct one, for each image."""
        tile = PRODUCT * self.span**2 * channels * results + TRANSFORM * self.tile**2 * (channels + results)
        return tile * self.tiles(height) * self.tiles(width)

    def columns(self, values: Maps) -> Maps:
        """Values (place, ..., number) as matrices (..., piece, place, number of the piece), to multiply the places."""
        place, *middle, numbers = values.shape
        pieces = _pieces(numbers, UNPACKED // self.span**2)
        return np.moveaxis(values.reshape(place, *middle, pieces, -1), 0, -2)


def _filtering(*points: float) -> Filtering:
    """Make the algorithm that evaluates polynomials at some points and at infinity, by Toom and Cook, transposed.

    The second point is 1, see ``_ONES``. Rows of Bᵀ and G are scaled so that those of Bᵀ are simple fractions.
    """
    span, finite = len(points) + 1, np.array(points)

    def powers(count: int) -> NDArray[np.float64]:
        return np.vstack([np.vander(finite, count, increasing=True), np.eye(count)[-1:]])

    differences = finite[:, np.newaxis] - finite + np.eye(len(points))
    scale = np.append(differences.prod(axis=1), 1)[:, np.newaxis]
    inputs, outputs = (np.linalg.inv(powers(span)).T * scale).round(9), powers(span - 2).T
    return Filtering(span - 2, span, inputs.astype(np.float32), powers(3) / scale, outputs.astype(np.float32))


FILTERINGS = _filtering(0, 1, -1, 2, -2), _filtering(0, 1, -1, 2, -2, 1 / 2, -1 / 2)
# Aᵀ of a matrix that is 1 here and 0 elsewhere is 1 at all of the tile: what a bias is added to.
_ONES = (1, 1)


def is_of_use() -> bool:
    """Whether numpy's BLAS multiplies as fast as the processor can, so that fewer multiplications take less time.

    It needs AVX2; and a BLAS that was loaded for AVX2 has half the speed of convolutions by AVX-512.
    """
    flags = device.flags()
    if "avx2" not in flags or "fma" not in flags:
        return False
    kinds = {str(library.get("architecture")) for library in ThreadpoolController().info()}
    return not flags >= device.AVX512 or bool(kinds & {"SkylakeX", "Cooperlake", "SapphireRapids"})


def choose(height: int, width: int, images: int, channels: int, results: int) -> Filtering | None:
    """The algorithm by which a convolution of so many channels, to so many, takes least time; None for the direct one.

    Counted in multiplications of the direct one, which has none for what lies outside of a map; tiles have, and need
    not be full either.
    """
    direct = (3 * height - 2) * (3 * width - 2) * channels * results
    costs = [filtering.cost(height, width, channels, results) for filtering in FILTERINGS]
    return FILTERINGS[costs.index(min(costs))] if images % LEAST == 0 and min(costs) < direct else None


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

    def steps(self, *shape: Any) -> _Steps:
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
    filtering : Filtering
        The algorithm.
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
        self, filtering: Filtering, kernel: Maps, bias: Maps, workers: Workers, turn: int = 0, *, halve: bool = False,
        average: bool = False,
    ) -> None:  # fmt: skip
        _, _, channels, results = kernel.shape
        # G g Gᵀ of all kernels by one matrix product
        both = np.kron(filtering.kernel, filtering.kernel).astype(np.float32)
        self._kernels = (both @ kernel.reshape(9, -1)).reshape(filtering.span, filtering.span, channels, results)
        self._filtering, self._bias, self._workers, self._turn = filtering, bias, workers, turn
        self._halve, self._average = halve, average

    def __call__(self, maps: Maps) -> list[Maps]:
        """Convolve maps, float32 (height, width, image, channel); the number of images is a multiple of ``LEAST``.

        The result, and the averages (image, channel) if they are wanted. The result is there until a convolution of the
        same turn is computed by these workers.
        """
        height, width, images, _ = maps.shape
        step, results = 1 + self._halve, self._kernels.shape[-1]
        down, across = self._filtering.tiles(height), self._filtering.tiles(width)
        result = self._workers.place(self._turn, height // step, width // step, images, results)
        # Each line of tiles has sums of its own, so that they add up in the same order whatever is computed together.
        sums = np.empty((down if self._average else 0, images, results), np.float32)

        together = self._workers.images_together(images, across)
        lines = max(1, ROWS // (together * across))

        def work(some: slice, lines: slice) -> None:
            self._convolve(maps[:, :, some], result[:, :, some], sums[:, some], lines)

        self._workers.run(work, itertools.product(_slices(images, together), _slices(down, lines)))
        return [result, sums.sum(axis=0) / np.float32(height * width)] if self._average else [result]

    def _convolve(self, maps: Maps, result: Maps, sums: Maps, lines: slice) -> None:
        """Compute some lines of tiles. Images and channels are one axis where each is by itself."""
        height, width, images, channels = maps.shape
        filtering = self._filtering
        tile, span, columns = filtering.tile, filtering.span, filtering.columns
        steps = self._workers.steps(filtering, lines.stop - lines.start, width, images, channels, result.shape[3])
        # Bᵀ d, along the height; what is above and below a map is left out.
        for tall, line in zip(steps.tall, range(lines.start, lines.stop), strict=True):
            top = tile * line - 1
            first, last = max(0, -top), min(span, height - top)
            seen = maps[top + first : top + last].reshape(last - first, width, -1)
            np.matmul(filtering.input[:, first:last], columns(seen), out=tall)
        # One line of places at a time, so that what a step makes is in the cache when the next one takes it.
        for i in range(span):
            np.matmul(filtering.input, steps.tiles[i], out=steps.place)  # (Bᵀ d) B, along the width
            # all channels, at each place by itself
            np.matmul(steps.rows, self._kernels[i, :, np.newaxis], out=steps.products)
            if i == _ONES[0]:
                steps.sums[_ONES[1]] += self._bias
            np.matmul(filtering.output, steps.sum_columns, out=steps.wide_columns[i])  # m A, along the width
        for wide, line in zip(steps.wide, range(lines.start, lines.stop), strict=True):
            np.matmul(filtering.output, wide, out=steps.made)  # Aᵀ (m A), along the height
            whole = steps.whole[: height - tile * line]
            there = whole if self._halve else result[tile * line :][:tile]
            np.maximum(whole, 0, out=there)
            if self._average:
                np.add.reduce(there, axis=(0, 1), out=sums[line])
            if self._halve:
                there = result[tile // 2 * line :][: tile // 2]
                end = 2 * len(there)
                higher = np.maximum(whole[:end:2], whole[1:end:2], out=whole[:end:2])
                end = width - width % 2
                np.maximum(higher[:, :end:2], higher[:, 1:end:2], out=there)


def _slices(total: int, step: int) -> list[slice]:
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


class _Steps:
    """Memory of a thread for what the steps make of some lines of tiles, as each step has it or takes it."""

    def __init__(
        self, memory: Callable[..., Maps], filtering: Filtering, lines: int, width: int, images: int, channels: int,
        results: int,
    ) -> None:  # fmt: skip
        tile, span, columns = filtering.tile, filtering.span, filtering.columns
        across = filtering.tiles(width)
        rows, together = lines * across * images, images * channels
        tall = memory("tall", span, lines, tile * across + 2, together)
        tall[:, :, 0] = tall[:, :, width + 1 :] = 0  # what is left and right of a map
        self.tall = [columns(tall[:, i, 1 : width + 1]) for i in range(lines)]
        _, line, pixel, number = tall.strides
        shape, strides = (span, lines, across, together), (pixel, line, tile * pixel, number)
        self.tiles = [columns(as_strided(place, shape, strides)) for place in tall]  # of which neighbours overlap
        self.pixels = memory("pixels", span, rows, channels)
        self.place = columns(self.pixels.reshape(span, lines, across, together))
        self.sums = memory("sums", span, rows, results)
        most = UNPACKED // (channels * results)
        pieces = _pieces(rows, most) if most >= FEW_ROWS else 1
        self.rows = self.pixels.reshape(span, pieces, -1, channels)
        self.products = self.sums.reshape(span, pieces, -1, results)
        self.sum_columns = columns(self.sums.reshape(span, -1))
        wide = memory("wide", span, tile, lines, across, images * results)
        self.wide_columns = [columns(place.reshape(tile, -1)) for place in wide]
        self.wide = [columns(wide[:, :, i]) for i in range(lines)]
        made = memory("made", tile, across, tile, images * results)
        self.made = columns(made.swapaxes(1, 2))
        self.whole = made.reshape(tile, tile * across, images, results)[:, :width]


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

"""VGG16's taps in NumPy, by the textbook, one image after the other.

TensorFlow takes seconds to load, and this nothing: so it computes where images are few, and it is what the graph of
`pipeline.network.vgg16` is proven against.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.network.taps import CONV_LAYERS, POOLINGS, TAP_COLUMNS, columns_of

if TYPE_CHECKING:
    from pipeline.network.weights import Layer

# Mean red, green and blue of ImageNet, 0 to 255, that VGG16 was trained with: keras.applications' "caffe" mode.
MEAN_RGB = (123.68, 116.779, 103.939)

_BAND = 1 << 22  # numbers of a map that are multiplied at a time: memory does not grow with its size
_STEPS = 1024  # between two pixels, to which TensorFlow rounds where it interpolates

Images = NDArray[np.uint8] | Sequence[NDArray[np.uint8]]
Array = NDArray[Any]


class Network:
    """Features of images, as `vgg16.Extractor` gives them but for the order of float additions.

    Its parameters are those of that. bfloat16 is float32 whose kernels and maps are rounded, which is what processors
    that have it compute; ``float64`` is what both are measured by.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        taps: Sequence[str],
        *,
        image_size: int,
        precision: str = "float32",
        view: str = "plain",
    ) -> None:
        self._taps, self._size, self._view = tuple(taps), image_size, view
        self._dtype = np.float64 if precision == "float64" else np.float32
        self._narrow: Callable[[Array], Array] = _as_bfloat16 if precision == "bfloat16" else lambda values: values
        self._layers = {
            layer: tuple(self._narrow(each.astype(self._dtype)) for each in layers[layer])
            for layer in layers_below(taps)
        }

    def raw(self, images: Images) -> dict[str, Array]:
        """Features before they are stored: for each tap, float (n, columns)."""
        features = np.empty((len(images), columns_of(self._taps)), self._dtype)
        for row, image in zip(features, images, strict=True):
            pixels = _resized(image.astype(self._dtype), self._size)
            row[:] = self._seen(pixels)
            if self._view == "mirror":
                row[:] = (row + self._seen(pixels[:, ::-1])) / 2
        return split(features, self._taps)

    def __call__(self, images: Images) -> dict[str, NDArray[np.float16]]:
        """Features of n images, uint8 (h, w, 3) each, RGB: for each tap, float16 (n, columns).

        Raises UserError when a feature is too large for float16, or not a number.
        """
        with np.errstate(over="ignore", invalid="ignore"):  # said below, with the tap's name
            return checked({tap: values.astype(np.float16) for tap, values in self.raw(images).items()})

    def _seen(self, pixels: Array) -> Array:
        """All taps side by side (columns,) of an image (size, size, 3) in RGB."""
        maps, found = self._narrow(pixels[..., ::-1] - np.array(MEAN_RGB[::-1], self._dtype)), {}

        def keep(name: str) -> None:
            for how, pooling in POOLINGS.items():
                if (tap := f"{name}.{how}") in self._taps:
                    found[tap] = pooling.pool(maps, self._narrow)

        for layer, following in itertools.pairwise([*self._layers, ""]):
            kernel, bias = self._layers[layer]
            maps = self._narrow(np.maximum(_convolved(maps, kernel) + bias, 0))
            keep(layer)
            if following[:6] != layer[:6]:  # the block ends
                height, width, channels = (maps.shape[0] // 2, maps.shape[1] // 2, maps.shape[2])
                even = maps[: 2 * height, : 2 * width].reshape(height, 2, width, 2, channels)
                maps = even.max(axis=(1, 3))
                keep(f"{layer[:6]}_pool")
        return np.concatenate([found[tap] for tap in self._taps])


def layers_below(taps: Sequence[str]) -> list[str]:
    """Names of the convolutions up to the highest tap."""
    names = {tap.rpartition(".")[0] for tap in taps}
    # A pooling, such as block3_pool, needs all convolutions of its block.
    last = max(i for i, layer in enumerate(CONV_LAYERS) if layer in names or f"{layer[:6]}_pool" in names)
    return list(CONV_LAYERS)[: last + 1]


def split(features: Array, taps: Sequence[str]) -> dict[str, Array]:
    """Columns of all taps side by side, apart."""
    ends = np.cumsum([TAP_COLUMNS[tap] for tap in taps])
    return dict(zip(taps, np.split(features, ends[:-1], axis=1), strict=True))


def checked(features: dict[str, NDArray[np.float16]]) -> dict[str, NDArray[np.float16]]:
    """Features as they are; raises UserError, naming the tap, where one is infinite or no number."""
    for tap, values in features.items():
        # Infinity and NaN are the numbers whose five bits of exponent are all set; numpy's isfinite takes six times as
        # long for float16.
        if ((values.view(np.uint16) & 0x7C00) == 0x7C00).any():
            raise UserError(
                f"The tap {tap} gives a value beyond float16's largest, 65504, or no number at all, for an image "
                f"of this batch. The weights are unlike the ImageNet ones: leave this tap out with --taps, or use "
                f"other weights."
            )
    return features


# --- of one image -----------------------------------------------------------------------------


def _as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Round float32 to the nearest bfloat16, its upper half, ties to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (0x7FFF + ((bits >> 16) & 1))) & 0xFFFF0000).view(np.float32)


def _resized(image: Array, size: int) -> Array:
    """An image (h, w, 3) at size by size pixels."""
    for axis in (0, 1):
        if image.shape[axis] != size:
            matrix = _bicubic(image.shape[axis], size).astype(image.dtype)
            image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image


@functools.lru_cache(maxsize=64)
def _bicubic(size: int, target: int) -> NDArray[np.float64]:
    """What makes so many pixels of others, float64 (target, size).

    Keys' cubic convolution with a = -0.5 (https://doi.org/10.1109/TASSP.1981.1163711), pixel centres at halves, without
    antialiasing; beyond an edge there is nothing, and what is left has the whole weight.
    """
    at = (np.arange(target) + 0.5) * size / target - 0.5
    first, taken = np.floor(at).astype(int), np.arange(-1, 3)
    x = np.abs(np.rint((at - first) * _STEPS)[:, None] / _STEPS - taken)
    weights = np.where(x <= 1, 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2)
    places = first[:, None] + taken
    inside = (places >= 0) & (places < size)
    matrix: NDArray[np.float64] = np.zeros((target, size))
    np.add.at(matrix, (np.nonzero(inside)[0], places[inside]), weights[inside])
    matrix /= matrix.sum(axis=1, keepdims=True)
    return matrix


def _convolved(maps: Array, kernel: Array) -> Array:
    """Maps (h, w, channels) under a kernel (3, 3, channels, out), zeros around them; some rows of them at a time."""
    height, width, channels = maps.shape
    padded, rows = np.pad(maps, ((1, 1), (1, 1), (0, 0))), max(1, _BAND // (width * channels))
    bands = [padded[top : min(top + rows, height) + 2] for top in range(0, height, rows)]
    return np.concatenate([_products(band, kernel) for band in bands])


def _products(padded: Array, kernel: Array) -> Array:
    """A product for each row of the kernel: with its neighbours beside each pixel, a map moved by a row is a slice."""
    height, width, channels = padded.shape[0] - 2, padded.shape[1] - 2, padded.shape[2]
    beside = np.concatenate([padded[:, column : column + width] for column in range(3)], axis=2)
    pixels, count = beside.reshape(-1, 3 * channels), height * width
    above, own, below = (
        pixels[row * width :][:count] @ each for row, each in enumerate(kernel.reshape(3, 3 * channels, -1))
    )
    above += own
    above += below
    return above.reshape(height, width, -1)

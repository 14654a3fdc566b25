"""How maps lie in memory and are convolved, which decides the network's speed.

The textbook's order, image by image (NHWC), leaves a matrix product of as few rows as a map is wide: at 32 pixels the
last block has maps of 2 × 2, and nine tenths of the time there is spent on edges and padding. So for small images the
batch becomes the innermost spatial axis: maps are (height, width, image, channel), and a 3 × 3 convolution of images
is a 3 × 3 × 1 convolution of that volume. Every matrix product then has as many rows as the batch has images, and what
lies outside of an image is not multiplied. `pipeline.network.winograd` is made for the same order, at any size.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from pipeline.network import winograd
from pipeline.network.device import cores

# Up to this size, in pixels, the batch goes innermost: measured, that is 1.4 times as fast at 32 pixels and 1.1 times
# at 64, but no faster at 96, and slower at 128.
BATCH_INNERMOST_SIZE = 64
# Pixels of a batch from which on it pays to transform the kernels, which takes as long as 30 images of 64 pixels do.
WINOGRAD_PIXELS = 32 * 64 * 64


Pooling = Callable[[tf.Tensor, "Layout"], tf.Tensor]  # maps, and how they lie in memory, to float32 (n, columns)
Kept = tuple[tf.Tensor, dict[str, tf.Tensor]]  # maps that the next layer takes, and what was pooled of the whole ones


class ConvLayer(NamedTuple):
    """A convolution with its bias and ReLU, and what is wanted of its maps."""

    kernel: tf.Tensor
    bias: tf.Tensor
    poolings: Mapping[str, Pooling]  # by their names
    halve: bool  # the next layer takes the largest of each 2 × 2 positions


class Layout:
    """The textbook's: maps are (image, height, width, channel), and convolutions are direct."""

    direct = True

    def compute(self, layer: ConvLayer, maps: tf.Tensor, after: Iterable[tf.Tensor]) -> Kept:
        """Compute a layer of maps; ``after`` is all else that was to be computed from maps before."""
        return self._kept(layer, tf.nn.relu(tf.nn.bias_add(self.convolve(maps, layer.kernel), layer.bias)))

    def _kept(self, layer: ConvLayer, whole: tf.Tensor) -> Kept:
        pooled = {how: pool(whole, self) for how, pool in layer.poolings.items()}
        return self.halve(whole) if layer.halve else whole, pooled

    def enter(self, pixels: tf.Tensor) -> tf.Tensor:
        """Images, (image, height, width, channel), in this layout."""
        return pixels

    def convolve(self, maps: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """The convolution alone, of as many positions as there are."""
        return tf.nn.conv2d(maps, kernel, 1, "SAME")

    def halve(self, maps: tf.Tensor) -> tf.Tensor:
        """The largest of each 2 × 2 positions."""
        return tf.nn.max_pool2d(maps, 2, 2, "VALID")

    def pool(self, maps: tf.Tensor, how: str, window: Sequence[int], strides: Sequence[int] = (1, 1)) -> tf.Tensor:
        """The average or the largest of windows."""
        return {"avg": tf.nn.avg_pool2d, "max": tf.nn.max_pool2d}[how](maps, window, strides, "VALID")

    def rows(self, maps: tf.Tensor) -> tf.Tensor:
        """Maps as (image, position, channel)."""
        return tf.reshape(maps, (maps.shape[0], -1, maps.shape[-1]))


class _BatchInnermost(Layout):
    """The layout for small images: maps are (1, height, width, image, channel), one volume for the whole batch."""

    def enter(self, pixels: tf.Tensor) -> tf.Tensor:
        return tf.transpose(pixels, (1, 2, 0, 3))[tf.newaxis]

    def convolve(self, maps: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        return tf.nn.conv3d(maps, kernel[:, :, tf.newaxis], (1, 1, 1, 1, 1), "SAME")

    def halve(self, maps: tf.Tensor) -> tf.Tensor:
        return tf.nn.max_pool3d(maps, (2, 2, 1), (2, 2, 1), "VALID")

    def pool(self, maps: tf.Tensor, how: str, window: Sequence[int], strides: Sequence[int] = (1, 1)) -> tf.Tensor:
        return {"avg": tf.nn.avg_pool3d, "max": tf.nn.max_pool3d}[how](maps, (*window, 1), (*strides, 1), "VALID")

    def rows(self, maps: tf.Tensor) -> tf.Tensor:
        *_, count, channels = maps.shape
        return tf.transpose(tf.reshape(maps, (-1, count, channels)), (1, 0, 2))


class _Winograd(_BatchInnermost):
    """The same, with Winograd's convolutions where they are faster than direct ones."""

    direct = False

    def __init__(self) -> None:
        self._workers = winograd.Workers(tf.config.threading.get_intra_op_parallelism_threads() or cores())
        self._turns = itertools.cycle((0, 1))

    def compute(self, layer: ConvLayer, maps: tf.Tensor, after: Iterable[tf.Tensor]) -> Kept:
        _, height, width, images, channels = maps.shape
        kernel, bias = layer.kernel.numpy(), layer.bias.numpy()
        results = len(bias)
        filtering = winograd.choose(height, width, images, channels, results)
        if filtering is None:
            return super().compute(layer, maps, after)
        # Averages and halves are taken of what is in the cache; if there is more to take, the whole maps are kept.
        alone = set(layer.poolings) <= {"avg"}
        average, halve = alone and bool(layer.poolings), alone and layer.halve
        convolution = winograd.Convolution(
            filtering, kernel, bias, self._workers, next(self._turns), halve=halve, average=average
        )

        def convolve(maps: winograd.Maps) -> list[winograd.Maps]:
            result, *averages = convolution(maps[0])
            return [result[np.newaxis], *averages]

        with tf.control_dependencies(after):  # it may overwrite what those are computed from
            result, *averages = tf.numpy_function(convolve, [maps], [tf.float32] * (1 + average), stateful=False)
        result = tf.ensure_shape(result, (1, height >> halve, width >> halve, images, results))
        if alone:
            return result, {how: tf.ensure_shape(*averages, (images, results)) for how in layer.poolings}
        return self._kept(layer, result)


def choose_layout(image_size: int, batch_size: int, *, precision: str, device: str, direct: bool = False) -> Layout:
    """The fastest layout for batches of so many images; ``direct`` is one without Winograd's convolutions.

    It follows from these and the processor alone, never from how many images there are or what was computed before, so
    that a run that is called again goes on with the same.
    """
    if device.startswith("CPU"):
        pays = batch_size * image_size**2 >= WINOGRAD_PIXELS and batch_size % winograd.LEAST == 0
        if precision == "float32" and not direct and pays and winograd.is_of_use():
            return _Winograd()
        if image_size <= BATCH_INNERMOST_SIZE:
            return _BatchInnermost()
    return Layout()

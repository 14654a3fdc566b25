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


class Layout:
    """The textbook's: maps are (image, height, width, channel), and convolutions are direct."""

    direct = True

    def layer(
        self,
        maps: tf.Tensor,
        kernel: tf.Tensor,
        bias: tf.Tensor,
        poolings: Mapping[str, Pooling],
        *,
        halve: bool,
        after: Iterable[tf.Tensor],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        """A convolution, its bias and ReLU, halved if this is asked for; and what poolings make of the whole maps.

        ``after`` is all else that was to be computed from maps before.
        """
        return self._kept(tf.nn.relu(tf.nn.bias_add(self.convolve(maps, kernel), bias)), poolings, halve)

    def _kept(
        self, maps: tf.Tensor, poolings: Mapping[str, Pooling], halve: bool
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        pooled = {how: pool(maps, self) for how, pool in poolings.items()}
        return self.halve(maps) if halve else maps, pooled

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

    def layer(
        self,
        maps: tf.Tensor,
        kernel: tf.Tensor,
        bias: tf.Tensor,
        poolings: Mapping[str, Pooling],
        *,
        halve: bool,
        after: Iterable[tf.Tensor],
    ) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
        _, height, width, images, channels = maps.shape
        if not winograd.suits(height, width, images, channels, kernel.shape[-1]):
            return super().layer(maps, kernel, bias, poolings, halve=halve, after=after)
        # Averages and halves are taken of what is in the cache; if there is more to take, the whole maps are kept.
        alone = set(poolings) <= {"avg"}
        average, half = alone and bool(poolings), alone and halve
        convolution = winograd.Convolution(
            kernel.numpy(), bias.numpy(), self._workers, next(self._turns), halve=half, average=average
        )

        def compute(maps: winograd.Maps) -> list[winograd.Maps]:
            result, *averages = convolution(maps[0])
            return [result[np.newaxis], *averages]

        with tf.control_dependencies(after):  # it may overwrite what those are computed from
            result, *averages = tf.numpy_function(compute, [maps], [tf.float32] * (1 + average), stateful=False)
        result = tf.ensure_shape(result, (1, height >> half, width >> half, images, kernel.shape[-1]))
        if alone:
            return result, {how: tf.ensure_shape(*averages, (images, kernel.shape[-1])) for how in poolings}
        return self._kept(result, poolings, halve)


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

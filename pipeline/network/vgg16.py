"""Images to pooled activations: VGG16's convolutional base, every tap in one pass.

This module loads TensorFlow; nothing imports it before there is something to compute.

How maps are laid out, and how they are convolved, is in `pipeline.network.layouts`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

# TensorFlow's C++ side announces itself on stderr: only its errors are of interest to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # without it bfloat16 would be slower than float32

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tensorflow.python.client import device_lib  # TensorFlow's public functions do not tell the memory of a GPU

from pipeline.common.errors import UserError
from pipeline.network import by_numpy
from pipeline.network.by_numpy import MEAN_RGB, Images
from pipeline.network.device import Gpu
from pipeline.network.layouts import ConvLayer, Layout, Pooling, choose_layout
from pipeline.network.taps import DIRECTIONS, columns_of, directions

if TYPE_CHECKING:
    from pipeline.network.weights import Layer

log = logging.getLogger("pipeline")

# Relative L2 difference from float32, least and most, that is that precision's own. bfloat16 has 8 bits of
# significand (rounding by up to 2**-9 = 0.2 %), which 13 layers let grow to about 1 %; float32 has 24.
_DIFFERENCE = {"float32": (0.0, 1e-4), "bfloat16": (2e-4, 5e-2)}


def use_threads(threads: int) -> None:
    """Compute with so many threads; to be said before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)


def gpus() -> list[Gpu]:
    """The GPUs that TensorFlow sees, in its order."""
    devices = tf.config.list_physical_devices("GPU")
    try:
        local = device_lib.list_local_devices() if devices else []
    except (tf.errors.OpError, RuntimeError):  # others have so much of its memory that it cannot even be set up
        local = []
    limits = {device.name.rpartition("device:")[2]: device.memory_limit for device in local}
    found = []
    for index, device in enumerate(devices):
        details = tf.config.experimental.get_device_details(device)
        name, capability = details.get("device_name", device.name), details.get("compute_capability", (0, 0))
        found.append(Gpu(name, capability, limits.get(f"GPU:{index}", 0)))
    return found


def leave_gpus() -> None:
    """Keep to the processor; TensorFlow would set every GPU up, and take its memory, for nothing."""
    with suppress(RuntimeError):  # it has been set up already
        tf.config.set_visible_devices([], "GPU")


class Extractor:
    """A compiled graph from uint8 images to float16 features.

    Enlarging and VGG16's own preprocessing (RGB to BGR, minus the ImageNet mean, no division) are part
    of it, so features cannot be computed without them. Every batch goes through at one fixed shape, the last
    one filled up, so the row of an image is the same, bit for bit, whatever its neighbours are.

    Parameters
    ----------
    layers : mapping
        Kernel and bias of each of the 13 convolutions.
    taps : sequence of str
        What to keep, of `TAP_COLUMNS`. Layers above the highest of them are not computed.
    image_size : int
        Height and width, in pixels, that images are resized to.
    precision, batch_size, device
        As a `device.Plan` has them.
    view : {'plain', 'mirror'}
        Whether features are those of an image, or their mean with those of its mirror image.
    """

    def __init__(
        self,
        layers: Mapping[str, Layer],
        taps: Sequence[str],
        *,
        image_size: int,
        precision: str,
        batch_size: int = 128,
        view: str = "plain",
        device: str = "CPU:0",
    ) -> None:
        self._layers, self._taps, self._precision = layers, tuple(taps), precision
        self._size, self._view = image_size, view
        self.batch_size = batch_size
        self._device = device
        self._alone = threading.Lock()  # maps of one batch at a time: convolutions may have one place for them
        # On a GPU that computes float32 by TF32, with 10 bits of significand, "float32" would be no true name.
        tf.config.experimental.enable_tensor_float_32_execution(False)
        self._enlarge = tf.function(self._resized, input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
        self._compile()

    def _compile(self, direct: bool = False) -> None:
        """Set the graph up, with direct convolutions or with whatever is fastest."""
        with self._memory_errors():  # kernels of Winograd's convolutions take some hundred megabytes
            layout = choose_layout(
                self._size, self.batch_size, precision=self._precision, device=self._device, direct=direct
            )
            with tf.device(self._device):
                weights = _weights(self._layers, self._taps, tf.dtypes.as_dtype(self._precision))
            # Weights are captured, not constants of the graph: to fold those takes longer than it saves. Traced at
            # once, it captures only those that are convolved directly, and the others are let go.
            self._network = tf.function(
                lambda pixels: _network(pixels, weights, self._taps, layout),
                input_signature=[tf.TensorSpec((self.batch_size, self._size, self._size, 3), tf.float32)],
                autograph=False,
            ).get_concrete_function()
        self._direct = layout.direct

    def _resized(self, images: tf.Tensor) -> tf.Tensor:
        size = (self._size, self._size)
        return tf.image.resize(tf.cast(images, tf.float32), size, method="bicubic")  # without antialiasing

    def _pixels(self, images: Images) -> tf.Tensor:
        """Images at the network's size: float32 (n, size, size, 3), RGB, 0 to 255."""
        if not isinstance(images, np.ndarray):  # those of one size are resized together, then all are put into order
            groups: dict[tuple[int, ...], list[int]] = {}
            for index, image in enumerate(images):
                groups.setdefault(image.shape, []).append(index)
            resized = [self._pixels(np.stack([images[index] for index in group])) for group in groups.values()]
            order = np.argsort(np.concatenate(list(groups.values())))
            return resized[0] if len(resized) == 1 else tf.gather(tf.concat(resized, axis=0), order)
        batch = tf.constant(np.ascontiguousarray(images))
        if images.shape[1:3] == (self._size, self._size):
            return tf.cast(batch, tf.float32)
        return self._enlarge(batch)

    def _run(self, images: Images) -> tf.Tensor:
        """Features of at most a batch of images: float32 (n, columns of all taps side by side)."""
        with tf.device(self._device), self._alone:
            pixels = self._pixels(images)
            missing = self.batch_size - len(images)
            pixels = tf.pad(pixels, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else pixels
            features = self._network(pixels)
            if self._view == "mirror":
                features = (features + self._network(tf.reverse(pixels, [2]))) / 2
            return features[: len(images)]

    def _batches(self, images: Images) -> list[Images]:
        return [images[start : start + self.batch_size] for start in range(0, len(images), self.batch_size)]

    @contextmanager
    def _memory_errors(self) -> Iterator[None]:
        """Explain that memory does not suffice for a batch."""
        try:
            yield
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            advice = f"--batch-size, for example {self.batch_size // 4 or 1}" if self.batch_size > 1 else "--image-size"
            raise UserError(
                f"Memory does not suffice for batches of {self.batch_size} images at {self._size} px. Choose a smaller "
                f"{advice}" + ("; the features are the same." if self.batch_size > 1 else ".")
            ) from error

    def raw(self, images: Images) -> dict[str, NDArray[np.float32]]:
        """Features as the graph gives them: for each tap, float32 (n, columns)."""
        computed = np.concatenate([self._run(batch).numpy() for batch in self._batches(images)])
        return by_numpy.split(computed, self._taps)

    def __call__(self, images: Images) -> dict[str, NDArray[np.float16]]:
        """Features of images, batch by batch.

        Parameters
        ----------
        images : ndarray, uint8 (n, h, w, 3), or sequence of n ndarray, uint8 (h, w, 3)
            RGB, 0 to 255; n is at least 1. In a sequence each image may have a size of its own.

        Returns
        -------
        dict
            For each tap, float16 (n, columns).

        Raises
        ------
        UserError
            When a feature is too large for float16, or not a number, or when memory does not suffice.
        """
        result = np.empty((len(images), columns_of(self._taps)), np.float16)
        start = 0
        for batch in self._batches(images):
            with self._memory_errors():
                # Cast before it is copied: half the bytes, and numpy casts slower than the graph's library.
                result[start : start + len(batch)] = tf.cast(self._run(batch), tf.float16).numpy()
            start += len(batch)
        return by_numpy.checked(by_numpy.split(result, self._taps))

    def check_precision(self, images: Images) -> None:
        """Prove on a few images, at most a batch, that the graph computes in the precision it was built for.

        The reference is the same network in NumPy, in float32. bfloat16 must show as a small difference from that, and
        float32 must not. Where fewer multiplications lose too much of it, as they may under weights unlike the
        ImageNet ones, convolutions are computed directly.

        Raises
        ------
        UserError
            When the features would carry another precision's name, or when memory does not suffice.
        """
        with self._memory_errors():  # the first batch: if any is too large, it is this one
            computed = self.raw(images)
        reference = by_numpy.Network(self._layers, self._taps, image_size=self._size, view=self._view)
        exact = reference.raw(images)
        difference = max(_relative(computed[tap], exact[tap]) for tap in self._taps)
        low, high = _DIFFERENCE[self._precision]
        if not low <= difference <= high and not self._direct:
            log.warning(
                "warning: with these weights Winograd's convolutions differ from direct ones by %.1e (relative L2): "
                "computing by direct ones, which takes longer",
                difference,
            )
            self._compile(direct=True)
            self.check_precision(images)
        elif not low <= difference <= high:
            raise UserError(
                f"TensorFlow does not compute in the precision asked for: its features differ from float32 by "
                f"{difference:.1e} (relative L2); {self._precision} differs by {low:.0e} to {high:.0e}. Choose the "
                f"other of float32 and bfloat16 with --precision."
            )


def _relative(found: NDArray[Any], exact: NDArray[Any]) -> float:
    """Relative L2 difference."""
    return float(np.linalg.norm(found - exact)) / max(float(np.linalg.norm(exact)), 1e-30)


# --- the network ------------------------------------------------------------------------------

Weights = dict[str, tuple[tf.Tensor, tf.Tensor]]


def _weights(layers: Mapping[str, Layer], taps: Sequence[str], dtype: tf.DType) -> Weights:
    """Kernels and biases of the layers up to the highest tap, in the precision they compute in, the first for RGB."""
    weights: Weights = {}
    for layer in by_numpy.layers_below(taps):
        kernel, bias = layers[layer]
        if not weights:
            kernel = kernel[:, :, ::-1]  # made for BGR: to turn the kernel costs less than to turn every image
        weights[layer] = (tf.cast(kernel, dtype), tf.cast(bias, dtype))
    return weights


def _flat(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Small maps as float32 (n, height · width · channels), position by position, row by row."""
    found = layout.rows(tf.cast(maps, tf.float32))
    return tf.reshape(found, (found.shape[0], -1))


def _average(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    return _flat(layout.pool(maps, "avg", maps.shape[1:3]), layout)


def _maximum(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    return _flat(layout.pool(maps, "max", maps.shape[1:3]), layout)


def _quadrants(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Averages of the four quadrants, row by row; those of an odd map share its middle row and column."""
    height, width = maps.shape[1:3]
    return _flat(layout.pool(maps, "avg", (-(-height // 2), -(-width // 2)), (height // 2, width // 2)), layout)


def _deviation(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    """Standard deviation over the positions of a map, about its mean and not by the mean of squares, which cancels."""
    maps = tf.cast(maps, tf.float32)
    whole = maps.shape[1:3]
    squares = tf.math.squared_difference(maps, layout.pool(maps, "avg", whole))
    return _flat(tf.sqrt(layout.pool(squares, "avg", whole)), layout)


def _covariance(maps: tf.Tensor, layout: Layout) -> tf.Tensor:
    """How channels vary together over the positions of a map, projected to a few directions.

    Second-order pooling with a signed square root, as bilinear pooling has it (Lin, RoyChowdhury & Maji 2015,
    https://arxiv.org/abs/1504.07889); the upper triangle, diagonal included, row by row.
    """
    projection = tf.constant(directions(maps.shape[-1])[np.newaxis, np.newaxis], maps.dtype)
    projected = layout.rows(tf.cast(layout.convolve(maps, projection), tf.float32))
    centred = projected - tf.reduce_mean(projected, axis=1, keepdims=True)
    products = tf.matmul(centred, centred, transpose_a=True) / projected.shape[1]
    rows, columns = np.triu_indices(DIRECTIONS)
    upper = tf.gather(tf.reshape(products, (-1, DIRECTIONS**2)), rows * DIRECTIONS + columns, axis=1)
    return tf.sign(upper) * tf.sqrt(tf.abs(upper))


POOLINGS: dict[str, Pooling] = {
    "avg": _average,
    "max": _maximum,
    "std": _deviation,
    "avg2x2": _quadrants,
    "cov": _covariance,
}


def _network(pixels: tf.Tensor, weights: Weights, taps: Sequence[str], layout: Layout) -> tf.Tensor:
    """All taps side by side, float32 (n, columns), of pixels, float32 (n, size, size, 3), RGB.

    A tap's pooling adds up in float32, whatever the maps are in; averages, oneDNN's own, are rounded once to that.
    """
    (first, _), *_ = weights.values()
    maps = layout.enter(tf.cast(pixels - tf.constant(MEAN_RGB), first.dtype))
    pooled: dict[str, tf.Tensor] = {}

    def wanted(name: str) -> dict[str, Pooling]:
        return {how: pool for how, pool in POOLINGS.items() if f"{name}.{how}" in taps}

    for layer, following in zip(weights, [*list(weights)[1:], ""], strict=True):
        ends = following[:6] != layer[:6]  # the block
        maps, found = layout.compute(ConvLayer(*weights[layer], wanted(layer), ends), maps, list(pooled.values()))
        pooled.update({f"{layer}.{how}": values for how, values in found.items()})
        if ends:
            name = f"{layer[:6]}_pool"
            pooled.update({f"{name}.{how}": pool(maps, layout) for how, pool in wanted(name).items()})
    return tf.concat([pooled[tap] for tap in taps], axis=1)

"""Images to pooled activations: VGG16's convolutional base, every tap in one pass.

This module loads TensorFlow; nothing imports it before there is something to compute.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence

# TensorFlow's C++ side announces itself on stderr: only its errors are of interest to a user.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "1"  # without it there is no bfloat16, whatever is asked for

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.spec import CONV_LAYERS

_POOLINGS = {"avg": tf.reduce_mean, "max": tf.reduce_max}

# Relative L2 difference from eager float32, least and most, that is that precision's own. bfloat16 has 8
# bits of significand (rounding by up to 2**-9 = 0.2 %), which 13 layers let grow to about 1 %; float32 has 24.
_DIFFERENCE = {"float32": (0.0, 1e-4), "bfloat16": (2e-4, 5e-2)}


class Extractor:
    """A compiled graph from uint8 images to float16 features.

    Resizing and VGG16's own preprocessing (RGB to BGR, minus the ImageNet mean, no division) are part
    of the graph, so features cannot be computed without them.

    Parameters
    ----------
    layers : mapping
        Kernel and bias of each of the 13 convolutions.
    taps : sequence of str
        What to keep, of `spec.TAP_COLUMNS`.
    image_size : int
        Height and width, in pixels, that images are resized to.
    interpolation : str
        How; a method of `tf.image.resize`, used without antialiasing.
    precision : {'float32', 'bfloat16'}
        What the convolutions compute in.
    """

    def __init__(
        self,
        layers: Mapping[str, tuple[NDArray[np.float32], NDArray[np.float32]]],
        taps: Sequence[str],
        *,
        image_size: int,
        interpolation: str,
        precision: str,
    ) -> None:
        tf.config.set_visible_devices([], "GPU")  # what `precision` promises holds on the processor alone
        base = keras.applications.VGG16(include_top=False, weights=None, input_shape=(image_size, image_size, 3))
        for layer in CONV_LAYERS:
            base.get_layer(layer).set_weights(list(layers[layer]))
        self._taps = tuple(taps)
        names = list(dict.fromkeys(tap.rpartition(".")[0] for tap in taps))
        trunk = keras.Model(base.input, [base.get_layer(name).output for name in names])

        def forward(images: tf.Tensor) -> dict[str, tf.Tensor]:
            pixels = tf.cast(images, tf.float32)
            if images.shape[1:3] != (image_size, image_size):
                pixels = tf.image.resize(pixels, (image_size, image_size), method=interpolation)
            outputs = trunk(keras.applications.vgg16.preprocess_input(pixels, data_format="channels_last"))
            maps = dict(zip(names, outputs if isinstance(outputs, (list, tuple)) else [outputs], strict=True))
            features = {}
            for tap in self._taps:
                name, _, pooling = tap.rpartition(".")
                features[tap] = _POOLINGS[pooling](maps[name], axis=(1, 2))
            return features

        self._precision = precision
        self._eager = forward
        self._forward = tf.function(forward, reduce_retracing=True)

    def _run(self, batch: tf.Tensor) -> dict[str, tf.Tensor]:
        # Grappler rewrites the graph to bfloat16 convolutions where oneDNN has them, when a shape is first met;
        # the switch is TensorFlow's own global, so it is set each time. Pooling to one number stays in float32.
        tf.config.optimizer.set_experimental_options(
            {"auto_mixed_precision_onednn_bfloat16": self._precision == "bfloat16"}
        )
        outputs: dict[str, tf.Tensor] = self._forward(batch)
        return outputs

    def raw(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
        """Features of a batch as the graph gives them: for each tap, float32 (n, columns)."""
        outputs = self._run(tf.constant(np.ascontiguousarray(images)))
        return {tap: outputs[tap].numpy() for tap in self._taps}

    def __call__(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.float16]]:
        """Features of a batch.

        Parameters
        ----------
        images : ndarray, uint8 (n, h, w, 3)
            RGB, 0 to 255.

        Returns
        -------
        dict
            For each tap, float16 (n, columns).

        Raises
        ------
        UserError
            When a feature is too large for float16, or not a number.
        """
        with np.errstate(over="ignore"):  # an overflow is found below, with its tap's name
            features = {tap: values.astype(np.float16) for tap, values in self.raw(images).items()}
        for tap, values in features.items():
            if not np.isfinite(values).all():
                raise UserError(
                    f"The tap {tap} gives a value beyond float16's largest, 65504, or no number at all, for an image "
                    f"of this batch. The weights are unlike the ImageNet ones: leave this tap out with --taps, or use "
                    f"other weights."
                )
        return features

    def check_precision(self, images: NDArray[np.uint8]) -> None:
        """Prove on a few images that the graph computes in the precision it was built for.

        Run eagerly, the same operations are never rewritten, so they are float32: bfloat16 must show
        as a small difference from that, and float32 must not.

        Parameters
        ----------
        images : ndarray, uint8 (n, h, w, 3)

        Raises
        ------
        UserError
            When the features would carry another precision's name.
        """
        batch = tf.constant(np.ascontiguousarray(images))
        computed, exact = self._run(batch), self._eager(batch)
        difference = max(
            float(tf.norm(computed[tap] - exact[tap]) / tf.maximum(tf.norm(exact[tap]), 1e-30)) for tap in self._taps
        )
        low, high = _DIFFERENCE[self._precision]
        if not low <= difference <= high:
            raise UserError(
                f"TensorFlow does not compute in the precision asked for: its features differ from float32 by "
                f"{difference:.1e} (relative L2); {self._precision} differs by {low:.0e} to {high:.0e}. Choose the "
                f"other of float32 and bfloat16 with --precision."
            )


def download_weights() -> None:
    """Let Keras download its VGG16 weights into its own cache, and check them by its own hash.

    Raises
    ------
    UserError
        When it cannot.
    """
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(30)  # seconds; Keras sets none, and a silent firewall would hang us
    try:
        keras.applications.VGG16(include_top=False, weights="imagenet")
    # Keras wraps network errors in bare Exception.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise UserError(reason) from error
    finally:
        socket.setdefaulttimeout(before)

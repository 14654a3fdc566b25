"""Is this array what the network was trained on? The field's commonest mistake, caught before it costs accuracy.

VGG16's preprocessing (RGB to BGR, minus ImageNet's mean, no division) is part of the graph, which takes plain
pixels: uint8, RGB, 0 to 255, channels last. Arrays that somebody prepared already still look like images to every
shape check, and give features that are merely bad. What can be told from the numbers is told here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError

_WANTED = (
    "Give plain pixels: uint8 of the shape (n, height, width, 3), RGB, 0 to 255; all preprocessing is done inside."
)
_MEAN_BGR = np.array([103.939, 116.779, 123.68])  # keras.applications' "caffe" mode, https://keras.io/api/applications
LEAST_FOR_BGR = 64  # images: fewer prove nothing about colours
SURE = 3.0  # standard errors from zero that a mean over images must be


def check_images(images: Any, name: str = "X", *, guess: bool = True) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
    """Return images that can go through the network as they are, or say what was probably done to them.

    They are uint8 (n, h, w, 3), or a sequence of (h, w, 3), which messages call ``name``. Shape and type are always
    checked; ``guess`` is whether uint8 arrays are suspected, too.

    Raises
    ------
    UserError
        When they are of another shape or type, or look divided by 255, standardised, already preprocessed, BGR, or
        channels-first.
    """
    stacked = isinstance(images, np.ndarray) and images.dtype != object
    arrays = {name: images} if stacked else {f"{name}[{i}]": np.asarray(image) for i, image in enumerate(images)}
    for own_name, array in arrays.items():
        _check_shape(array.shape, 4 if stacked else 3, own_name)
        _check_values(array, own_name, guess=guess)
    if guess:
        _check_order([array if stacked else array[np.newaxis] for array in arrays.values()], name)
    return images if stacked else list(arrays.values())


def _check_shape(shape: Sequence[int], dimensions: int, name: str) -> None:
    inner = shape[1:] if dimensions == 4 else shape
    if len(shape) == dimensions and inner[-1] == 3 and 0 not in inner:
        return
    if len(shape) == dimensions and inner[0] == 3 and inner[1] > 4 and inner[2] > 4:
        axes = "(0, 2, 3, 1)" if dimensions == 4 else "(1, 2, 0)"
        likely = f"It looks channels-first, as PyTorch has images: {name}.transpose{axes} puts the channels last"
    elif len(shape) == dimensions and inner[-1] == 4:
        likely = f"It looks like RGB with an alpha channel: {name}[..., :3] leaves that out"
    elif len(shape) == dimensions and inner[-1] == 1:
        likely = f"It looks grey: {name}.repeat(3, axis=-1) makes three equal channels of one"
    elif dimensions == 4 and len(shape) == 3 and shape[-1] == 3:
        likely = f"It looks like one image: {name}[np.newaxis] is a batch of one"
    elif len(shape) == dimensions - 1:
        likely = f"It looks grey: np.stack([{name}] * 3, axis=-1) makes three equal channels of one"
    elif len(shape) == 2:
        likely = "It looks like one row of numbers for each image: reshape the rows to images"
    else:
        likely = "It does not look like images"
    raise UserError(f"The images {name} have the shape {tuple(shape)}. {likely}. {_WANTED}")


def _check_values(array: NDArray[Any], name: str, *, guess: bool) -> None:
    if array.size == 0:
        return
    if array.dtype == np.uint8:
        if guess and array.max() == 1:
            raise UserError(
                f"The images {name} hold nothing but 0 and 1: they look divided by 255 and cast back to uint8, or are "
                f"masks. Multiply masks by 255. {_WANTED}"
            )
        return
    cause = _likely_cause(array) if array.dtype.kind in "fiub" else "no pixels have it"
    raise UserError(f"The images {name} have the type {array.dtype}: {cause}. {_WANTED}")


def _likely_cause(array: NDArray[Any]) -> str:
    """What was probably done to images that are not uint8."""
    sample = array.reshape(-1, 3)[: 1 << 20].astype(np.float64)
    if not np.isfinite(sample).all():
        return "they hold numbers that are not finite"
    low, high = float(sample.min()), float(sample.max())
    whole = bool((sample == np.rint(sample)).all())
    order = _subtracted_mean(sample)
    causes = (
        (low >= 0 and high <= 1, "so they look divided by 255; (255 * X).round().astype('uint8') undoes it"),
        (low >= 0 and high <= 255 and whole, "like pixels; X.astype('uint8') loses nothing"),
        (
            low >= 0 and high <= 255,
            "like pixels, but they are not whole numbers; X.round().astype('uint8') makes them so",
        ),
        (low >= 0, "beyond 255: perhaps 16-bit pixels, which (X // 257).astype('uint8') makes 8-bit"),
        (
            bool(order),
            f"and plus ImageNet's mean in {order} order they are whole numbers: they look preprocessed already, as by "
            f"VGG16's preprocess_input ({order}, minus the mean)",
        ),
        (
            low >= -1.001 and high <= 1.001,
            "so they look scaled to -1 to 1; ((X + 1) * 127.5).round().astype('uint8') undoes it",
        ),
        (low > -20 and high < 20, "so they look standardised (minus a mean, divided by a deviation)"),
        (True, "so a mean was probably subtracted"),
    )
    return f"their values go from {low:.4g} to {high:.4g}, {next(cause for holds, cause in causes if holds)}"


def _subtracted_mean(sample: NDArray[np.float64]) -> str:
    """The order in which ImageNet's mean was subtracted from pixels, ``BGR`` or ``RGB``; "" where it was not."""
    for order, mean in (("BGR", _MEAN_BGR), ("RGB", _MEAN_BGR[::-1])):
        back = sample + mean
        if np.abs(back - np.rint(back)).max() < 2e-3 and back.min() > -0.5 and back.max() < 255.5:
            return order
    return ""


def _check_order(batches: Sequence[NDArray[np.uint8]], name: str) -> None:
    """Refuse colours in BGR order, as OpenCV reads them, when many images agree on it.

    Two things are true of most photographs: warm colours outweigh cold ones, so red's mean is above blue's; and the
    top, where skies are, is bluer than the bottom. Sets of skies and ships break the first, indoor sets the second.
    Only where both stand on their heads, each by more than `SURE` standard errors over at least `LEAST_FOR_BGR`
    images, are the channels taken to be swapped. So it misses many, and accuses hardly any.
    """
    if sum(map(len, batches)) < LEAST_FOR_BGR:
        return
    warm: list[float] = []
    falling: list[float] = []
    for batch in batches:
        for image in batch[:: max(1, len(batch) // 4096)]:
            if image.shape[0] >= 2:
                difference = image[..., 0].astype(np.float32) - image[..., 2]
                half = image.shape[0] // 2
                warm.append(float(difference.mean()))
                falling.append(float(difference[:half].mean() - difference[half:].mean()))
    if _standard_errors(warm) < -SURE and _standard_errors(falling) > SURE:
        raise UserError(
            f"The images {name} look BGR, as OpenCV reads files: over {len(warm):,} images the first channel is colder "
            f"than the third, and warmest at the top, where skies are. {name}[..., ::-1] makes RGB of them. {_WANTED} "
            f"If they are RGB all the same, say so with guard=False."
        )


def _standard_errors(values: Sequence[float]) -> float:
    """How many standard errors a mean is from zero."""
    spread = float(np.std(values)) / np.sqrt(len(values))
    return float(np.mean(values)) / spread if spread else 0.0

"""Taps: what is kept of the network, a layer and a pooling each.

NumPy is imported by the poolings alone, when they compute: names of taps are asked for where help must be instant.
"""

from __future__ import annotations

import functools
import itertools
import re
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pipeline.common.errors import UserError
from pipeline.common.text import did_you_mean

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Array = NDArray[Any]

# VGG16's convolutional base, configuration D of Simonyan & Zisserman, https://arxiv.org/abs/1409.1556,
# table 1: every layer and its number of channels, in the order of the forward pass. A max pooling
# follows the last convolution of each block.
CONV_LAYERS: dict[str, int] = {
    "block1_conv1": 64,
    "block1_conv2": 64,
    "block2_conv1": 128,
    "block2_conv2": 128,
    "block3_conv1": 256,
    "block3_conv2": 256,
    "block3_conv3": 256,
    "block4_conv1": 512,
    "block4_conv2": 512,
    "block4_conv3": 512,
    "block5_conv1": 512,
    "block5_conv2": 512,
    "block5_conv3": 512,
}
# Shape of each kernel: height, width, channels of the map below, of the map it makes.
KERNELS = {
    layer: (3, 3, below, channels)
    for (layer, channels), below in zip(CONV_LAYERS.items(), [3, *CONV_LAYERS.values()], strict=False)
}
POOL_LAYERS = {"block3_pool": 256, "block4_pool": 512, "block5_pool": 512}
DIRECTIONS = 64  # that a map is projected to before its covariance is taken


# --- poolings of a map (h, w, channels) in NumPy -------------------------------------------------


class Pooling(NamedTuple):
    """What can be taken of a layer's map: from which layers, how, and how many columns of how many channels.

    How: of a map, and of what rounds to the precision that means are of.
    """

    layers: Sequence[str]
    pool: Callable[[Array, Callable[[Array], Array]], Array]
    columns: Callable[[int], int] = lambda channels: channels


def _average(maps: Array, narrow: Callable[[Array], Array]) -> Array:
    return narrow(maps.mean(axis=(0, 1)))


def _quadrants(maps: Array, narrow: Callable[[Array], Array]) -> Array:
    """Row by row; those of an odd map share its middle row and column."""
    import numpy as np

    halves = [(slice(0, -(-side // 2)), slice(side // 2, side)) for side in maps.shape[:2]]
    return np.concatenate([_average(maps[each], narrow) for each in itertools.product(*halves)])


def _covariance(maps: Array, narrow: Callable[[Array], Array]) -> Array:
    """Upper triangle, row by row, of the covariance of a few directions, under a signed square root."""
    import numpy as np

    projection = narrow(directions(maps.shape[-1])).astype(maps.dtype)
    projected = narrow(maps.reshape(-1, maps.shape[-1]) @ projection)
    centred = projected - projected.mean(axis=0)
    upper: Array = (centred.T @ centred)[np.triu_indices(DIRECTIONS)] / len(centred)
    return np.copysign(np.sqrt(np.abs(upper)), upper)


@functools.cache
def directions(channels: int) -> NDArray[np.float32]:
    """What a map's channels are projected to: orthonormal, float32 (channels, 64), the same for every data set."""
    import numpy as np

    drawn = np.random.RandomState(0).standard_normal((channels, DIRECTIONS))
    return np.linalg.qr(drawn)[0].astype(np.float32)


# Those that came later come last, so that the order of the others' taps, which is in their keys, stays.
POOLINGS = {
    "avg": Pooling((*CONV_LAYERS, "block5_pool"), _average),
    "max": Pooling((*POOL_LAYERS,), lambda maps, _: maps.max(axis=(0, 1))),
    "std": Pooling((*CONV_LAYERS,), lambda maps, _: maps.std(axis=(0, 1))),
    "avg2x2": Pooling((*CONV_LAYERS, *POOL_LAYERS), _quadrants, lambda channels: 4 * channels),
    "cov": Pooling((*CONV_LAYERS,), _covariance, lambda _: DIRECTIONS * (DIRECTIONS + 1) // 2),
}

# --- taps -----------------------------------------------------------------------------------------

ALL_TAPS = (
    *(f"{layer}.avg" for layer in CONV_LAYERS),
    *(f"{layer}.max" for layer in POOL_LAYERS),
    "block5_pool.avg",
)
# Every tap (a layer and what is taken of its map) and its number of columns; first those that were there at first.
TAP_COLUMNS: dict[str, int] = dict.fromkeys(ALL_TAPS, 0) | {
    f"{layer}.{how}": pooling.columns({**CONV_LAYERS, **POOL_LAYERS}[layer])
    for how, pooling in POOLINGS.items()
    for layer in pooling.layers
}
TOP_TAPS = ("block5_pool.avg",)  # what Keras calls include_top=False, pooling="avg"
# All, and what raised validation accuracy most for its columns and time, as docs/accuracy.md has it.
RICH_TAPS = (
    *ALL_TAPS,
    *(f"{layer}.std" for layer in CONV_LAYERS if layer[len("block")] in "345"),
    *(f"{layer}.cov" for layer in ("block3_conv3", "block4_conv1", "block4_conv3", "block5_conv1")),
)
# What some choices of taps are called.
WORDS = {"all": ALL_TAPS, "rich": RICH_TAPS, "top": TOP_TAPS}


def parse_taps(taps: str | Iterable[str]) -> tuple[str, ...]:
    """Read ``all``, ``rich``, ``top`` or ``NAME,NAME…``, several with spaces between, into tap names in network order.

    They may be a sequence of names, too. Raises UserError when one is not a tap, or there is none.
    """
    text = taps if isinstance(taps, str) else ",".join(taps)
    choices = re.sub(r"\s*,\s*", ",", text).split()
    if len(choices) > 1:  # of a sweep, by a variable of make: stage one makes what any of them needs
        return order_taps(tap for choice in choices for tap in parse_taps(choice))
    if text in WORDS:
        return WORDS[text]
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TAP_COLUMNS]
    if unknown or not names:
        found = ", ".join(repr(name) for name in unknown) or repr(text)
        near = did_you_mean(unknown[0], [*WORDS, *TAP_COLUMNS]) if unknown else ""
        raise UserError(
            f"The taps parameter must be {', '.join(map(repr, WORDS))} or a comma-separated list of tap names. Got "
            f"{found}.{near} The names are {', '.join(ALL_TAPS)}; and .std and .cov of each convolution, .avg2x2 of "
            f"each of these layers."
        )
    return order_taps(names)


def check_sizes(taps: Iterable[str], image_size: int) -> None:
    """Raise UserError for a tap that takes the quadrants of what is a single pixel at an image size."""
    for tap in taps:
        layer, _, how = tap.rpartition(".")
        halvings = int(layer[len("block")]) - (0 if layer.endswith("_pool") else 1)
        if how == "avg2x2" and image_size >> halvings < 2:
            raise UserError(
                f"The tap {tap} averages the quadrants of its map, which is a single pixel at an image size of "
                f"{image_size}. It works from {2 << halvings} px on: choose such an --image-size, or leave the tap out "
                f"of --taps."
            )


def order_taps(names: Iterable[str]) -> tuple[str, ...]:
    """Sort tap names into network order and drop repeats, so that equal sets have equal keys."""
    wanted = set(names)
    return tuple(tap for tap in TAP_COLUMNS if tap in wanted)


def columns_of(taps: Iterable[str]) -> int:
    """Number of feature columns of some taps together."""
    return sum(TAP_COLUMNS[tap] for tap in taps)


def columns_among(wanted: Sequence[str], held: Sequence[str], caches: Iterable[int]) -> list[slice]:
    """Where the columns of some taps are in caches of ``held`` taps that stand side by side: in each of ``caches``."""
    ends = dict(zip(held, itertools.accumulate(TAP_COLUMNS[tap] for tap in held), strict=True))
    starts = [number * columns_of(held) for number in caches]
    return [slice(start + ends[tap] - TAP_COLUMNS[tap], start + ends[tap]) for start in starts for tap in wanted]


def describe_taps(taps: Iterable[str]) -> str:
    """Taps in a few words: ``all``, ``rich``, ``top``, their names, or the first, the last and how many."""
    names = tuple(taps)
    if word := next((word for word, taken in WORDS.items() if taken == names), None):
        return word
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]} ({len(names)})"

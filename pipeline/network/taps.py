"""Taps: what is kept of the network, a layer and a pooling each."""

from __future__ import annotations

import re
from collections.abc import Iterable

from pipeline.common.errors import UserError
from pipeline.common.text import did_you_mean

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
# Every tap (a layer and a global pooling over its height and width) and its number of columns.
TAP_COLUMNS: dict[str, int] = {
    **{f"{layer}.avg": channels for layer, channels in CONV_LAYERS.items()},
    "block3_pool.max": 256,
    "block4_pool.max": 512,
    "block5_pool.max": 512,
    "block5_pool.avg": 512,
}
TOP_TAPS = ("block5_pool.avg",)  # what Keras calls include_top=False, pooling="avg"
ALL_TAPS = tuple(TAP_COLUMNS)


def parse_taps(text: str) -> tuple[str, ...]:
    """Read ``all``, ``top`` or ``NAME,NAME…``, several with spaces between, into tap names in network order.

    Raises
    ------
    UserError
        When a name is not a tap, or there is none.
    """
    choices = re.sub(r"\s*,\s*", ",", text).split()
    if len(choices) > 1:  # of a sweep, by a variable of make: stage one makes what any of them needs
        return order_taps(tap for choice in choices for tap in parse_taps(choice))
    if text == "all":
        return ALL_TAPS
    if text == "top":
        return TOP_TAPS
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TAP_COLUMNS]
    if unknown or not names:
        found = ", ".join(repr(name) for name in unknown) or repr(text)
        near = did_you_mean(unknown[0], ["all", "top", *ALL_TAPS]) if unknown else ""
        raise UserError(
            f"The taps parameter must be 'all', 'top' or a comma-separated list of tap names. Got {found}.{near} The "
            f"names are {', '.join(ALL_TAPS)}."
        )
    return order_taps(names)


def order_taps(names: Iterable[str]) -> tuple[str, ...]:
    """Sort tap names into network order and drop repeats, so that equal sets have equal keys."""
    wanted = set(names)
    return tuple(tap for tap in ALL_TAPS if tap in wanted)


def columns_of(taps: Iterable[str]) -> int:
    """Number of feature columns of some taps together."""
    return sum(TAP_COLUMNS[tap] for tap in taps)


def describe_taps(taps: Iterable[str]) -> str:
    """Taps in a few words: ``all``, ``top``, their names, or the first, the last and how many."""
    names = tuple(taps)
    if names in (ALL_TAPS, TOP_TAPS):
        return "all" if names == ALL_TAPS else "top"
    return ", ".join(names) if len(names) <= 2 else f"{names[0]} … {names[-1]} ({len(names)})"

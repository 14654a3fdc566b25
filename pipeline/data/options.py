"""How an image is shown to the network, as on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.common.options import Options, option


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Options):
    """What is done to an image before the network sees it: part of the key, the record and the card as it is given.

    A field that is added is ``late``, so that the keys of what is there stay.
    """

    image_size: int = option(
        64,
        "height and width the network sees",
        metavar="PX",
        least=32,  # below it the fifth pooling has nothing left to pool
        most=1024,  # more than four times what VGG16 was trained at is surely a slip
        advice="VGG16 halves an image five times: take 64 for CIFAR-10, or 32 for its own size.",
    )
    fit: str = option(
        "squash", "what is done to images that are not square", metavar="NAME", choices=("squash", "crop", "pad")
    )

    @property
    def image(self) -> dict[str, Any]:
        """What is done to an image, by name, whatever else a subclass holds."""
        return {item.name: getattr(self, item.name) for item in ImageOptions.declared()}

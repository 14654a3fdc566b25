"""What is computed: frozen descriptions, their validation, and the keys that name results.

A key is sha256 over the canonical JSON of *all* fields of a description, so a field that is added
later cannot be forgotten. How fast or where something runs never enters here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.keys import digest_of, safe_name
from pipeline.features.options import ImageOptions
from pipeline.network.taps import order_taps

FORMAT_VERSION = 2  # of the feature file; another number means another meaning of the bytes

INTERPOLATIONS = ("bicubic",)
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True)
class FeatureSpec(ImageOptions):
    """Every input that changes a feature's value, and nothing else; of `ImageOptions` all.

    Attributes
    ----------
    dataset : str
        The data set's name.
    dataset_digest : str
        sha256, in hex, over the data set's images, labels and class names.
    weights_digest : str
        sha256, in hex, over the network's kernels and biases.
    interpolation : str
        How an image gets to that size.
    taps : tuple of str
        The layers and poolings kept, in network order.
    precision : str
        ``float32`` or ``bfloat16``: what the convolutions compute in.
    limit : int or None
        Only the first so many rows of each split; None for all.
    format_version : int
        Of the feature file.
    """

    dataset: str
    dataset_digest: str
    weights_digest: str
    interpolation: str
    taps: tuple[str, ...]
    precision: str
    limit: int | None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value, allowed in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("precision", self.precision, PRECISIONS),
        ):
            if value not in allowed:
                raise UserError(f"The {name} parameter must be one of {', '.join(allowed)}. Got {value!r}.")
        if not self.taps or self.taps != order_taps(self.taps):
            raise UserError(f"The taps parameter must name known taps in network order. Got {self.taps!r}.")
        if self.limit is not None and self.limit < 1:
            raise UserError(f"The limit parameter must be at least 1 row. Got {self.limit}.")

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON values."""
        first = {"dataset": self.dataset}  # by which `checksum.peek_spec` finds it in a file
        return {**first, **dataclasses.asdict(self), "taps": list(self.taps)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FeatureSpec:
        """Rebuild a spec from `to_dict`'s result.

        Raises
        ------
        UserError
            When a field is missing, unknown or of another type.
        """
        types = {
            "dataset": str,
            "dataset_digest": str,
            "weights_digest": str,
            "image_size": int,
            "interpolation": str,
            "fit": str,
            "taps": list,
            "precision": str,
            "limit": (int, type(None)),
            "format_version": int,
        }
        if set(fields) != set(types):
            odd = ", ".join(sorted(set(fields) ^ set(types)))
            raise UserError(f"A feature spec must have the fields {', '.join(types)}. Missing or unknown: {odd}.")
        for name, kind in types.items():
            if not isinstance(fields[name], kind) or isinstance(fields[name], bool):  # type: ignore[arg-type]
                raise UserError(f"The {name} field of a feature spec has the wrong type: {fields[name]!r}.")
        return cls(**{**fields, "taps": tuple(str(tap) for tap in fields["taps"])})

    def key(self) -> str:
        """sha256, in hex, over the canonical JSON of all fields."""
        return digest_of(self.to_dict())

    @property
    def stem(self) -> str:
        """File name, without ending, of the cache that holds these features."""
        return f"{self.family}{self.key()[:12]}"

    @property
    def family(self) -> str:
        """What the names of all caches of this data set and size begin with."""
        return f"{safe_name(self.dataset)}{relatives(self.image_size)}"

    def differences(self, other: FeatureSpec) -> list[str]:
        """One phrase for each field in which ``other`` differs, naming the field and both values."""
        return [
            f"{field.name}: {_short(getattr(self, field.name))} here, {_short(getattr(other, field.name))} there"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

    def same_rows(self, other: FeatureSpec) -> bool:
        """Whether an image that is in both data sets has the same features in both, as far as ``other`` has taps."""
        mine = dataclasses.replace(
            self, dataset=other.dataset, dataset_digest=other.dataset_digest, limit=other.limit, taps=other.taps
        )
        return mine == other and set(other.taps) <= set(self.taps)

    def serves(self, asked: FeatureSpec) -> bool:
        """Whether a cache of this spec holds everything that ``asked`` asks for."""
        return set(asked.taps) <= set(self.taps) and dataclasses.replace(self, taps=asked.taps) == asked


def relatives(image_size: int) -> str:
    """What, behind the data set's name, the names of all caches of one image size have in common."""
    return f"-vgg16-{image_size}px-"


def _short(value: Any) -> str:
    """A value for a message: digests by their first 12 digits, long lists by their length."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    if isinstance(value, tuple):
        return f"{len(value)} taps ({', '.join(value[:3])}{', …' if len(value) > 3 else ''})"
    return repr(value)

"""What features are: every input that changes their values, and the key over all of them that names their file.

How fast or where something runs never enters here.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any

from pipeline.common.errors import UserError
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.options import option
from pipeline.data.options import ImageOptions
from pipeline.network.taps import check_sizes, columns_of, order_taps

FORMAT_VERSION = 2  # of the feature file; another number means another meaning of the bytes


@dataclass(frozen=True, kw_only=True)
class FeatureSpec(ImageOptions):
    """Every input that changes a feature's value, and nothing else."""

    dataset: str = option(MISSING, "the data set's name")
    dataset_digest: str = option(MISSING, "sha256, in hex, over the data set's images, labels and class names")
    weights_digest: str = option(MISSING, "sha256, in hex, over the network's kernels and biases")
    interpolation: str = option("bicubic", "how an image gets to its size", choices=("bicubic",))
    taps: tuple[str, ...] = option(MISSING, "the layers and poolings kept, in network order")
    precision: str = option(MISSING, "what the convolutions compute in", choices=("float32", "bfloat16"))
    limit: int | None = option(None, "only the first so many rows of each split; None for all", least=1)
    more_sizes: tuple[int, ...] = option((), "of the caches that stand beside it in a run", late=True)
    format_version: int = option(FORMAT_VERSION, "of the feature file")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.taps != order_taps(self.taps):
            raise UserError(f"The taps parameter must name known taps in network order. Got {self.taps!r} instead.")
        for size in self.sizes:
            check_sizes(self.taps, size)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as plain JSON values; those that came later are left out at their defaults, so that keys stay."""
        # The data set comes first in a file, by which `store.peek_spec` finds the spec there.
        fields: dict[str, Any] = {"dataset": self.dataset, **dataclasses.asdict(self), "taps": list(self.taps)}
        late = [item.name for item in self.declared() if item.late and fields[item.name] == item.default]
        return {name: value for name, value in fields.items() if name not in late}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> FeatureSpec:
        """Rebuild a spec from `to_dict`'s result; raises UserError for a field missing, unknown or of another type."""
        known = {item.name for item in cls.declared()}
        odd = set(fields) - known | {item.name for item in cls.declared() if not item.late} - set(fields)
        if odd:
            raise UserError(
                f"A feature spec must have the fields {', '.join(known)}. Missing or unknown: {', '.join(sorted(odd))}."
            )
        return cls(**fields)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Image sizes of the caches whose columns stand side by side; one for a single cache."""
        return (self.image_size, *self.more_sizes)

    @property
    def parts(self) -> list[FeatureSpec]:
        """A spec for each of these caches."""
        return [dataclasses.replace(self, image_size=size, more_sizes=()) for size in self.sizes]

    @property
    def columns(self) -> int:
        """Columns of all of them together."""
        return len(self.sizes) * columns_of(self.taps)

    @property
    def network(self) -> dict[str, Any]:
        """What of it the network of one cache is compiled by: parameters of `network.compile.make_extractor`."""
        return {"taps": self.taps, "image_size": self.image_size, "view": self.view}

    def key(self) -> str:
        """sha256, in hex, over the canonical JSON of all fields."""
        return digest_of(self.to_dict())

    @property
    def file_stem(self) -> str:
        """File name, without ending, of the cache that holds these features."""
        return f"{self.name_prefix}{self.key()[:12]}"

    @property
    def name_prefix(self) -> str:
        """What the names of all caches of this data set and size begin with."""
        return f"{safe_name(self.dataset)}{name_infix(self.image_size)}"

    def differences(self, other: FeatureSpec) -> list[str]:
        """One phrase for each field in which ``other`` differs, naming the field and both values."""
        return [
            f"{field.name}: {_short(getattr(self, field.name))} here, {_short(getattr(other, field.name))} there"
            for field in dataclasses.fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        ]

    def same_settings(self, other: FeatureSpec) -> bool:
        """Whether an image that is in both data sets has the same features in both, as far as ``other`` has taps."""
        mine = dataclasses.replace(
            self, dataset=other.dataset, dataset_digest=other.dataset_digest, limit=other.limit, taps=other.taps
        )
        return mine == other and set(other.taps) <= set(self.taps)

    def covers(self, asked: FeatureSpec) -> bool:
        """Whether a cache of this spec holds everything that ``asked`` asks for."""
        return set(asked.taps) <= set(self.taps) and dataclasses.replace(self, taps=asked.taps) == asked


def name_infix(image_size: int) -> str:
    """What, behind the data set's name, the names of all caches of one image size have in common."""
    return f"-vgg16-{image_size}px-"


def _short(value: Any) -> str:
    """A value for a message: digests by their first 12 digits, long lists by their length."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    if isinstance(value, tuple) and value and isinstance(value[0], str):
        return f"{len(value)} taps ({', '.join(value[:3])}{', …' if len(value) > 3 else ''})"
    return repr(value)

"""What is computed: frozen descriptions, their validation, and the keys that name results.

A key is sha256 over the canonical JSON of *all* fields of a description, so a field that is added
later cannot be forgotten. How fast or where something runs never enters here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.common.errors import UserError

FORMAT_VERSION = 2  # of the feature file; another number means another meaning of the bytes

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

INTERPOLATIONS = ("bicubic",)
FITS = ("squash", "crop", "pad")
PRECISIONS = ("float32", "bfloat16")
MIN_IMAGE_SIZE = 32  # below it the fifth pooling has nothing left to pool
MAX_IMAGE_SIZE = 1024  # more than four times what VGG16 was trained at is surely a slip


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def digest_of(value: Any) -> str:
    """sha256, in hex, of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()


def parse_taps(text: str) -> tuple[str, ...]:
    """Read ``all``, ``top`` or ``NAME,NAME…`` into tap names, in network order, each once.

    Raises
    ------
    UserError
        When a name is not a tap, or there is none.
    """
    if text == "all":
        return ALL_TAPS
    if text == "top":
        return TOP_TAPS
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in TAP_COLUMNS]
    if unknown or not names:
        found = ", ".join(repr(name) for name in unknown) or repr(text)
        raise UserError(
            f"The taps parameter must be 'all', 'top' or a comma-separated list of tap names. Got {found}. "
            f"The names are {', '.join(ALL_TAPS)}."
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


def check_image_size(size: int) -> int:
    """Return an image size (pixels a side) that VGG16 can take, or raise UserError."""
    if not MIN_IMAGE_SIZE <= size <= MAX_IMAGE_SIZE:
        raise UserError(
            f"The image size parameter must be between {MIN_IMAGE_SIZE} and {MAX_IMAGE_SIZE} pixels: VGG16 "
            f"halves an image five times. Got {size}. Take 64 for CIFAR-10, or 32 for its own size."
        )
    return size


@dataclass(frozen=True)
class FeatureSpec:
    """Every input that changes a feature's value, and nothing else.

    Attributes
    ----------
    dataset : str
        The data set's name.
    dataset_digest : str
        sha256, in hex, over the data set's images, labels and class names.
    weights_digest : str
        sha256, in hex, over the network's kernels and biases.
    image_size : int
        Height and width, in pixels, at which the network sees an image.
    interpolation : str
        How an image gets to that size.
    fit : str
        What happens to an image that is not square: ``squash``, ``crop`` or ``pad``.
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
    image_size: int
    interpolation: str
    fit: str
    taps: tuple[str, ...]
    precision: str
    limit: int | None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_image_size(self.image_size)
        for name, value, allowed in (
            ("interpolation", self.interpolation, INTERPOLATIONS),
            ("fit", self.fit, FITS),
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
        fields = dataclasses.asdict(self)
        return {**fields, "taps": list(self.taps)}

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


@dataclass(frozen=True)
class RunSpec:
    """Every input that changes a stage-two result.

    Attributes
    ----------
    features : str
        `FeatureSpec.key` of the features used (of exactly the taps used, whatever the file holds besides).
    dataset : str
        The data set's name.
    classifier : str
        The classifier's name.
    options : dict
        As `classifiers.resolve` gives them.
    seed : int
        Seed of the split, of the initial weights and of the shuffling.
    protocol : int
        Version of the selection protocol; another number means that the same inputs give another result.
    """

    features: str
    dataset: str
    classifier: str
    options: Mapping[str, Any]
    seed: int
    protocol: int

    def key(self) -> str:
        """sha256, in hex, over the canonical JSON of all fields."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return digest_of({**fields, "options": dict(self.options)})

    @property
    def name(self) -> str:
        """The run's name: data set, classifier, 8 hex digits of the run key."""
        return f"{safe_name(self.dataset)}-{self.classifier}-{self.key()[:8]}"


def safe_name(name: str) -> str:
    """A name fit for a file name on every system: letters, digits, dot, underscore, hyphen."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def _short(value: Any) -> str:
    """A value for a message: digests by their first 12 digits, long lists by their length."""
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value):
        return f"{value[:12]}…"
    if isinstance(value, tuple):
        return f"{len(value)} taps ({', '.join(value[:3])}{', …' if len(value) > 3 else ''})"
    return repr(value)

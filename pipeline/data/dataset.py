"""What a data set is, whatever it was read from: labelled images in two splits, identified by a digest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.common.text import count_of_files, printable
from pipeline.data.options import ImageOptions

Image = NDArray[np.uint8]  # (h, w, 3), RGB, 0 to 255


_LEAK = "a leak between train and test: "  # how the reason of one begins


class Unusable(Exception):
    """One image cannot be used; the message says why. It never ends a run by itself."""


class Skipped(NamedTuple):
    """A file that was not used, by its path inside the data set, and why."""

    file: str
    reason: str
    is_leak: bool = False  # whether it was left out of test because it is in train

    @classmethod
    def leak(cls, file: str, what: str) -> Skipped:
        """A file of test that is in train, and how that shows."""
        return cls(file, f"{_LEAK}{what}, left out of test", is_leak=True)

    @classmethod
    def stored(cls, file: str, reason: str) -> Skipped:
        """What was read from a feature file or a CSV file: these keep the reason alone, and a leak's is told by it."""
        return cls(file, reason, reason.startswith(_LEAK))


def few_reasons(skipped: Sequence[Skipped], most: int = 3) -> str:
    """The first of some skipped files and why, on one line."""
    lines = [f"{printable(item.file)} ({item.reason})" for item in skipped[:most]]
    return "; ".join(lines) + (f"; and {len(skipped) - most:,} more" if len(skipped) > most else "")


def listing(skipped: Sequence[Skipped], elsewhere: str, most: int = 1000) -> str:
    """Closing lines that list skipped files and why, each on a line of its own; "" where there is none.

    ``elsewhere`` says where the rest of a very long list is, to follow "and 234 more".
    """
    if not skipped:
        return ""
    leaks = sum(item.is_leak for item in skipped)
    head = f"{count_of_files(len(skipped))} {'was' if len(skipped) == 1 else 'were'} not used"
    head += f", {leaks:,} of them {'a leak' if leaks == 1 else 'leaks'} between train and test" if leaks else ""
    lines = [f"  {printable(item.file)}: {item.reason}" for item in skipped[:most]]
    rest = [f"  and {len(skipped) - most:,} more{elsewhere}"] if len(skipped) > most else []
    return "\n".join([f"{head}:", *lines, *rest])


class LazyImages(Protocol):
    """Images that are decoded when they are asked for, and never all in memory."""

    def __len__(self) -> int:
        """Give the number of images."""

    def decode(self, row: int, how: ImageOptions) -> Image:
        """Decode an image as the network is to see it, or raise Unusable; any thread may."""


@dataclass(frozen=True)
class Split:
    """Images and labels of a split."""

    images: NDArray[np.uint8] | LazyImages  # (n, h, w, 3), RGB, possibly a strided view
    labels: NDArray[Any]  # uint8 or int64 (n,)

    def first(self, rows: int) -> Split:
        """The first rows of the split. Lazy images beyond them are there, and never asked for."""
        images = self.images[:rows] if isinstance(self.images, np.ndarray) else self.images
        return Split(images, self.labels[:rows])


@dataclass(frozen=True)
class RowIds:
    """Who the rows of a split are, one by one."""

    names: tuple[str, ...]  # paths of their files inside the data set, as ``os.fsdecode`` has them
    digests: NDArray[np.uint8]  # (n, 32), sha256 of each image: equal ones have equal features under equal settings
    groups: tuple[str, ...] = ()  # what must not be parted has one name, "" no group; empty where none was asked for

    def first(self, rows: int) -> RowIds:
        """The first rows."""
        return RowIds(self.names[:rows], self.digests[:rows], self.groups[:rows])

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> RowIds:
        """Some rows, in that order."""
        groups = tuple(self.groups[row] for row in rows) if self.groups else ()
        return RowIds(tuple(self.names[row] for row in rows), self.digests[rows], groups)


@dataclass(frozen=True)
class Dataset:
    """A data set of the splits ``train`` and ``test``: identified at once, its images read when they are asked for."""

    name: str
    rows: Mapping[str, int]  # of each split
    class_names: tuple[str, ...]  # label i means class_names[i]
    digest: str  # sha256, in hex, over all images, labels and class names; the same whichever form they came in
    official: bool  # whether the bytes are those its authors published; one's own folder is its own authority
    source: str  # where it was read from, for people
    # Raises UserError when the images are not what was identified.
    read: Callable[[], Mapping[str, Split]] = field(repr=False)
    members: Mapping[str, RowIds] | None = field(default=None, repr=False)  # of rows that are images of one's own
    skipped: tuple[Skipped, ...] = ()  # found to be unusable without being decoded
    reading: Mapping[str, Any] = field(default_factory=dict)  # what of `FolderOptions` it took to read it as it is

    def first(self, rows: int | None) -> Dataset:
        """The first rows of each split, or all."""
        if rows is None:
            return self
        return replace(
            self,
            rows={name: min(count, rows) for name, count in self.rows.items()},
            read=lambda: {name: split.first(rows) for name, split in self.splits.items()},
            members=self.members and {name: who.first(rows) for name, who in self.members.items()},
        )

    @cached_property
    def splits(self) -> Mapping[str, Split]:
        """Images and labels of each split, read once."""
        return self.read()


class NotFoundHere(UserError):
    """The data set is nowhere on this machine."""

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

    Parameters
    ----------
    skipped : sequence of Skipped
    elsewhere : str
        Where the rest of a very long list is, to follow "and 234 more".
    most : int
        How many are listed.
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

    def __getitem__(self, rows: slice) -> Sequence[Image]:
        """Decode some images as they are, upright; raises UserError when one cannot be used."""

    def decoder(self, how: ImageOptions) -> Callable[[int], Image]:
        """Give a function that decodes one row as the network is to see it, or raises Unusable; any thread may."""


@dataclass(frozen=True)
class Split:
    """Images and labels of a split.

    Attributes
    ----------
    images : ndarray, uint8 (n, h, w, 3), or LazyImages
        RGB; an array is possibly a strided view.
    labels : ndarray, uint8 or int64 (n,)
    """

    images: NDArray[np.uint8] | LazyImages
    labels: NDArray[Any]

    def first(self, rows: int) -> Split:
        """The first rows of the split. Lazy images beyond them are there, and never asked for."""
        images = self.images[:rows] if isinstance(self.images, np.ndarray) else self.images
        return Split(images, self.labels[:rows])


@dataclass(frozen=True)
class RowIds:
    """Who the rows of a split are, one by one.

    Attributes
    ----------
    names : tuple of str
        Path of each row's file inside the data set; a byte that is not UTF-8 is a lone surrogate, as Python's
        ``os.fsdecode`` has it.
    digests : ndarray, uint8 (n, 32)
        sha256 of each row's image. Equal digests mean equal features under equal settings.
    """

    names: tuple[str, ...]
    digests: NDArray[np.uint8]

    def first(self, rows: int) -> RowIds:
        """The first rows."""
        return RowIds(self.names[:rows], self.digests[:rows])

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> RowIds:
        """Some rows, in that order."""
        return RowIds(tuple(self.names[row] for row in rows), self.digests[rows])

    def without(self, rows: Sequence[int]) -> RowIds:
        """All but some rows."""
        return self.take(np.delete(np.arange(len(self.names)), list(rows)))


@dataclass(frozen=True)
class Dataset:
    """A data set: identified at once, its images read when they are asked for.

    Attributes
    ----------
    name : str
    rows : mapping
        Number of rows of each split.
    class_names : tuple of str
        Label ``i`` means ``class_names[i]``.
    digest : str
        sha256, in hex, over all images, labels and class names; the same whichever form they came in.
    official : bool
        Whether the bytes are the ones its authors published; a folder of one's own is its own authority.
    source : str
        Where it was read from, for people.
    read : callable
        Reads the splits, ``train`` and ``test``; raises UserError when they are not what was identified.
    members : mapping of split to RowIds, or None
        Where rows are files or images of their own, who they are; None where rows have no names.
    skipped : tuple of Skipped
        Files that were found to be unusable without being decoded.
    """

    name: str
    rows: Mapping[str, int]
    class_names: tuple[str, ...]
    digest: str
    official: bool
    source: str
    read: Callable[[], Mapping[str, Split]] = field(repr=False)
    members: Mapping[str, RowIds] | None = field(default=None, repr=False)
    skipped: tuple[Skipped, ...] = ()

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

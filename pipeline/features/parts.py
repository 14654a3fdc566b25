"""Building a cache: parts that are never done twice, joined into one file that appears complete.

While it is being built, ``<file stem>.parts/`` beside its final place holds one small complete file, of the kind
`pipeline.features.store` writes and verifies, for each `PART_ROWS` rows of a split. Rows whose image turned out to be
unusable are dropped: a part says which and why, and the final file has neither them nor a gap.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.data.dataset import Dataset, Skipped
from pipeline.features import layout, store
from pipeline.features.spec import FORMAT_VERSION, FeatureSpec
from pipeline.network.taps import TAP_COLUMNS

log = logging.getLogger("pipeline")

# Rows of a part: a few seconds of work, so little is lost, and yet few enough files and fsyncs. It is
# no option, and no multiple of the batch size, because a resumed run must meet the boundaries it left.
PART_ROWS = 1024
_DROPPED = "dropped"  # in a part: JSON, as bytes, of `PartContent.dropped`


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a split, the unit of work that is never done twice."""

    split: str
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def file_name(self) -> str:
        """Name of the part's file in the folder of parts."""
        return f"{self.split}-{self.start:08d}.h5"


@dataclass(frozen=True)
class PartContent:
    """What a part holds."""

    features: Mapping[str, NDArray[np.float16]]  # of each tap (rows that were not dropped, columns)
    dropped: Mapping[int, str] = field(default_factory=dict)  # rows, from the part's first, and why
    seconds: float = 0.0  # of computing
    computed: int = 0  # rows that went through the network
    computed_on: str = ""  # the machine and its processor, where a cluster computed it


def say_waiting(holder: str) -> None:
    """Tell who holds the lock that this process waits for."""
    log.info("waiting for %s, which is computing the same features", holder)


class Build:
    """A cache in the making, in ``<file stem>.parts`` beside its final place.

    Use it under the lock that `hold` gives: `write` parts in any order, as they are computed. Then take all of them
    into account in the order of `parts`: `load` what is there, or compute and `add`; then `finish`.
    """

    def __init__(self, folder: Path, spec: FeatureSpec, rows: Mapping[str, int]) -> None:
        self.folder, self.spec, self.rows = folder, spec, dict(rows)
        self.target = folder / f"{spec.file_stem}.h5"
        self.parts_folder = folder / f"{spec.file_stem}.parts"
        self._lock_file = folder / f"{spec.file_stem}.lock"
        self._digests = {(split, tap): hashlib.sha256() for split in layout.SPLITS for tap in spec.taps}
        self._filled = dict.fromkeys(layout.SPLITS, 0)
        self.dropped: dict[str, dict[int, str]] = {split: {} for split in layout.SPLITS}  # row of the split: why
        self.skipped: list[Skipped] = []  # what the finished file says was not used
        self.seconds = 0.0  # of computing, in this run and those before it
        self.computed = 0  # rows that went through the network, in this run and those before it
        self._computed_on: list[str] = []  # of each part

    @property
    def parts(self) -> list[Part]:
        """All parts, in order: fixed by the numbers of rows alone."""
        return [
            Part(split, start, min(start + PART_ROWS, self.rows[split]))
            for split in layout.SPLITS
            for start in range(0, self.rows[split], PART_ROWS)
        ]

    @property
    def kept(self) -> int:
        """Number of rows, of all splits, in the parts that are on disk, of this run and those before it."""
        return sum(len(part) for part in self.parts if (self.parts_folder / part.file_name).exists())

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only writer of this cache for the block."""
        atomic.make_folder(self.folder)
        with atomic.lock(self._lock_file, say_waiting):
            yield

    def prepare(self) -> None:
        """Make the folder of parts, and remove what killed runs left unfinished in it."""
        atomic.make_folder(self.parts_folder)
        known = {part.file_name for part in self.parts}
        for entry in self.parts_folder.iterdir():
            if entry.name not in known:
                atomic.unlink(entry)

    def discard(self) -> None:
        """Remove the folder of parts: the final file holds all that was in it."""
        atomic.remove_folder(self.parts_folder)

    def tidy(self) -> None:
        """Remove what a run that was killed after the final rename left behind.

        A file system that does not allow it is none of the reader's business: the cache is complete.
        """
        with suppress(OSError):
            if self.parts_folder.exists() or self._lock_file.exists():
                with self.hold():
                    if self.target.exists():  # else another process is making it anew
                        self.discard()

    def has(self, part: Part) -> bool:
        """Whether an earlier run left a part; says so when it must be computed again."""
        try:
            self._read_part(part)
        except store.CacheError as error:
            if (self.parts_folder / part.file_name).exists():
                log.warning("warning: a part of an earlier run is computed again. %s", error.fault)
            return False
        return True

    def load(self, part: Part, change: Callable[[PartContent], PartContent] = lambda content: content) -> PartContent:
        """Take over a part that is there, written again if it must ``change``.

        Raises CacheError when it does not verify.
        """
        found = self._read_part(part)
        content = change(found)
        if content is not found:
            self.write(part, content)
        self._account(part, content)
        return content

    def add(self, part: Part, content: PartContent) -> None:
        """Write a part and take it over."""
        self.write(part, content)
        self._account(part, content)

    def write(self, part: Part, content: PartContent) -> None:
        """Write a part, durably; raises OSError when the file system refuses, and leaves what was there."""
        rows = len(part) - len(content.dropped)
        arrays = {tap: content.features[tap] for tap in self.spec.taps}
        for tap, array in arrays.items():
            if array.shape != (rows, TAP_COLUMNS[tap]) or array.dtype != layout.FEATURE_DTYPE:
                raise AssertionError(f"{tap}: {array.shape} {array.dtype} is not what {part} needs")
        arrays[_DROPPED] = np.frombuffer(json.dumps(sorted(content.dropped.items())).encode("ascii"), np.uint8)
        attributes = {**self._part_attributes(part), "seconds": content.seconds, "computed": content.computed}
        if content.computed_on:
            attributes["computed_on"] = content.computed_on
        layout.write_file(self.parts_folder / part.file_name, attributes, arrays)

    def finish(
        self, dataset: Dataset, attributes: Mapping[str, Any], joined: Callable[[int], object] = lambda rows: None
    ) -> None:
        """Join the parts into the final file, which appears complete or not at all; remove the parts.

        ``attributes`` are ``created``, ``images_per_second``, ``versions`` and ``provenance``, as `Cache` has them;
        ``joined`` is told the number of rows of each part that is in the final file.
        """
        if self._filled != self.rows:
            raise AssertionError(f"rows filled {self._filled}, rows wanted {self.rows}")
        small = self._small_arrays(dataset)
        features = []
        for (split, tap), digest in self._digests.items():
            shape = (self.rows[split] - len(self.dropped[split]), TAP_COLUMNS[tap])
            features.append(layout.ArrayLayout(f"{split}/{tap}", shape, layout.FEATURE_DTYPE, digest.hexdigest()))

        def fill(write_rows: layout.WriteRows) -> None:
            start = dict.fromkeys(layout.SPLITS, 0)
            for part in self.parts:
                # Verified once more: hours may lie between a part's writing and this.
                content = self._read_part(part)
                for tap, array in content.features.items():
                    write_rows(f"{part.split}/{tap}", start[part.split], array)
                start[part.split] += len(part) - len(content.dropped)
                joined(len(part))

        final = {"spec": self.spec.to_dict(), "key": self.spec.key(), "format_version": FORMAT_VERSION, **attributes}
        final = {name: json.dumps(value) if isinstance(value, dict) else value for name, value in final.items()}
        temporary = self.parts_folder / atomic.temporary_path(self.target).name
        layout.write_file(self.target, final, small, features, fill, temporary)
        self.discard()

    def _small_arrays(self, dataset: Dataset) -> dict[str, NDArray[Any]]:
        """Everything but the features, by its place in the final file."""
        arrays: dict[str, NDArray[Any]] = {
            "class_names": layout.encode_texts([name.encode() for name in dataset.class_names])
        }
        if any(self._computed_on):
            arrays["computed_on"] = layout.encode_texts([text.encode() for text in self._computed_on])
        skipped = list(dataset.skipped)
        for split, dropped in self.dropped.items():
            labels, rows = dataset.splits[split].labels, list(dropped)
            if labels.shape != (self.rows[split],) or labels.dtype not in layout.LABEL_DTYPES:
                raise AssertionError(f"{split} labels: {labels.shape} {labels.dtype}")
            arrays[f"{split}/labels"] = np.delete(labels, rows)
            if dataset.members is not None:
                who = dataset.members[split]
                kept = who.take(np.delete(np.arange(len(who.names)), rows))
                arrays[f"{split}/names"] = layout.encode_texts([os.fsencode(name) for name in kept.names])
                arrays[f"{split}/digests"] = kept.digests
                if dataset.members["train"].groups:
                    arrays[f"{split}/groups"] = layout.encode_texts([os.fsencode(group) for group in kept.groups])
                skipped += [Skipped.stored(who.names[row], why) for row, why in dropped.items()]
        self.skipped = sorted(skipped, key=lambda item: os.fsencode(item.file))
        if dataset.members is not None:
            names, reasons = [item.file for item in self.skipped], [item.reason for item in self.skipped]
            arrays["skipped/files"] = layout.encode_texts([os.fsencode(name) for name in names])
            arrays["skipped/reasons"] = layout.encode_texts([text.encode("utf-8", "replace") for text in reasons])
        return arrays

    def _account(self, part: Part, content: PartContent) -> None:
        if part.start != self._filled[part.split]:
            raise AssertionError(f"{part} came after row {self._filled[part.split]}")
        for tap in self.spec.taps:
            self._digests[part.split, tap].update(np.ascontiguousarray(content.features[tap]).view(np.uint8).data)
        self.dropped[part.split].update({part.start + row: why for row, why in content.dropped.items()})
        self._filled[part.split] = part.stop
        self.seconds += content.seconds
        self.computed += content.computed
        self._computed_on.append(content.computed_on)

    def _part_attributes(self, part: Part) -> dict[str, Any]:
        return {"key": self.spec.key(), "format_version": FORMAT_VERSION, **asdict(part)}

    def _read_part(self, part: Part) -> PartContent:
        path = self.parts_folder / part.file_name
        with store.verified(path) as (file, _):
            found = {name: file.attrs.get(name) for name in self._part_attributes(part)}
            if found != self._part_attributes(part):
                raise store.Unfit(f"it holds other rows or another run's: {found}")
            store.check_members(file, {_DROPPED, *self.spec.taps})
            dropped = _read_dropped(file, len(part))
            arrays = {}
            for tap in self.spec.taps:
                shape = (len(part) - len(dropped), TAP_COLUMNS[tap])
                arrays[tap] = store.read_proven(store.array_dataset(file, tap, shape, (layout.FEATURE_DTYPE,)))
            seconds, computed = float(file.attrs.get("seconds", 0.0)), int(file.attrs.get("computed", 0))
            computed_on = str(file.attrs.get("computed_on", ""))
        return PartContent(arrays, dropped, seconds, computed, computed_on)


def _read_dropped(file: Any, rows: int) -> dict[int, str]:
    listed = store.read_proven(store.array_dataset(file, _DROPPED, (None,), (np.dtype("u1"),)))
    try:
        dropped = {int(row): str(why) for row, why in json.loads(listed.tobytes())}
    except (ValueError, TypeError) as error:
        raise store.Unfit(f"its list of dropped rows is not valid ({error})") from error
    if list(dropped) != sorted(dropped) or not dropped.keys() <= set(range(rows)):
        raise store.Unfit("its list of dropped rows names rows that it cannot have")
    return dropped

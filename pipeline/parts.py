"""Building a cache: parts that are never done twice, joined into one file that appears complete.

While it is being built, ``<stem>.parts/`` beside its final place holds one small complete file, of the kind
`pipeline.store` writes and verifies, for each `PART_ROWS` rows of a split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import files, store
from pipeline.spec import FORMAT_VERSION, TAP_COLUMNS, FeatureSpec

# Rows of a part: a few seconds of work, so little is lost, and yet few enough files and fsyncs. It is
# no option, and no multiple of the batch size, because a resumed run must meet the boundaries it left.
PART_ROWS = 1024


@dataclass(frozen=True)
class Part:
    """Rows ``start`` to ``stop`` of a split, the unit of work that is never done twice."""

    split: str
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """Name of the part's file in the folder of parts."""
        return f"{self.split}-{self.start:08d}.h5"


class Build:
    """A cache in the making, in ``<stem>.parts`` beside its final place.

    Use it under the lock that `hold` gives, part by part in the order of `parts`: `load` what an
    earlier run left, or compute and `add`; then `finish`.
    """

    def __init__(self, folder: Path, spec: FeatureSpec, rows: Mapping[str, int]) -> None:
        self.folder, self.spec, self.rows = folder, spec, dict(rows)
        self.target = folder / f"{spec.stem}.h5"
        self.parts_folder = folder / f"{spec.stem}.parts"
        self._digests = {(split, tap): hashlib.sha256() for split in store.SPLITS for tap in spec.taps}
        self._filled = dict.fromkeys(store.SPLITS, 0)
        self.seconds = 0.0  # of computing, in this run and those before it

    @property
    def parts(self) -> list[Part]:
        """All parts, in order: fixed by the numbers of rows alone."""
        return [
            Part(split, start, min(start + PART_ROWS, self.rows[split]))
            for split in store.SPLITS
            for start in range(0, self.rows[split], PART_ROWS)
        ]

    @property
    def feature_bytes(self) -> int:
        """Size of all features together, in bytes."""
        columns = sum(TAP_COLUMNS[tap] for tap in self.spec.taps)
        return sum(self.rows.values()) * columns * store.FEATURE_DTYPE.itemsize

    @property
    def done(self) -> int:
        """Number of rows, of all splits, that are in finished parts."""
        return sum(self._filled.values())

    @contextmanager
    def hold(self, waiting: Callable[[str], None]) -> Iterator[None]:
        """Be the only writer of this cache for the block; ``waiting`` is told who else is."""
        files.make_folder(self.folder)
        with files.lock(self.folder / f"{self.spec.stem}.lock", waiting):
            yield

    def prepare(self) -> None:
        """Make the folder of parts, and remove what killed runs left unfinished in it."""
        files.make_folder(self.parts_folder)
        known = {part.file_name for part in self.parts}
        for entry in self.parts_folder.iterdir():
            if entry.name not in known:
                files.unlink(entry)

    def discard(self) -> None:
        """Remove the folder of parts: the final file holds all that was in it."""
        files.remove_folder(self.parts_folder)

    def tidy(self, waiting: Callable[[str], None]) -> None:
        """Remove what a run that was killed after the final rename left behind.

        A file system that does not allow it is none of the reader's business: the cache is complete.
        """
        lock_file = self.folder / f"{self.spec.stem}.lock"
        if not self.parts_folder.exists() and (not lock_file.exists() or files.is_locked(lock_file)):
            return
        with suppress(OSError), self.hold(waiting):
            if self.target.exists():
                self.discard()

    def load(self, part: Part) -> bool:
        """Take over a part that an earlier run left; False when there is none.

        Raises
        ------
        CacheError
            When there is one that does not verify.
        """
        path = self.parts_folder / part.file_name
        if not path.exists():
            return False
        self._account(part, *self._read_part(part))
        return True

    def add(self, part: Part, features: Mapping[str, NDArray[np.float16]], seconds: float) -> None:
        """Write a part, durably.

        Parameters
        ----------
        part : Part
        features : mapping
            For each tap, float16 (rows of the part, columns).
        seconds : float
            How long computing it took.

        Raises
        ------
        OSError
            When the file system store.refuses; what was there before is as it was.
        """
        arrays = {tap: features[tap] for tap in self.spec.taps}
        for tap, array in arrays.items():
            if array.shape != (part.stop - part.start, TAP_COLUMNS[tap]) or array.dtype != store.FEATURE_DTYPE:
                raise AssertionError(f"{tap}: {array.shape} {array.dtype} is not what {part} needs")
        path = self.parts_folder / part.file_name
        plan = [store.plan(tap, array) for tap, array in arrays.items()]

        def fill(writer: store.Writer) -> None:
            for tap, array in arrays.items():
                writer.rows(tap, 0, array)

        attributes = {**self._part_attributes(part), "seconds": seconds}
        store.write_file(path, files.temporary_path(path), attributes, plan, fill)
        self._account(part, arrays, seconds)

    def finish(
        self,
        labels: Mapping[str, NDArray[Any]],
        class_names: Sequence[str],
        attributes: Mapping[str, Any],
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Join the parts into the final file, which appears complete or not at all; remove the parts.

        Parameters
        ----------
        labels : mapping of split to ndarray, uint8 or int64 (n,)
        class_names : sequence of str
        attributes : mapping
            ``created``, ``images_per_second``, ``versions`` and ``provenance``, as `Cache` names them.
        progress : callable
            Told the number of rows joined, part by part.
        """
        if self._filled != self.rows:
            raise AssertionError(f"rows filled {self._filled}, rows wanted {self.rows}")
        names = store.encode_names(class_names)
        plan = [store.plan("class_names", names)]
        for split in store.SPLITS:
            if labels[split].shape != (self.rows[split],) or labels[split].dtype not in store.LABEL_DTYPES:
                raise AssertionError(f"{split} labels: {labels[split].shape} {labels[split].dtype}")
            plan.append(store.plan(f"{split}/labels", labels[split]))
            for tap in self.spec.taps:
                shape = (self.rows[split], TAP_COLUMNS[tap])
                digest = self._digests[split, tap].hexdigest()
                plan.append(store.Planned(f"{split}/{tap}", shape, store.FEATURE_DTYPE, digest))

        def fill(writer: store.Writer) -> None:
            writer.rows("class_names", 0, names)
            for split in store.SPLITS:
                writer.rows(f"{split}/labels", 0, labels[split])
            for part in self.parts:
                # Verified once more: hours may lie between a part's writing and this.
                for tap, array in self._read_part(part)[0].items():
                    writer.rows(f"{part.split}/{tap}", part.start, array)
                progress(part.stop - part.start)

        final = {
            "spec": json.dumps(self.spec.to_dict()),
            "key": self.spec.key(),
            "format_version": FORMAT_VERSION,
            "created": attributes["created"],
            "images_per_second": float(attributes["images_per_second"]),
            "versions": json.dumps(attributes["versions"]),
            "provenance": json.dumps(attributes["provenance"]),
        }
        temporary = self.parts_folder / files.temporary_path(self.target).name
        store.write_file(self.target, temporary, final, plan, fill)
        self.discard()

    def _account(self, part: Part, arrays: Mapping[str, NDArray[Any]], seconds: float) -> None:
        if part.start != self._filled[part.split]:
            raise AssertionError(f"{part} came after row {self._filled[part.split]}")
        for tap, array in arrays.items():
            self._digests[part.split, tap].update(np.ascontiguousarray(array).view(np.uint8).data)
        self._filled[part.split] = part.stop
        self.seconds += seconds

    def _part_attributes(self, part: Part) -> dict[str, Any]:
        return {
            "key": self.spec.key(),
            "split": part.split,
            "start": part.start,
            "stop": part.stop,
            "format_version": FORMAT_VERSION,
        }

    def _read_part(self, part: Part) -> tuple[dict[str, NDArray[Any]], float]:
        path = self.parts_folder / part.file_name
        with store.verified(path) as file:
            found = {name: file.attrs.get(name) for name in self._part_attributes(part)}
            if found != self._part_attributes(part):
                raise store.refuse(path, f"it holds other rows or another run's: {found}")
            seconds = float(file.attrs.get("seconds", 0.0))
            store.check_members(path, file, set(self.spec.taps))
            arrays = {}
            for tap in self.spec.taps:
                dataset = store.array_dataset(path, file, tap, (part.stop - part.start, TAP_COLUMNS[tap]))
                store.expect_dtype(path, dataset, (store.FEATURE_DTYPE,))
                arrays[tap] = store.read_proven(path, dataset)
        return arrays, seconds

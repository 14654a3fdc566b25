"""Reading a feature cache, each byte verified before HDF5 sees it; `pipeline.features.layout` says what it holds."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.data.dataset import RowIds, Skipped
from pipeline.features import checksum
from pipeline.features.checksum import unusable
from pipeline.features.layout import DIGEST_DTYPE, DIGEST_SIZE, FEATURE_DTYPE, LABEL_DTYPES, SKIPPED, SPLITS
from pipeline.features.rows import FeatureRows, FilePart
from pipeline.features.spec import FORMAT_VERSION, FeatureSpec
from pipeline.network.taps import TAP_COLUMNS

CacheError = checksum.CacheError
Unfit = checksum.Unfit

PROVENANCE = ("dataset_source", "official", "weights", "weights_source")  # what every file says of its origin
_FRONT = 1 << 16  # bytes at the beginning of a file, in which its attributes are


# --- the finished cache -----------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Cache:
    """A verified feature file, open: a context manager. What it says of itself stays when it is closed.

    Its one descriptor was verified and is read, so nothing that is done to the name of the file matters to it.
    """

    path: Path
    spec: FeatureSpec
    class_names: tuple[str, ...]
    rows: Mapping[str, int]  # of each split
    created: str  # when it was finished, ISO 8601, UTC
    images_per_second: float  # of the runs that made it
    versions: Mapping[str, str]  # of the packages that computed it
    provenance: Mapping[str, Any]  # where data and weights came from, and how the run was set up
    size: int  # of the file, in bytes
    has_members: bool  # whether the rows have names and digests of their own
    has_groups: bool  # whether they have groups that must not be parted, too
    skipped: tuple[Skipped, ...]  # what of the data set was not used
    computed_on: tuple[str, ...]  # of each part, what computed it; empty where no cluster did
    _file: h5py.File = field(repr=False)
    beside: tuple[Cache, ...] = ()  # caches of the same rows whose columns follow, see `open_all`
    _descriptor: int = field(default=-1, repr=False)
    close: Callable[[], None] = field(default=lambda: None, repr=False)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def parts(self) -> tuple[Cache, ...]:
        """The cache itself and those beside it."""
        return (self, *self.beside)

    @property
    def taps(self) -> tuple[str, ...]:
        """What can be read: the taps that this cache and all beside it hold."""
        return tuple(tap for tap in self.spec.taps if all(tap in cache.spec.taps for cache in self.beside))

    @property
    def proof(self) -> bytes:
        """The line in front of the file: with the sha256 of all other bytes, by which it was verified."""
        return os.pread(self._descriptor, checksum.HEADER_SIZE, 0)

    def labels(self, split: str) -> NDArray[Any]:
        """Labels of a split, uint8 or int64 (n,), each within the class names.

        Raises CacheError, here and below, when an array does not have its recorded digest.
        """
        labels = self._proven(split, "labels")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise unusable(self.path, f"a label of {split} is outside 0 to {len(self.class_names) - 1}")
        return labels

    def members(self, split: str) -> RowIds:
        """Who the rows of a split are: the name of each one's file, the digest of its image, and its group."""
        if not self.has_members:
            raise CacheError(f"The rows of the feature file {self.path} have no names: its data set is no folder.")
        groups = tuple(map(os.fsdecode, self._proven(split, "groups"))) if self.has_groups else ()
        return RowIds(tuple(map(os.fsdecode, self._proven(split, "names"))), self._proven(split, "digests"), groups)

    def features(self, split: str, taps: Sequence[str]) -> NDArray[np.float32]:
        """Features of a split, the taps side by side in the order given, float32 (n, columns of the taps together).

        Raises CacheError also for a tap that is not in the file.
        """
        rows = self.feature_rows(split, taps)
        with read_errors(self.path):
            return rows.read(np.arange(rows.shape[0]))

    def feature_rows(self, split: str, taps: Sequence[str]) -> FeatureRows:
        """The same, float16, left in the file: to be read while the cache is open, by many threads.

        The columns of the caches beside it follow.
        """
        found: list[FilePart] = []
        for cache in self.parts:
            cache._require(taps)
            with read_errors(cache.path):
                held = [cache._file[split][tap] for tap in taps]
                found += [FilePart(cache._descriptor, each.id.get_offset() or 0, each.shape) for each in held]
        return FeatureRows(found)

    def places_of(self, other: Cache, split: str) -> NDArray[np.intp]:
        """Numbers (n,) of the rows of a split here that hold the images of another cache's rows.

        Rows are told by the digests of their images; where they have none, they are the rows of one data set in order.
        Raises UserError when the other has an image that is not here.
        """
        if self.spec.dataset_digest == other.spec.dataset_digest and self.has_members:
            places = {digest.tobytes(): row for row, digest in enumerate(self.members(split).digests)}
            rows = [places.get(digest.tobytes()) for digest in other.members(split).digests]
            if None not in rows:
                return np.array(rows, np.intp)
        elif self.spec.dataset_digest == other.spec.dataset_digest and self.rows[split] == other.rows[split]:
            return np.arange(self.rows[split])
        raise UserError(
            f"The feature files {other.path} and {self.path} cannot be joined: images of {split} that are in the first "
            f"are not in the second. The first holds {other.rows[split]:,} rows of the data set "
            f"{other.spec.dataset_digest[:12]}…, the second {self.rows[split]:,} of {self.spec.dataset_digest[:12]}…. "
            f"Join files that were made of the same data set and with the same --limit."
        )

    def _require(self, taps: Sequence[str]) -> None:
        missing = [tap for tap in taps if tap not in self.spec.taps]
        if missing:
            raise CacheError(
                f"The feature file {self.path} has no tap {', '.join(missing)}; it holds {', '.join(self.spec.taps)}. "
                f"Choose among these, or run 'python -m pipeline features' with the taps wanted."
            )

    def _proven(self, split: str, name: str) -> NDArray[Any]:
        with read_errors(self.path):
            return read_proven(self._file[split][name])


def open(path: Path, expected: FeatureSpec | None = None) -> Cache:  # noqa: A001 - as in store.open
    """Verify a feature file, every byte and its structure, and leave it open.

    It must hold what is ``expected``, if that is given; more taps are welcome. Raises CacheError when the file is
    absent, damaged, edited, of another format, or of another spec than expected.
    """
    with ExitStack() as stack:
        file, descriptor = stack.enter_context(verified(path))
        cache = _describe(path, file)
        if expected is not None and not cache.spec.covers(expected):
            differences = "; ".join(expected.differences(cache.spec))
            raise Unfit(f"it holds other features than asked for ('here' is asked, 'there' the file): {differences}")
        return replace(cache, _descriptor=descriptor, close=stack.pop_all().close)


def open_all(paths: Sequence[Path], expected: FeatureSpec) -> Cache:
    """Open the caches of a run, one for each of the spec's sizes, as one: the first, with the others beside it.

    Raises UserError, besides what `open` does, when they do not hold the same images in the same order.
    """
    with ExitStack() as stack:
        caches = [stack.enter_context(open(path, part)) for path, part in zip(paths, expected.parts, strict=True)]
        first, *others = caches
        for other in others:
            for split in SPLITS:
                if not np.array_equal(other.places_of(first, split), np.arange(other.rows[split])):
                    raise UserError(
                        f"The feature files {first.path} and {other.path} cannot be joined: the second holds other "
                        f"images of {split}, or the same in another order, though both are of the data set "
                        f"{first.spec.dataset_digest[:12]}…. Leave one of the sizes out."
                    )
        return replace(first, beside=tuple(others), close=stack.pop_all().close)


def verify(path: Path, progress: Callable[[int], object] = lambda count: None) -> Cache:
    """Verify a feature file completely: every byte, the structure, and each data set's own digest; then close it.

    Raises CacheError at the first fault; ``progress`` is told the number of bytes of each array.
    """
    with open(path) as cache:
        for split in SPLITS:
            cache.labels(split)
            for name in _members_of_split(cache.spec, cache.has_members, cache.has_groups):
                progress(cache._proven(split, name).nbytes)
    return cache


def _describe(path: Path, file: h5py.File) -> Cache:
    """Say what an open file holds, and refuse it where its structure is not a feature file's."""
    spec = _read_spec(file)
    has_members = "skipped" in file
    has_groups = has_members and "groups" in file.get("train", ())
    on_cluster = "computed_on" in file
    optional = [name for name, there in (("skipped", has_members), ("computed_on", on_cluster)) if there]
    check_members(file, {"class_names", *SPLITS, *optional})
    rows: dict[str, int] = {}
    for split in SPLITS:
        group = file[split]
        check_members(group, set(_members_of_split(spec, has_members, has_groups)))
        rows[split] = len(array_dataset(group, "labels", (None,), LABEL_DTYPES))
        for tap in spec.taps:
            array_dataset(group, tap, (rows[split], TAP_COLUMNS[tap]), (FEATURE_DTYPE,))
        if has_members:
            array_dataset(group, "names", (rows[split],))
            array_dataset(group, "digests", (rows[split], DIGEST_SIZE), (DIGEST_DTYPE,))
        if has_groups:
            array_dataset(group, "groups", (rows[split],))
    if len({file[split]["labels"].dtype for split in SPLITS}) != 1:
        raise Unfit("the labels of its splits have different types")
    try:
        class_names = tuple(name.decode("utf-8") for name in read_proven(array_dataset(file, "class_names", (None,))))
    except UnicodeDecodeError as error:
        raise Unfit(f"/class_names is not UTF-8: {error}") from error
    origins = read_proven(array_dataset(file, "computed_on", (None,))) if on_cluster else ()
    rate = file.attrs.get("images_per_second")
    if not isinstance(rate, (float, np.floating)):
        raise Unfit("the attribute 'images_per_second' is missing or no number")
    return Cache(
        path=path,
        spec=spec,
        class_names=class_names,
        rows=rows,
        created=_text_attribute(file, "created"),
        images_per_second=float(rate),
        versions=_json_attribute(file, "versions"),
        provenance=_json_attribute(file, "provenance", PROVENANCE),
        size=file.id.get_filesize(),
        has_members=has_members,
        has_groups=has_groups,
        skipped=_read_skipped(file) if has_members else (),
        computed_on=tuple(text.decode("utf-8", "replace") for text in origins),
        _file=file,
    )


def _members_of_split(spec: FeatureSpec, has_members: bool, has_groups: bool) -> tuple[str, ...]:
    own = (*(("names", "digests") if has_members else ()), *(("groups",) if has_groups else ()))
    return ("labels", *own, *spec.taps)


def _read_spec(file: h5py.File) -> FeatureSpec:
    try:
        spec = FeatureSpec.from_dict(_json_attribute(file, "spec"))
    except UserError as error:
        raise Unfit(f"its spec is not valid ({error})") from error
    if _text_attribute(file, "key") != spec.key():
        raise Unfit("its key is not the key of its spec")
    if file.attrs.get("format_version") != FORMAT_VERSION or spec.format_version != FORMAT_VERSION:
        raise Unfit(f"its format_version is {file.attrs.get('format_version')!r}; expected {FORMAT_VERSION}")
    return spec


def _read_skipped(file: h5py.File) -> tuple[Skipped, ...]:
    group = file["skipped"]
    check_members(group, set(SKIPPED))
    names, reasons = (read_proven(array_dataset(group, name, (None,))) for name in SKIPPED)
    if len(names) != len(reasons):
        raise Unfit(f"/skipped has {len(names)} files and {len(reasons)} reasons")
    return tuple(
        Skipped.stored(os.fsdecode(name), reason.decode("utf-8", "replace"))
        for name, reason in zip(names, reasons, strict=True)
    )


def peek_spec(path: Path) -> FeatureSpec:
    """Read the spec that a file claims to have: enough to choose a file, never to trust one.

    Nothing is verified yet, so HDF5 is not let near it: one flipped bit can make it read for ever. The attributes
    come first in a file, as plain text, and the key tells whether the spec was read as it was written. Raises
    CacheError when not even that can be read.
    """
    with path.open("rb") as stream:
        text = stream.read(_FRONT).decode("latin-1")
    start = text.find('{"dataset": ')
    try:
        spec = FeatureSpec.from_dict(json.JSONDecoder().raw_decode(text, max(start, 0))[0])
    except (ValueError, TypeError, RecursionError) as error:
        raise unusable(path, f"its spec cannot be read ({error})") from error
    if spec.key() not in text:
        raise unusable(path, "its key is not the key of its spec")
    return spec


# --- any file of ours: a cache or a part ---------------------------------------------------------


@contextmanager
def verified(path: Path) -> Iterator[tuple[h5py.File, int]]:
    """Open a file for reading, with its descriptor, after every byte of it has been verified.

    The verification, the parsing and the reading use one descriptor, so a file renamed over this one
    in between changes nothing.
    """
    with read_errors(path), path.open("rb") as stream:
        checksum.check_bytes(stream.fileno())
        with h5py.File(stream, "r") as file:
            yield file, stream.fileno()


@contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what opening, parsing and reading a file raises into `UserError`; the block must do nothing else."""
    with file_errors("read the features", path):
        try:
            yield
        except FileNotFoundError as error:
            raise CacheError(f"There is no feature file {path}. Check the path.") from error
        except IsADirectoryError as error:
            raise CacheError(f"{path} is a folder, not a feature file. Name a file that ends in .h5.") from error
        except Unfit as error:
            raise unusable(path, error) from error
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # whatever h5py makes of odd files
            if isinstance(error, OSError) and error.errno:
                raise
            raise unusable(path, f"HDF5 cannot read it ({error})") from error


def check_members(group: h5py.Group, expected: set[str]) -> None:
    """Refuse a group whose members are not exactly the expected ones, or not plain links into this file."""
    if not isinstance(group, h5py.Group):
        raise Unfit(f"{group.name} is an array, not a group")
    found = set(group)
    if found != expected:
        odd = ", ".join(sorted(found ^ expected))
        raise Unfit(f"{group.name} has missing or unexpected members: {odd}")
    for name in sorted(found):
        kind = type(group.get(name, getlink=True)).__name__
        if kind != "HardLink":
            raise Unfit(f"{group.name.rstrip('/')}/{name} is a link of the kind {kind}, which is never followed")


def array_dataset(
    parent: h5py.Group, name: str, shape: tuple[int | None, ...], dtypes: Sequence[np.dtype[Any]] = ()
) -> h5py.Dataset:
    """Return a member that is a plain array as expected, or refuse: None is any length, no type fixed-length text."""
    dataset = parent[name]
    where = f"{parent.name.rstrip('/')}/{name}"
    if not isinstance(dataset, h5py.Dataset):
        raise Unfit(f"{where} is a group, not an array")
    layout = dataset.id.get_create_plist().get_layout()
    if dataset.is_virtual or dataset.external or layout != h5py.h5d.CONTIGUOUS:
        raise Unfit(f"{where} is not stored in one piece in this file (virtual, external or chunked)")
    if len(dataset.shape) != len(shape) or any(
        want not in (None, have) for want, have in zip(shape, dataset.shape, strict=True)
    ):
        raise Unfit(f"{where} has the shape {dataset.shape}; expected {shape}")
    if dataset.dtype not in dtypes if dtypes else dataset.dtype.kind != "S":
        expected = " or ".join(map(str, dtypes)) or "fixed-length text"
        raise Unfit(f"{where} has the type {dataset.dtype}; expected {expected}")
    if dataset.size and dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize:
        raise Unfit(f"{where} declares more than the file holds")
    _text_attribute(dataset, "sha256")
    return dataset


def _text_attribute(item: h5py.Group | h5py.Dataset, name: str) -> str:
    value = item.attrs.get(name)
    if not isinstance(value, str):
        raise Unfit(f"the attribute {name!r} of {item.name} is missing or no text")
    return value


def _json_attribute(item: h5py.Group, name: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    text = _text_attribute(item, name)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Unfit(f"the attribute {name!r} is not JSON: {error}") from error
    if not isinstance(value, dict) or not value.keys() >= set(fields):
        raise Unfit(f"the attribute {name!r} is no JSON object{' with ' * bool(fields)}{', '.join(fields)}")
    return value


def read_proven(dataset: h5py.Dataset) -> NDArray[Any]:
    """Read a whole data set and prove it by its digest."""
    array: NDArray[Any] = dataset[()]
    if checksum.array_digest(array) != dataset.attrs["sha256"]:
        raise Unfit(f"{dataset.name} does not have the sha256 recorded with it")
    return array

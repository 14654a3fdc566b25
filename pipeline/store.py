"""The feature cache: one HDF5 file, built from parts that survive a crash, verified when it is read.

Layout of a finished file (any HDF5 tool reads it)::

    bytes 0 to 511                     a text line: format version, sha256 of all bytes from 512 on
    /                                  attributes: spec (JSON), key, format_version, created,
                                       images_per_second, versions (JSON), provenance (JSON)
    /class_names                       (classes,) fixed-length UTF-8
    /{train,test}/labels               (n,) uint8 or int64
    /{train,test}/<tap>                (n, columns of the tap) float16
                                       every data set: contiguous, with attribute sha256 of its bytes

The line in front is an HDF5 user block, which HDF5 tools skip. It is what makes every single byte of the
file verifiable *before* the HDF5 library parses it.

Neither libhdf5 nor a crash in the middle of its writes can spoil a file: the library only lays out metadata
in memory, and all bytes reach the disk through `pipeline.files`. How a cache is built is in `pipeline.parts`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline import files
from pipeline.errors import UserError, file_errors
from pipeline.spec import FORMAT_VERSION, TAP_COLUMNS, FeatureSpec

SPLITS = ("train", "test")
FEATURE_DTYPE = np.dtype("<f2")
LABEL_DTYPES = (np.dtype("u1"), np.dtype("<i8"))

HEADER_SIZE = 512  # bytes; the smallest user block that HDF5 allows
_HEADER = re.compile(rb"vgg16 feature file, format (\d+), sha256 of the bytes from 512 on: ([0-9a-f]{64})\n\0*")
_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_LIBVER = ("v110", "v110")  # metadata with checksums, and the same layout whichever HDF5 comes next


class CacheError(UserError):
    """A feature file that must not be used; the message says which, why, and what to do."""


def refuse(path: Path, what: str) -> CacheError:
    """Give the error for a file that must not be used, because of ``what``."""
    return CacheError(
        f"The feature file {path} cannot be used: {what}. It was not changed. Delete it and run "
        f"'python -m pipeline features' with the same options to compute it again."
    )


# --- writing one file -------------------------------------------------------------------------


class _SparseMemory(io.RawIOBase):
    """A file in memory that stores only the pages written to.

    HDF5 lays out a whole file's metadata here without touching the disk and without room for the
    arrays, whose bytes never pass through it.
    """

    PAGE = 4096

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        for start, page, begin, end in self._spans(count):
            view[start : start + end - begin] = self.pages.get(page, bytes(self.PAGE))[begin:end]
        self._at += count
        return count

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start, page, begin, end in self._spans(len(view)):
            self.pages.setdefault(page, bytearray(self.PAGE))[begin:end] = view[start : start + end - begin]
        self._at += len(view)
        self.size = max(self.size, self._at)
        return len(view)

    def _spans(self, count: int) -> Iterator[tuple[int, int, int, int]]:
        done = 0
        while done < count:
            page, begin = divmod(self._at + done, self.PAGE)
            end = min(self.PAGE, begin + count - done)
            yield done, page, begin, end
            done += end - begin


@dataclass(frozen=True)
class Planned:
    """A data set to be: where, how large, and the sha256 its bytes will have."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sha256: str


def plan(name: str, array: NDArray[Any]) -> Planned:
    """Plan a data set for an array that is in memory."""
    return Planned(name, array.shape, array.dtype, array_digest(array))


def encode_names(names: Sequence[str]) -> NDArray[Any]:
    """Class names as fixed-length UTF-8, which needs no object type and no heap in the file."""
    encoded = [name.encode("utf-8") for name in names]
    if any(b"\0" in name for name in encoded):
        raise UserError("A class name must not hold the character U+0000, which HDF5 text ends at. Rename the class.")
    width = max([len(name) for name in encoded] + [1])
    return np.array(encoded, dtype=h5py.string_dtype("utf-8", width))


def array_digest(array: NDArray[Any]) -> str:
    """sha256, in hex, of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").hexdigest()


def _lay_out(attributes: Mapping[str, Any], plan: Sequence[Planned]) -> tuple[_SparseMemory, dict[str, int]]:
    """Build a file's metadata in memory; return it and the byte offset of each data set."""
    memory = _SparseMemory()
    offsets: dict[str, int] = {}
    with h5py.File(memory, "w", userblock_size=HEADER_SIZE, libver=_LIBVER) as file:
        file.attrs.update(attributes)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that the offset is known now
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte will be written, none twice
        for item in plan:
            group, _, leaf = item.name.rpartition("/")
            parent = file.require_group(group) if group else file
            identifier = h5py.h5d.create(
                parent.id,
                leaf.encode(),
                h5py.h5t.py_create(item.dtype, logical=True),
                h5py.h5s.create_simple(item.shape),
                creation,
            )
            h5py.Dataset(identifier).attrs["sha256"] = item.sha256
            if 0 not in item.shape:
                offsets[item.name] = identifier.get_offset()
    return memory, offsets


class Writer:
    """Puts rows of planned data sets at their place in an open file."""

    def __init__(self, descriptor: int, plan: Sequence[Planned], offsets: Mapping[str, int]) -> None:
        self._descriptor, self._offsets = descriptor, offsets
        self._plan = {item.name: item for item in plan}

    def rows(self, name: str, start: int, array: NDArray[Any]) -> None:
        """Write rows ``start`` and following of a data set."""
        item = self._plan[name]
        if array.dtype != item.dtype or array.shape[1:] != item.shape[1:] or start + len(array) > item.shape[0]:
            raise AssertionError(f"{name}: rows {start}+{array.shape} {array.dtype} do not fit {item}")
        if array.size:
            data = np.ascontiguousarray(array)
            files.write(self._descriptor, data.view(np.uint8).data, self._offsets[name] + start * data[0].nbytes)


def write_file(
    target: Path,
    temporary: Path,
    attributes: Mapping[str, Any],
    plan: Sequence[Planned],
    fill: Callable[[Writer], None],
) -> None:
    """Write a complete file under a temporary name, seal it, and give it its name."""
    memory, offsets = _lay_out(attributes, plan)

    def write(descriptor: int) -> None:
        files.reserve(descriptor, memory.size)
        for page, content in sorted(memory.pages.items()):
            start = page * memory.PAGE
            files.write(descriptor, bytes(content[: memory.size - start]), start)
        fill(Writer(descriptor, plan, offsets))
        os.ftruncate(descriptor, memory.size)
        files.write(descriptor, _header(file_digest(descriptor)), 0)

    files.commit(target, write, temporary)


def _header(digest: str) -> bytes:
    line = f"vgg16 feature file, format {FORMAT_VERSION}, sha256 of the bytes from 512 on: {digest}\n"
    return line.encode("ascii").ljust(HEADER_SIZE, b"\0")


def file_digest(descriptor: int) -> str:
    """sha256, in hex, of an open file's bytes after the header, read back from the file system."""
    digest, offset = hashlib.sha256(), HEADER_SIZE
    buffer = memoryview(bytearray(files.READ_SIZE))  # one for all reads: fresh memory costs more than hashing it
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


# --- reading one file -------------------------------------------------------------------------


@contextmanager
def verified(path: Path, *, trusting: bool = False) -> Iterator[h5py.File]:
    """Open a file for reading after every byte of it has been verified (unless ``trusting``).

    The verification, the parsing and the reading use one descriptor, so a file renamed over this one
    in between changes nothing.
    """
    try:
        with open(path, "rb") as stream:
            if not trusting:
                _check_bytes(path, stream.fileno())
            try:
                with h5py.File(stream, "r") as file:
                    yield file
            except (OSError, RuntimeError, ValueError, KeyError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise
                raise refuse(path, f"HDF5 cannot read it ({error})") from error
    except FileNotFoundError as error:
        raise CacheError(f"There is no feature file {path}. Check the path.") from error
    except IsADirectoryError as error:
        raise CacheError(f"{path} is a folder, not a feature file. Name a file that ends in .h5.") from error


def _check_bytes(path: Path, descriptor: int) -> None:
    head = os.pread(descriptor, HEADER_SIZE, 0)
    match = _HEADER.fullmatch(head)
    if match is None:
        if head.startswith(_HDF5_SIGNATURE):
            raise refuse(path, "it is an HDF5 file, but not one that this program wrote, or it was edited since")
        raise refuse(path, f"its first {HEADER_SIZE} bytes are not a feature file's; found {head[:24]!r}")
    if int(match[1]) != FORMAT_VERSION:
        raise refuse(path, f"its format_version is {int(match[1])}; this program reads {FORMAT_VERSION}")
    found, expected = file_digest(descriptor), match[2].decode()
    if found != expected:
        raise refuse(
            path,
            f"it was truncated, edited or damaged after it was written (sha256 expected {expected[:12]}…, "
            f"found {found[:12]}…)",
        )


def check_members(path: Path, group: h5py.Group, expected: set[str]) -> None:
    """Refuse a group whose members are not exactly the expected ones, or not plain links into this file."""
    found = set(group)
    if found != expected:
        odd = ", ".join(sorted(found ^ expected))
        raise refuse(path, f"{group.name} has missing or unexpected members: {odd}")
    for name in sorted(found):
        kind = type(group.get(name, getlink=True)).__name__
        if kind != "HardLink":
            raise refuse(path, f"{group.name.rstrip('/')}/{name} is a link of the kind {kind}, which is never followed")


def array_dataset(path: Path, parent: h5py.Group, name: str, shape: tuple[int | None, ...]) -> h5py.Dataset:
    """Return a member that is a plain array of the expected shape (None: any length), or refuse."""
    dataset = parent[name]
    where = f"{parent.name.rstrip('/')}/{name}"
    if not isinstance(dataset, h5py.Dataset):
        raise refuse(path, f"{where} is a group, not an array")
    layout = dataset.id.get_create_plist().get_layout()
    if dataset.is_virtual or dataset.external or layout != h5py.h5d.CONTIGUOUS:
        raise refuse(path, f"{where} is not stored in one piece in this file (virtual, external or chunked)")
    if len(dataset.shape) != len(shape) or any(
        want is not None and want != have for want, have in zip(shape, dataset.shape, strict=True)
    ):
        raise refuse(path, f"{where} has the shape {dataset.shape}; expected {shape}")
    if dataset.dtype.hasobject or dataset.dtype.fields is not None:
        raise refuse(path, f"{where} has the type {dataset.dtype}, which is never read")
    if dataset.size and dataset.id.get_storage_size() != dataset.size * dataset.dtype.itemsize:
        raise refuse(path, f"{where} declares more than the file holds")
    _text_attribute(path, dataset, "sha256")
    return dataset


def expect_dtype(path: Path, dataset: h5py.Dataset, allowed: Sequence[np.dtype[Any]]) -> None:
    """Refuse a data set of any other type."""
    if dataset.dtype not in allowed:
        raise refuse(path, f"{dataset.name} has the type {dataset.dtype}; expected {' or '.join(map(str, allowed))}")


def _text_attribute(path: Path, item: h5py.Group | h5py.Dataset, name: str) -> str:
    value = item.attrs.get(name)
    if not isinstance(value, str):
        raise refuse(path, f"the attribute {name!r} of {item.name} is missing or no text")
    return value


def _json_attribute(path: Path, item: h5py.Group, name: str) -> Any:
    text = _text_attribute(path, item, name)
    try:
        return json.loads(text)
    except ValueError as error:
        raise refuse(path, f"the attribute {name!r} is not JSON: {error}") from error


def read_proven(path: Path, dataset: h5py.Dataset) -> NDArray[Any]:
    """Read a whole data set and prove it by its digest."""
    array: NDArray[Any] = dataset[()]
    if array_digest(array) != dataset.attrs["sha256"]:
        raise refuse(path, f"{dataset.name} does not have the sha256 recorded with it")
    return array


def _read_spec(path: Path, file: h5py.File) -> FeatureSpec:
    fields = _json_attribute(path, file, "spec")
    try:
        spec = FeatureSpec.from_dict(fields)
    except (UserError, TypeError, AttributeError) as error:
        raise refuse(path, f"its spec is not valid ({error})") from error
    if _text_attribute(path, file, "key") != spec.key():
        raise refuse(path, "its key is not the key of its spec")
    if file.attrs.get("format_version") != FORMAT_VERSION or spec.format_version != FORMAT_VERSION:
        raise refuse(path, f"its format_version is {file.attrs.get('format_version')!r}; expected {FORMAT_VERSION}")
    return spec


# --- the finished cache -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """A verified feature file.

    Attributes
    ----------
    path, spec, class_names
    rows : dict
        Number of rows of each split.
    created : str
        When it was finished, ISO 8601, UTC.
    images_per_second : float
        Rate of the run that finished it.
    versions : dict
        Of the packages that computed it.
    provenance : dict
        Where data and weights came from, whether the data is official, and how the run was set up.
    size : int
        Of the file, in bytes.
    """

    path: Path
    spec: FeatureSpec
    class_names: tuple[str, ...]
    rows: Mapping[str, int]
    created: str
    images_per_second: float
    versions: Mapping[str, str]
    provenance: Mapping[str, Any]
    size: int


def open_cache(path: Path, expected: FeatureSpec | None = None) -> Cache:
    """Verify a feature file, every byte and its structure, and say what it holds.

    Parameters
    ----------
    path : Path
    expected : FeatureSpec, optional
        What the file must hold; more taps than these are welcome.

    Raises
    ------
    CacheError
        When the file is absent, damaged, edited, of another format, or of another spec than expected.
    """
    with verified(path) as file:
        cache = _describe(path, file)
    if expected is not None and not cache.spec.serves(expected):
        differences = "; ".join(expected.differences(cache.spec))
        raise refuse(path, f"it holds other features than asked for ('here' is asked, 'there' the file): {differences}")
    return cache


def describe_unverified(path: Path) -> Cache:
    """Say what a file claims to hold; for people who want to know what a damaged one was."""
    with verified(path, trusting=True) as file:
        return _describe(path, file)


def verify(path: Path, progress: Callable[[int], None] = lambda count: None) -> Cache:
    """Verify a feature file completely: every byte, the structure, and each data set's own digest.

    Raises
    ------
    CacheError
        At the first fault.
    """
    cache = open_cache(path)
    with verified(path) as file:
        for split in SPLITS:
            for name in ("labels", *cache.spec.taps):
                progress(read_proven(path, file[split][name]).nbytes)
    for split in SPLITS:
        read_labels(cache, split)
    return cache


def _describe(path: Path, file: h5py.File) -> Cache:
    spec = _read_spec(path, file)
    check_members(path, file, {"class_names", *SPLITS})
    rows: dict[str, int] = {}
    dtypes = set()
    for split in SPLITS:
        if not isinstance(file[split], h5py.Group):
            raise refuse(path, f"/{split} is an array, not a group")
        check_members(path, file[split], {"labels", *spec.taps})
        labels = array_dataset(path, file[split], "labels", (None,))
        expect_dtype(path, labels, LABEL_DTYPES)
        rows[split] = len(labels)
        dtypes.add(labels.dtype)
        for tap in spec.taps:
            features = array_dataset(path, file[split], tap, (rows[split], TAP_COLUMNS[tap]))
            expect_dtype(path, features, (FEATURE_DTYPE,))
    if len(dtypes) != 1:
        raise refuse(path, "the labels of its splits have different types")
    names = array_dataset(path, file, "class_names", (None,))
    if names.dtype.kind != "S":
        raise refuse(path, f"/class_names has the type {names.dtype}; expected fixed-length text")
    try:
        class_names = tuple(name.decode("utf-8") for name in read_proven(path, names))
    except UnicodeDecodeError as error:
        raise refuse(path, f"/class_names is not UTF-8: {error}") from error
    rate = file.attrs.get("images_per_second")
    if not isinstance(rate, (float, np.floating)):
        raise refuse(path, "the attribute 'images_per_second' is missing or no number")
    return Cache(
        path=path,
        spec=spec,
        class_names=class_names,
        rows=rows,
        created=_text_attribute(path, file, "created"),
        images_per_second=float(rate),
        versions=_json_attribute(path, file, "versions"),
        provenance=_json_attribute(path, file, "provenance"),
        size=path.stat().st_size,
    )


def peek_spec(path: Path) -> FeatureSpec:
    """Read a file's spec without verifying its bytes: enough to choose a file, never to trust one.

    Raises
    ------
    CacheError
        When not even that can be read.
    """
    with verified(path, trusting=True) as file:
        return _read_spec(path, file)


def find_cache(folder: Path, asked: FeatureSpec) -> Path | None:
    """Path of a cache that serves ``asked``: its own file, else one with more taps."""
    own = folder / f"{asked.stem}.h5"
    if own.exists():
        return own
    for path in sorted(folder.glob(f"{asked.family}*.h5")):
        try:
            if peek_spec(path).serves(asked):
                return path
        except CacheError:
            continue  # a damaged file of unknown content is no reason not to look further
    return None


def read_labels(cache: Cache, split: str) -> NDArray[Any]:
    """Labels of a split, uint8 or int64 (n,), each within the class names."""
    with verified(cache.path) as file:
        labels = read_proven(cache.path, file[split]["labels"])
    if labels.size and not 0 <= labels.min() <= labels.max() < len(cache.class_names):
        raise refuse(cache.path, f"a label of {split} is outside 0 to {len(cache.class_names) - 1}")
    return labels


def read_features(
    cache: Cache,
    split: str,
    taps: Sequence[str],
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> NDArray[np.float32]:
    """Features of a split, the taps side by side, float32 (n, columns of the taps together).

    Parameters
    ----------
    cache : Cache
    split : str
    taps : sequence of str
        In this order; each must be in the cache.
    progress : callable
        Told the number of bytes read, after each tap.

    Raises
    ------
    CacheError
        When a tap is not in the cache, or a data set does not have its recorded digest.
    """
    missing = [tap for tap in taps if tap not in cache.spec.taps]
    if missing:
        raise CacheError(
            f"The feature file {cache.path} has no tap {', '.join(missing)}; it holds {', '.join(cache.spec.taps)}. "
            f"Choose among these, or run 'python -m pipeline features' with the taps wanted."
        )
    columns = [TAP_COLUMNS[tap] for tap in taps]
    result = np.empty((cache.rows[split], sum(columns)), np.float32)
    start = 0
    with verified(cache.path) as file:
        for tap, width in zip(taps, columns, strict=True):
            # Cast while it is copied to its place: no second float32 array is ever made.
            values = read_proven(cache.path, file[split][tap])
            result[:, start : start + width] = values
            start += width
            progress(values.nbytes)
    return result


# --- other people's HDF5 ----------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every float array of any HDF5 file, by its path inside, following no link out of its own tree.

    For weights files. Nothing of it is trusted: the caller checks names, shapes and a digest.

    Raises
    ------
    UserError
        When the file is absent, not HDF5, damaged, or larger than a VGG16 could be.
    """
    limit = 1 << 30  # bytes; VGG16 with its classifier is 553 MB
    arrays: dict[str, NDArray[Any]] = {}

    def collect(group: h5py.Group, prefix: str, depth: int) -> None:
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink) or depth > 8:
                continue
            item = group[name]
            if isinstance(item, h5py.Group):
                collect(item, f"{prefix}{name}/", depth + 1)
            elif (
                isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not item.is_virtual and not item.external
            ):
                if item.nbytes + sum(array.nbytes for array in arrays.values()) > limit:
                    raise UserError(f"The weights file {path} declares more than 1 GiB of arrays, so it is no VGG16.")
                arrays[f"{prefix}{name}"] = item[()]

    with file_errors("read the weights file", path), open(path, "rb") as stream:
        signature = stream.read(len(_HDF5_SIGNATURE))
        if signature != _HDF5_SIGNATURE:
            raise UserError(
                f"The weights file {path} is not HDF5: it begins with {signature!r}. "
                f"Give a Keras weights file of VGG16 (.h5), with or without its classifier."
            )
        try:
            with h5py.File(stream, "r") as file:
                collect(file, "", 0)
        except (OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:
            raise UserError(
                f"The weights file {path} is damaged: HDF5 says {error}. Copy or download it again."
            ) from error
    return arrays

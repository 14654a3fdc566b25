"""The feature cache: one HDF5 file, built from parts that survive a crash, verified when it is read.

Layout of a finished file (any HDF5 tool reads it)::

    bytes 0 to 511                     a text line: format version, sha256 of all bytes from 512 on
    /                                  attributes: spec (JSON), key, format_version, created,
                                       images_per_second, versions (JSON), provenance (JSON)
    /class_names                       (classes,) fixed-length UTF-8
    /{train,test}/labels               (n,) uint8 or int64
    /{train,test}/<tap>                (n, columns of the tap) float16
                                       every data set: contiguous, with attribute sha256 of its bytes

and, where the rows are images of one's own (a folder, or arrays)::

    /{train,test}/names                (n,) fixed-length text: each row's file, as the bytes of its name
    /{train,test}/digests              (n, 32) uint8: sha256 of each row's image
    /skipped/files, /skipped/reasons   (m,) fixed-length text: what was not used, and why

The line in front is an HDF5 user block, which HDF5 tools skip. It is what makes every single byte of the
file verifiable *before* the HDF5 library parses it.

Neither libhdf5 nor a crash in the middle of its writes can spoil a file: the library only lays out metadata
in memory, and all bytes reach the disk through `common.atomic`. How a cache is built is in `features.parts`.
"""

from __future__ import annotations

import hashlib
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

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.data.dataset import Members, Skipped
from pipeline.features import checksum
from pipeline.features.checksum import HEADER_SIZE
from pipeline.features.layout import SparseMemory
from pipeline.features.spec import FORMAT_VERSION, FeatureSpec
from pipeline.network.taps import TAP_COLUMNS

CacheError = checksum.CacheError
refuse = checksum.refuse
peek_spec = checksum.peek_spec

SPLITS = ("train", "test")
FEATURE_DTYPE = np.dtype("<f2")
LABEL_DTYPES = (np.dtype("u1"), np.dtype("<i8"))
DIGEST_DTYPE, DIGEST_SIZE = np.dtype("u1"), 32  # of one image: the bytes of a sha256
SKIPPED = ("files", "reasons")
PROVENANCE = ("dataset_source", "official", "weights", "weights_source")  # what every file says of its origin

_BLOCK = 4096  # rows that are read together at most
_LIBVER = ("v110", "v110")  # metadata with checksums, and the same layout whichever HDF5 comes next


# --- writing one file -------------------------------------------------------------------------


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
    if any("\0" in name for name in names):
        raise UserError("A class name must not hold the character U+0000, which HDF5 text ends at. Rename the class.")
    return encode_texts([name.encode("utf-8") for name in names])


def encode_texts(texts: Sequence[bytes]) -> NDArray[Any]:
    """Texts without U+0000 as fixed-length text. File names need not be UTF-8: their bytes are kept as they are."""
    return np.array(texts, dtype=h5py.string_dtype("utf-8", max([len(text) for text in texts] + [1])))


def array_digest(array: NDArray[Any]) -> str:
    """sha256, in hex, of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").hexdigest()


def _lay_out(attributes: Mapping[str, Any], plan: Sequence[Planned]) -> tuple[SparseMemory, dict[str, int]]:
    """Build a file's metadata in memory; return it and the byte offset of each data set."""
    memory = SparseMemory()
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
            atomic.write(self._descriptor, data.view(np.uint8).data, self._offsets[name] + start * data[0].nbytes)


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
        atomic.reserve(descriptor, memory.size)
        for page, content in sorted(memory.pages.items()):
            start = page * memory.PAGE
            atomic.write(descriptor, bytes(content[: memory.size - start]), start)
        fill(Writer(descriptor, plan, offsets))
        atomic.truncate(descriptor, memory.size)
        atomic.write(descriptor, checksum.header(checksum.file_digest(descriptor)), 0)

    atomic.commit(target, write, temporary)


# --- reading one file -------------------------------------------------------------------------


@contextmanager
def verified(path: Path) -> Iterator[h5py.File]:
    """Open a file for reading after every byte of it has been verified.

    The verification, the parsing and the reading use one descriptor, so a file renamed over this one
    in between changes nothing.
    """
    with read_errors(path), path.open("rb") as stream:
        checksum.check_bytes(path, stream.fileno())
        with h5py.File(stream, "r") as file:
            yield file


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
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:  # whatever h5py makes of odd files
            if isinstance(error, OSError) and error.errno:
                raise
            raise refuse(path, f"HDF5 cannot read it ({error})") from error


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


def _json_attribute(path: Path, item: h5py.Group, name: str, fields: Sequence[str] = ()) -> dict[str, Any]:
    text = _text_attribute(path, item, name)
    try:
        value = json.loads(text)
    except ValueError as error:
        raise refuse(path, f"the attribute {name!r} is not JSON: {error}") from error
    if not isinstance(value, dict) or not value.keys() >= set(fields):
        raise refuse(path, f"the attribute {name!r} is no JSON object{' with ' * bool(fields)}{', '.join(fields)}")
    return value


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
    except (UserError, TypeError) as error:
        raise refuse(path, f"its spec is not valid ({error})") from error
    if _text_attribute(path, file, "key") != spec.key():
        raise refuse(path, "its key is not the key of its spec")
    if file.attrs.get("format_version") != FORMAT_VERSION or spec.format_version != FORMAT_VERSION:
        raise refuse(path, f"its format_version is {file.attrs.get('format_version')!r}; expected {FORMAT_VERSION}")
    return spec


# --- the finished cache -----------------------------------------------------------------------


@dataclass(frozen=True)
class Cache:
    """A verified feature file, open: a context manager. What it says of itself stays when it is closed.

    Its one descriptor was verified and is read, so nothing that is done to the name of the file matters to it.

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
    has_members : bool
        Whether the rows have names and digests of their own.
    skipped : tuple of Skipped
        What of the data set was not used, and why.
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
    has_members: bool
    skipped: tuple[Skipped, ...]
    _file: h5py.File = field(repr=False)
    close: Callable[[], None] = field(default=lambda: None, repr=False)

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def labels(self, split: str) -> NDArray[Any]:
        """Labels of a split, uint8 or int64 (n,), each within the class names.

        Raises
        ------
        CacheError
            Here and below: when an array does not have its recorded digest.
        """
        labels = self._proven(split, "labels")
        if labels.size and not 0 <= labels.min() <= labels.max() < len(self.class_names):
            raise refuse(self.path, f"a label of {split} is outside 0 to {len(self.class_names) - 1}")
        return labels

    def members(self, split: str) -> Members:
        """Who the rows of a split are: the name of each one's file, and the digest of its image."""
        if not self.has_members:
            raise CacheError(f"The rows of the feature file {self.path} have no names: its data set is no folder.")
        return Members(tuple(map(os.fsdecode, self._proven(split, "names"))), self._proven(split, "digests"))

    def features(
        self, split: str, taps: Sequence[str], *, progress: Callable[[int], object] = lambda count: None
    ) -> NDArray[np.float32]:
        """Features of a split, the taps side by side in the order given, float32 (n, columns of the taps together).

        ``progress`` is told the number of bytes read, after each tap.

        Raises
        ------
        CacheError
            Also when a tap is not in the file.
        """
        missing = [tap for tap in taps if tap not in self.spec.taps]
        if missing:
            raise CacheError(
                f"The feature file {self.path} has no tap {', '.join(missing)}; it holds {', '.join(self.spec.taps)}. "
                f"Choose among these, or run 'python -m pipeline features' with the taps wanted."
            )
        columns = [TAP_COLUMNS[tap] for tap in taps]
        result = np.empty((self.rows[split], sum(columns)), np.float32)
        start = 0
        for tap, width in zip(taps, columns, strict=True):
            # Cast while it is copied to its place: no second float32 array is ever made.
            values = self._proven(split, tap)
            result[:, start : start + width] = values
            start += width
            progress(values.nbytes)
        return result

    def some_features(self, split: str, tap: str, rows: NDArray[np.intp]) -> NDArray[np.float16]:
        """One tap's features of some rows, float16 (rows, columns), in their order."""
        result = np.empty((len(rows), TAP_COLUMNS[tap]), FEATURE_DTYPE)
        with read_errors(self.path):
            dataset = self._file[split][tap]
            # Block by block: HDF5 reads what lies together far faster than single rows.
            for block in np.unique(rows // _BLOCK):
                mine = rows // _BLOCK == block
                first, last = int(rows[mine].min()), int(rows[mine].max())
                result[mine] = dataset[first : last + 1][rows[mine] - first]
        return result

    def _proven(self, split: str, name: str) -> NDArray[Any]:
        with read_errors(self.path):
            return read_proven(self.path, self._file[split][name])


def open(path: Path, expected: FeatureSpec | None = None) -> Cache:  # noqa: A001 - as in store.open
    """Verify a feature file, every byte and its structure, and leave it open.

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
    with ExitStack() as stack:
        cache = describe(path, stack.enter_context(verified(path)))
        if expected is not None and not cache.spec.serves(expected):
            differences = "; ".join(expected.differences(cache.spec))
            raise refuse(
                path, f"it holds other features than asked for ('here' is asked, 'there' the file): {differences}"
            )
        return replace(cache, close=stack.pop_all().close)


def verify(path: Path, progress: Callable[[int], None] = lambda count: None) -> Cache:
    """Verify a feature file completely: every byte, the structure, and each data set's own digest; then close it.

    Raises
    ------
    CacheError
        At the first fault.
    """
    with open(path) as cache:
        for split in SPLITS:
            cache.labels(split)
            for name in _members_of_split(cache.spec, cache.has_members):
                progress(cache._proven(split, name).nbytes)
    return cache


def describe(path: Path, file: h5py.File) -> Cache:
    """Say what an open file holds, and refuse it where its structure is not a feature file's."""
    spec = _read_spec(path, file)
    has_members = "skipped" in file
    check_members(path, file, {"class_names", *SPLITS, *({"skipped"} if has_members else ())})
    rows: dict[str, int] = {}
    dtypes = set()
    for split in SPLITS:
        group = _group(path, file, split)
        check_members(path, group, set(_members_of_split(spec, has_members)))
        labels = array_dataset(path, group, "labels", (None,))
        expect_dtype(path, labels, LABEL_DTYPES)
        rows[split] = len(labels)
        dtypes.add(labels.dtype)
        for tap in spec.taps:
            features = array_dataset(path, group, tap, (rows[split], TAP_COLUMNS[tap]))
            expect_dtype(path, features, (FEATURE_DTYPE,))
        if has_members:
            _text_dataset(path, group, "names", rows[split])
            expect_dtype(path, array_dataset(path, group, "digests", (rows[split], DIGEST_SIZE)), (DIGEST_DTYPE,))
    if len(dtypes) != 1:
        raise refuse(path, "the labels of its splits have different types")
    names = _text_dataset(path, file, "class_names", None)
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
        provenance=_json_attribute(path, file, "provenance", PROVENANCE),
        size=file.id.get_filesize(),
        has_members=has_members,
        skipped=_read_skipped(path, file) if has_members else (),
        _file=file,
    )


def _members_of_split(spec: FeatureSpec, has_members: bool) -> tuple[str, ...]:
    return ("labels", *(("names", "digests") if has_members else ()), *spec.taps)


def _group(path: Path, file: h5py.File, name: str) -> h5py.Group:
    if not isinstance(file[name], h5py.Group):
        raise refuse(path, f"/{name} is an array, not a group")
    return file[name]


def _text_dataset(path: Path, parent: h5py.Group, name: str, rows: int | None) -> h5py.Dataset:
    dataset = array_dataset(path, parent, name, (rows,))
    if dataset.dtype.kind != "S":
        raise refuse(path, f"{dataset.name} has the type {dataset.dtype}; expected fixed-length text")
    return dataset


def _read_skipped(path: Path, file: h5py.File) -> tuple[Skipped, ...]:
    group = _group(path, file, "skipped")
    check_members(path, group, set(SKIPPED))
    count = len(_text_dataset(path, group, "files", None))
    columns = [read_proven(path, _text_dataset(path, group, name, count)) for name in SKIPPED]
    return tuple(
        Skipped.stored(os.fsdecode(file), reason.decode("utf-8", "replace"))
        for file, reason in zip(*columns, strict=True)
    )


def find_cache(folder: Path, asked: FeatureSpec) -> Path | None:
    """Path of a cache that serves ``asked``: its own file, else one with more taps."""
    own = folder / f"{asked.stem}.h5"
    if own.exists():
        return own
    for path in sorted(folder.glob(f"{asked.family}*.h5")):
        try:
            if peek_spec(path).serves(asked):
                return path
        except (CacheError, OSError):
            continue  # a file that cannot be read, of unknown content, is no reason not to look further
    return None

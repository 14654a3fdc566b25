"""The layout of a feature file, and how one is written.

A finished file (any HDF5 tool reads it)::

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
    /{train,test}/groups               (n,) fixed-length text: each row's group, where the rows have groups
    /skipped/files, /skipped/reasons   (m,) fixed-length text: what was not used, and why

and, where parts of it were computed on a cluster::

    /computed_on                       (parts,) fixed-length text: for each 1,024 rows of train, then of test, the
                                       machine and its processor; "" for what the attributes tell of

Neither libhdf5 nor a crash in the middle of its writes can spoil a file: the library only lays out metadata
in memory, and all bytes reach the disk through `pipeline.common.atomic`.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.errors import UserError
from pipeline.features import checksum

SPLITS = ("train", "test")
FEATURE_DTYPE = np.dtype("<f2")
LABEL_DTYPES = (np.dtype("u1"), np.dtype("<i8"))
DIGEST_DTYPE, DIGEST_SIZE = np.dtype("u1"), 32  # of one image: the bytes of a sha256
SKIPPED = ("files", "reasons")

_LIBVER = ("v110", "v110")  # metadata with checksums, and the same layout whichever HDF5 comes next

WriteRows = Callable[[str, int, NDArray[Any]], None]  # an array's name, its first row to write, the rows


@dataclass(frozen=True)
class ArrayLayout:
    """An array of a file to be: where, how large, and the sha256 that its bytes will have."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    sha256: str


def encode_texts(texts: Sequence[bytes]) -> NDArray[Any]:
    """Fixed-length text, which needs no object type and no heap in the file; raises UserError for U+0000 in it."""
    if any(b"\0" in text for text in texts):
        raise UserError("A class name must not hold the character U+0000, which HDF5 text ends at. Rename the class.")
    return np.array(texts, dtype=h5py.string_dtype("utf-8", max([len(text) for text in texts] + [1])))


def write_file(
    target: Path,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    streamed: Sequence[ArrayLayout] = (),
    fill: Callable[[WriteRows], None] = lambda write_rows: None,
    temporary: Path | None = None,
) -> None:
    """Write a complete file under a temporary name, with its checksum in front, and give it its name.

    Of the arrays that are ``streamed``, not in memory, ``fill`` writes all rows; ``temporary`` is as for
    `atomic.commit`.
    """
    layouts = {
        name: ArrayLayout(name, array.shape, array.dtype, checksum.array_digest(array))
        for name, array in arrays.items()
    }
    layouts |= {item.name: item for item in streamed}
    memory, offsets = _lay_out(attributes, layouts.values())

    def write(descriptor: int) -> None:
        def write_rows(name: str, start: int, array: NDArray[Any]) -> None:
            item = layouts[name]
            if array.dtype != item.dtype or array.shape[1:] != item.shape[1:] or start + len(array) > item.shape[0]:
                raise AssertionError(f"{name}: rows {start}+{array.shape} {array.dtype} do not fit {item}")
            if array.size:
                data = np.ascontiguousarray(array)
                atomic.write(descriptor, data.view(np.uint8).data, offsets[name] + start * data[0].nbytes)

        atomic.reserve(descriptor, memory.size)
        for page, content in sorted(memory.pages.items()):
            start = page * memory.PAGE
            atomic.write(descriptor, bytes(content[: memory.size - start]), start)
        for name, array in arrays.items():
            write_rows(name, 0, array)
        fill(write_rows)
        atomic.truncate(descriptor, memory.size)
        atomic.write(descriptor, checksum.header(checksum.file_digest(descriptor)), 0)

    atomic.commit(target, write, temporary)


def _lay_out(attributes: Mapping[str, Any], layouts: Iterable[ArrayLayout]) -> tuple[_SparseMemory, dict[str, int]]:
    """Build a file's metadata in memory; return it and the byte offset of each array that has bytes."""
    memory = _SparseMemory()
    offsets: dict[str, int] = {}
    with h5py.File(memory, "w", userblock_size=checksum.HEADER_SIZE, libver=_LIBVER) as file:
        file.attrs.update(attributes)
        creation = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        creation.set_layout(h5py.h5d.CONTIGUOUS)
        creation.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)  # so that the offset is known now
        creation.set_fill_time(h5py.h5d.FILL_TIME_NEVER)  # every byte will be written, none twice
        for item in layouts:
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


class _SparseMemory(io.RawIOBase):
    """A file in memory that stores only the pages written to, and is never read from.

    HDF5 lays out a whole file's metadata here without touching the disk and without room for the
    arrays, whose bytes never pass through it. What it has written it keeps itself until it closes the file.
    """

    PAGE = 4096

    def __init__(self) -> None:
        self.pages: dict[int, bytearray] = {}
        self.size = 0
        self._at = 0

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        while rest:
            page, begin = divmod(self._at, self.PAGE)
            count = min(len(rest), self.PAGE - begin)
            self.pages.setdefault(page, bytearray(self.PAGE))[begin : begin + count] = rest[:count]
            rest, self._at = rest[count:], self._at + count
        self.size = max(self.size, self._at)
        return memoryview(data).nbytes

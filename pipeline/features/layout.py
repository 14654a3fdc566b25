"""A file in memory with room for its metadata alone."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any


class SparseMemory(io.RawIOBase):
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
        """Reads are allowed."""
        return True

    def writable(self) -> bool:
        """So are writes."""
        return True

    def seekable(self) -> bool:
        """And jumps."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a byte offset."""
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size}[whence]
        return self._at

    def tell(self) -> int:
        """Give the byte offset of the next read or write."""
        return self._at

    def truncate(self, size: int | None = None) -> int:
        """Make the file end at ``size`` bytes."""
        self.size = self._at if size is None else size
        return self.size

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; what was never written is zero."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self.size - self._at))
        for start, page, begin, end in self._spans(count):
            view[start : start + end - begin] = self.pages.get(page, bytes(self.PAGE))[begin:end]
        self._at += count
        return count

    def write(self, data: Any) -> int:
        """Write all of ``data``."""
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

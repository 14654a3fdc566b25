"""Images that are decoded when they are asked for, and never all in memory; see `dataset.LazyImages`."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import printable
from pipeline.data import decode
from pipeline.data.dataset import Image, RowIds, Unusable
from pipeline.data.options import ImageOptions


class ImageFiles:
    """Images in files that are known by what they hold: one that changed since, or cannot be read, ends the run."""

    def __init__(self, paths: Sequence[Path], ids: RowIds) -> None:
        self._paths, self.ids = paths, ids

    @classmethod
    def identified(cls, paths: Sequence[Path]) -> ImageFiles:
        """Take files with the digests of their bytes."""
        digests = np.empty((len(paths), 32), np.uint8)
        for row, path in enumerate(paths):
            with file_errors("read the image", path), open(path, "rb") as stream:
                digests[row] = np.frombuffer(_sha256(stream), np.uint8)
        return cls(paths, RowIds(tuple(map(str, paths)), digests))

    def take(self, rows: NDArray[np.intp]) -> ImageFiles:
        """Some rows, in that order."""
        return ImageFiles([self._paths[row] for row in rows], self.ids.take(rows))

    def moved(self, move: Callable[[Path], Path]) -> ImageFiles:
        """The same images at other paths."""
        return ImageFiles([move(path) for path in self._paths], self.ids)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, row: int) -> Image:
        """Decode an image at its own size; raises UserError when it cannot be used."""
        try:
            return self.decode(row, None)
        except Unusable as error:
            raise UserError(f"The image {printable(str(self._paths[row]))} cannot be used: {error}.") from error

    def decode(self, row: int, how: ImageOptions | None) -> Image:
        """Decode an image as the network is to see it, or at its own size; raises Unusable."""
        path = self._paths[row]
        with file_errors("read the image", path), open(path, "rb") as stream:
            try:
                return decode.decode(stream, how)
            finally:  # only now, so that the bytes need not be in memory; what was made of others is dropped
                found, known = _sha256(stream).hex(), self.ids.digests[row].tobytes().hex()
                if found != known:
                    raise UserError(
                        f"The image {printable(str(path))} changed while it was being used: its sha256 was "
                        f"{known[:12]}… and is {found[:12]}… now. Run the same command again: what is finished of the "
                        f"other images is kept."
                    )


class FoundFiles:
    """Images in files of which nothing is known: one that cannot be read is one that cannot be used.

    While there is a ``thumbnail_side``, decoding a row leaves its picture in ``thumbnails``, of at most so many pixels
    a side: by the time when it is to be shown the file may have changed, or be gone.
    """

    def __init__(self, paths: Sequence[Path], thumbnail_side: int | None = None) -> None:
        self._paths, self.thumbnail_side = paths, thumbnail_side
        self.thumbnails: dict[int, Image] = {}

    def __len__(self) -> int:
        return len(self._paths)

    def decode(self, row: int, how: ImageOptions) -> Image:
        """Decode an image as the network is to see it; raises Unusable."""
        try:
            status = self._paths[row].stat()  # before it is opened: a pipe would keep us waiting
            if not stat.S_ISREG(status.st_mode):
                raise Unusable("not a file, but a device, a pipe or a socket")
            if status.st_size > decode.MAX_FILE_BYTES:
                raise Unusable(decode.too_many_bytes(status.st_size))
            with open(self._paths[row], "rb") as stream:
                pixels = decode.decode(stream, how)
                if self.thumbnail_side is not None:
                    self.thumbnails[row] = decode.thumbnail(stream, self.thumbnail_side)
                return pixels
        except OSError as error:
            raise Unusable(f"unreadable: {error.strerror}") from error


class ImageArrays:
    """Images in arrays, uint8 (h, w, 3), of any sizes."""

    def __init__(self, arrays: Sequence[Image] | NDArray[np.uint8], ids: RowIds) -> None:
        self._arrays, self.ids = arrays, ids

    @classmethod
    def identified(cls, arrays: Sequence[Image] | NDArray[np.uint8]) -> ImageArrays:
        """Take arrays with the digests of their shapes and bytes."""
        digests = np.empty((len(arrays), 32), np.uint8)
        for row, array in enumerate(arrays):
            digest = hashlib.sha256(f"array {array.shape} ".encode("ascii"))
            digest.update(np.ascontiguousarray(array).data)
            digests[row] = np.frombuffer(digest.digest(), np.uint8)
        return cls(arrays, RowIds(tuple(f"array {digest[:6].tobytes().hex()}" for digest in digests), digests))

    def take(self, rows: NDArray[np.intp]) -> ImageArrays:
        """Some rows, in that order."""
        return ImageArrays([self._arrays[row] for row in rows], self.ids.take(rows))

    def __len__(self) -> int:
        return len(self._arrays)

    def decode(self, row: int, how: ImageOptions) -> Image:
        """Give an image as the network is to see it."""
        return decode.resized_to_fit(self._arrays[row], how)


def _sha256(stream: IO[bytes]) -> bytes:
    stream.seek(0)
    return hashlib.file_digest(stream, "sha256").digest()  # type: ignore[arg-type]

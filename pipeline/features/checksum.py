"""The line in front of a feature file: what makes every byte of it verifiable before HDF5 parses it.

The first 512 bytes are an HDF5 user block, which HDF5 tools skip. They hold one line of text: the format
version, and the sha256 of all bytes that follow.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError
from pipeline.features.spec import FORMAT_VERSION

HEADER_SIZE = 512  # bytes; the smallest user block that HDF5 allows
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEADER = re.compile(rb"vgg16 feature file, format (\d+), sha256 of the bytes from 512 on: ([0-9a-f]{64})\n\0*")


class CacheError(UserError):
    """A feature file that must not be used; the message says which, why, and what to do, ``fault`` the first two."""

    def __init__(self, message: str, fault: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault or message


class Unfit(ValueError):
    """What is wrong with an open file; `store.read_errors`, which knows its path, makes it a `CacheError`."""


class Foreign(Unfit):
    """A file that does not begin as a feature file does: it may be anything, and somebody's."""


def unusable(path: Path, what: object) -> CacheError:
    """Give the error for a file that must not be used, because of ``what``."""
    fault = f"The feature file {path} cannot be used: {what}"
    if isinstance(what, Foreign):
        advice = (
            "Name a file that 'python -m pipeline features' wrote; if this was one, move it away and run that again."
        )
    else:
        advice = "Delete it and run 'python -m pipeline features' with the same options to compute it again."
    return CacheError(f"{fault}. It was not changed. {advice}", fault)


def header(digest: str) -> bytes:
    """Give the first bytes of a file whose others have this sha256, in hex."""
    line = f"vgg16 feature file, format {FORMAT_VERSION}, sha256 of the bytes from 512 on: {digest}\n"
    return line.encode("ascii").ljust(HEADER_SIZE, b"\0")


def array_digest(array: NDArray[Any]) -> str:
    """sha256, in hex, of an array's bytes in C order."""
    return hashlib.sha256(np.ascontiguousarray(array).view(np.uint8).data if array.size else b"").hexdigest()


def file_digest(descriptor: int) -> str:
    """sha256, in hex, of an open file's bytes after the header, read back from the file system."""
    with open(descriptor, "rb", buffering=0, closefd=False) as stream:
        stream.seek(HEADER_SIZE)
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_bytes(descriptor: int) -> None:
    """Raise `Unfit` unless every byte of an open file is as it was written."""
    head = os.pread(descriptor, HEADER_SIZE, 0)
    match = _HEADER.fullmatch(head)
    if match is None:
        if head.startswith(HDF5_SIGNATURE):
            raise Foreign("it is an HDF5 file, but not one that this program wrote, or it was edited since")
        raise Foreign(f"it is no feature file: it begins with {head[:24]!r}")
    if int(match[1]) != FORMAT_VERSION:
        raise Unfit(f"its format_version is {int(match[1])}; this program reads {FORMAT_VERSION}")
    found, expected = file_digest(descriptor), match[2].decode()
    if found != expected:
        raise Unfit(
            f"it was truncated, edited or damaged after it was written (sha256 expected {expected[:12]}…, "
            f"found {found[:12]}…)"
        )

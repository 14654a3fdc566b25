"""The line in front of a feature file: what makes every byte of it verifiable before HDF5 parses it.

The first 512 bytes are an HDF5 user block, which HDF5 tools skip. They hold one line of text: the format
version, and the sha256 of all bytes that follow.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

from pipeline.common import atomic
from pipeline.common.errors import UserError
from pipeline.features.spec import FORMAT_VERSION, FeatureSpec

HEADER_SIZE = 512  # bytes; the smallest user block that HDF5 allows
HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_FRONT = 1 << 16  # bytes at the beginning of a file, in which its attributes are
_HEADER = re.compile(rb"vgg16 feature file, format (\d+), sha256 of the bytes from 512 on: ([0-9a-f]{64})\n\0*")


class CacheError(UserError):
    """A feature file that must not be used; the message says which, why, and what to do, ``fault`` the first two."""

    def __init__(self, message: str, fault: str | None = None) -> None:
        super().__init__(message)
        self.fault = fault or message


def refuse(path: Path, what: str) -> CacheError:
    """Give the error for a file that must not be used, because of ``what``."""
    fault = f"The feature file {path} cannot be used: {what}"
    advice = "Delete it and run 'python -m pipeline features' with the same options to compute it again."
    return CacheError(f"{fault}. It was not changed. {advice}", fault)


def peek_spec(path: Path) -> FeatureSpec:
    """Read the spec that a file claims to have: enough to choose a file, never to trust one.

    Nothing is verified yet, so HDF5 is not let near it: one flipped bit can make it read for ever. The attributes
    come first in a file, as plain text, and the key tells whether the spec was read as it was written.

    Raises
    ------
    CacheError
        When not even that can be read.
    """
    with open(path, "rb") as stream:
        text = stream.read(_FRONT).decode("latin-1")
    start = text.find('{"dataset": ')
    try:
        spec = FeatureSpec.from_dict(json.JSONDecoder().raw_decode(text, max(start, 0))[0])
    except (ValueError, TypeError, RecursionError, UserError) as error:
        raise refuse(path, f"its spec cannot be read ({error})") from error
    if spec.key() not in text:
        raise refuse(path, "its key is not the key of its spec")
    return spec


def header(digest: str) -> bytes:
    """Give the first bytes of a file whose others have this sha256, in hex."""
    line = f"vgg16 feature file, format {FORMAT_VERSION}, sha256 of the bytes from 512 on: {digest}\n"
    return line.encode("ascii").ljust(HEADER_SIZE, b"\0")


def file_digest(descriptor: int) -> str:
    """sha256, in hex, of an open file's bytes after the header, read back from the file system."""
    digest, offset = hashlib.sha256(), HEADER_SIZE
    buffer = memoryview(bytearray(atomic.READ_SIZE))  # one for all reads: fresh memory costs more than hashing it
    while count := os.preadv(descriptor, [buffer], offset):
        digest.update(buffer[:count])
        offset += count
    return digest.hexdigest()


def check_bytes(path: Path, descriptor: int) -> None:
    """Refuse an open file unless every byte of it is as it was sealed.

    Raises
    ------
    CacheError
    """
    head = os.pread(descriptor, HEADER_SIZE, 0)
    match = _HEADER.fullmatch(head)
    if match is None:
        if head.startswith(HDF5_SIGNATURE):
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

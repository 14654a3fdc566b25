"""File operations that survive a crash: every write of the project that matters goes through here.

The recipe is the one every careful program uses: write to a temporary name on the same file system,
fsync the file, rename it over the final name, fsync the folder. The rename is atomic, so a reader
sees the old file or the new one; the two fsyncs keep the order write, rename across a power cut.

The primitives are plain functions of this module, looked up at each call, so that a test can stand
before and after every one of them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".tmp"
FILE_MODE = 0o666  # what open() itself asks for; the process's umask takes away from it


# --- primitives -------------------------------------------------------------------------------


def open_new(path: Path) -> int:
    """Create ``path``, empty, for reading and writing; return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)


def write(descriptor: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of ``data`` at ``offset`` bytes; a short write is continued, not taken for done."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def truncate(descriptor: int, size: int) -> None:
    """Make a file end at ``size`` bytes."""
    os.ftruncate(descriptor, size)


def fsync(descriptor: int) -> None:
    """Bring a file's bytes to the disk itself."""
    # On macOS fsync() stops at the drive's cache; F_FULLFSYNC goes through it.
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        with suppress(OSError):  # not every file system there knows it
            fcntl.fcntl(descriptor, full)
            return
    os.fsync(descriptor)


def rename(source: Path, target: Path) -> None:
    """Give ``source`` the name ``target`` in one step, replacing what was there."""
    os.replace(source, target)


def unlink(path: Path) -> None:
    """Remove a file; one that is already gone is no error."""
    path.unlink(missing_ok=True)


def sync_directory(path: Path) -> None:
    """Bring a folder's entries to the disk: without it a rename may be undone by a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def open_lock(path: Path) -> int:
    """Open a lock file, creating it when it is not there; return its descriptor."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)


def make_directory(path: Path) -> None:
    """Create a folder whose parent exists; one that exists is no error."""
    path.mkdir(exist_ok=True)


def remove_directory(path: Path) -> None:
    """Remove an empty folder."""
    path.rmdir()


def reserve(descriptor: int, size: int) -> None:
    """Claim ``size`` bytes of disk for a file, so that a full disk is found out at once.

    Where the file system cannot reserve, this does nothing: a later write then reports it.
    """
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is None or size == 0:
        return
    try:
        allocate(descriptor, 0, size)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise


# --- what is built from them ------------------------------------------------------------------


def temporary_path(target: Path) -> Path:
    """A name beside ``target`` for its unfinished bytes; a second writer has another one."""
    return target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY_SUFFIX}")


def write_atomically(target: Path, data: bytes) -> None:
    """Make ``target`` hold exactly ``data``, durably, or raise OSError and leave it as it was."""
    commit(target, lambda descriptor: write(descriptor, data, 0))


def commit(target: Path, fill: Callable[[int], None], temporary: Path | None = None) -> None:
    """Let ``fill`` write a temporary file through its descriptor, then make it ``target``.

    The temporary file lies beside ``target``, or at ``temporary`` on the same file system.
    """
    temporary = temporary or temporary_path(target)
    descriptor = open_new(temporary)
    try:
        try:
            fill(descriptor)
            fsync(descriptor)
        finally:
            os.close(descriptor)
        rename(temporary, target)
    except BaseException:
        with suppress(OSError):  # the first error is the one to report
            unlink(temporary)
        raise
    sync_directory(target.parent)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder in the block; at its end it becomes ``target``, complete.

    A folder of that name is replaced: moved aside first, removed after. When the block raises,
    the temporary folder goes and ``target`` is as it was.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(target)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process of the same number, long dead
    try:
        temporary.mkdir()
        yield temporary
        aside = None
        if target.exists():
            aside = temporary.with_suffix(".old")
            rename(target, aside)
        rename(temporary, target)
        sync_directory(target.parent)
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def make_folder(path: Path) -> None:
    """Create a folder and its parents, durably; one that exists is left alone."""
    if path.is_dir():
        return
    make_folder(path.parent)
    make_directory(path)
    sync_directory(path.parent)


def remove_folder(path: Path) -> None:
    """Remove a flat folder, file by file; what is already gone is no error."""
    if not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        unlink(entry)
    remove_directory(path)
    sync_directory(path.parent)


@contextmanager
def lock(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold an exclusive lock on ``path`` for the block.

    The lock is the kernel's (flock), so it ends with the process that holds it, however that
    process ends: a file left behind by a dead one locks nothing. When another process holds it,
    ``waiting`` is told who, and this call waits.
    """
    while True:
        descriptor = open_lock(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
                waiting(holder or "another process")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink == 0:
                continue  # its last holder removed it between our open and our lock
            with suppress(OSError):  # a full disk must not keep anyone from locking; the name is a courtesy
                os.ftruncate(descriptor, 0)
                os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
            try:
                yield
            finally:
                # Removed while still held: whoever opened it meanwhile sees that it is gone.
                with suppress(OSError):  # one left behind locks nothing, and the next run removes it
                    unlink(path)
            return
        finally:
            os.close(descriptor)

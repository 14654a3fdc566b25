"""The errors a person can act on, and how a failed file operation becomes one."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class UserError(ValueError):
    """Something the user can correct: one paragraph, exit status 2, no traceback.

    The message says what is wrong, where, what was expected and what was found, and what to do.
    Everything else that is raised is a bug and keeps its traceback. To Python it is a ValueError, as those who call a
    library expect.
    """


class Interrupted(KeyboardInterrupt):
    """A run stopped by SIGINT or SIGTERM; the message says what is kept and how to go on."""


_REMEDY = {
    errno.ENOSPC: "Free some space, or choose another folder, and run the same command again",
    errno.EDQUOT: "Free some of your quota, or choose another folder, and run the same command again",
    errno.EFBIG: "Raise the file size limit, or choose another folder, and run the same command again",
    errno.EACCES: "Give yourself permission, or choose another folder",
    errno.EPERM: "Give yourself permission, or choose another folder",
    errno.EROFS: "The file system is read-only: choose another folder",
    errno.ENOTDIR: "A part of that path is a file: remove it, or choose another folder",
    errno.EEXIST: "Something else has that name: remove it, or choose another folder",
    errno.ENOENT: "Check the path",
    errno.EISDIR: "A folder has that name: remove it, or choose another path",
    errno.EIO: "The disk reports a fault: check it, or choose another folder, and run the same command again",
}


@contextmanager
def file_errors(doing: str, where: Path, kept: str = "") -> Iterator[None]:
    """Turn an OSError of the block into a UserError.

    Parameters
    ----------
    doing : str
        What was attempted, to follow "Could not", for example "write the features".
    where : Path
        The file or folder concerned; the error's own file name is preferred where it has one.
    kept : str
        What the failure left intact, as a sentence; "" where there was nothing to lose.
    """
    try:
        yield
    except OSError as error:
        path = error.filename if isinstance(error.filename, (str, bytes)) else where
        path = path.decode(errors="replace") if isinstance(path, bytes) else path
        reason = error.strerror or str(error)
        remedy = _REMEDY.get(error.errno or 0, "Correct that, and run the same command again")
        message = f"Could not {doing}: {path}: {reason}. {remedy}."
        raise UserError(f"{message} {kept}".rstrip()) from error

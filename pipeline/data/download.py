"""Fetch a published file: under a temporary name, its hash checked, then renamed."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import Progress, format_bytes

log = logging.getLogger("pipeline")


def download(what: str, url: str, target: Path, known_hash: str, *, size: int, advice: str) -> None:
    """Download a file; what it is, its size in bytes, and what to do instead are for people.

    Raises UserError when it cannot be had, or has another hash; nothing is kept then.
    """
    import pooch  # late, both: only a first run on a fresh machine needs them
    import requests

    host, name = urlsplit(url).netloc, url.rpartition("/")[-1]  # of a whole address, lines would be too long
    what_from_where = f"{name} ({format_bytes(size)}) from {host} to {target.parent}"
    log.info("%s: not on this machine, downloading %s", what, what_from_where)
    pooch.get_logger().setLevel(logging.WARNING)
    with file_errors(f"store {what}", target.parent), Progress(what, size, "B", scale=True) as progress:
        target.parent.mkdir(parents=True, exist_ok=True)
        fetch = pooch.HTTPDownloader(progressbar=progress, chunk_size=1 << 16, timeout=30)
        try:
            pooch.retrieve(url, known_hash, target.name, target.parent, downloader=fetch)
        except requests.RequestException as error:
            reason: BaseException = error
            while reason.__context__ is not None:
                reason = reason.__context__
            said = str(reason).rstrip(".")
            if isinstance(reason, socket.gaierror):
                said = "that host is not found: this machine has no connection, or no name service"
            raise UserError(f"{what} could not be downloaded from {host}: {said}. {advice}") from error
        except ValueError as error:  # pooch's word for another hash
            raise UserError(f"{name} from {host} is not the official file: {error}. {advice}") from error

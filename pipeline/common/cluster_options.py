"""Where a cluster is, as on the command line: checked before anything is done, and without loading Dask."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pipeline.common.errors import UserError
from pipeline.common.options import Options, option

LOCAL = "local:"
INSTALL = 'pip install "vgg16-features[cluster]"'
_FORMS = "local:N (N worker processes on this machine), an address as in tcp://HOST:8786, or a scheduler file"


@dataclass(frozen=True, kw_only=True)
class ClusterOptions(Options):
    """Where else than in this process to compute; it changes how long that takes, never what is asked for."""

    cluster: str | None = option(
        None,
        "compute on a Dask cluster: local:N for N processes here, tcp://HOST:8786, tls://…, or a scheduler file",
        metavar="WHERE",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cluster is not None:
            address_of(self.cluster)
            if find_spec("distributed") is None:
                raise UserError(
                    f"The cluster parameter needs Dask, which is not installed. Install it with '{INSTALL}', "
                    f"or in a checkout with '.venv/bin/python -m pip install -r requirements-cluster.txt' (make "
                    f"CLUSTER=… does so by itself), or leave --cluster out."
                )


def address_of(where: str) -> str:
    """Address of the scheduler, or ``local:N``; raises UserError for what is neither, nor a scheduler file."""
    if where.startswith(LOCAL):
        if not re.fullmatch(r"[1-9][0-9]{0,3}", where.removeprefix(LOCAL)):
            raise UserError(
                f"The cluster parameter must be {_FORMS}. Got {where!r}: N must be a whole number between 1 and 9999."
            )
        return where
    if "://" in where:
        if not re.fullmatch(r"[a-z]+://[^\s/]+:[0-9]+/?", where):
            raise UserError(f"The cluster parameter must be {_FORMS}. Got {where!r}, which is no address with a port.")
        return where
    path = Path(where).expanduser()
    try:
        address = json.loads(path.read_bytes())["address"]
    except OSError as error:
        raise UserError(
            f"The cluster parameter must be {_FORMS}. Got {where!r}, a file that cannot be read ({error.strerror}). "
            f"'python -m dask scheduler --scheduler-file {where}' writes it."
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"The scheduler file {where} must be JSON with an address, as 'python -m dask scheduler --scheduler-file "
            f"{where}' writes it. Found something else ({type(error).__name__}: {error}). Start the scheduler again."
        ) from error
    return str(address)

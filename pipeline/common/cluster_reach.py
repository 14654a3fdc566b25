"""Reach a Dask cluster, or start one on this machine; and leave none of its words on the terminal."""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Nanny, Scheduler, Security, SpecCluster

from pipeline.common.cluster_options import LOCAL, address_of
from pipeline.common.errors import UserError

log = logging.getLogger("pipeline")

CONNECT = 10.0  # seconds in which a scheduler must take a connection, at first and after one that broke
_SETTINGS = {
    # A part's images, or the weights, may be larger than Dask thinks wise for a task; how many there are is bounded.
    "distributed.admin.large-graph-warning-threshold": "10GB",
    "distributed.comm.timeouts.connect": f"{CONNECT}s",
    "distributed.worker.multiprocessing-method": "spawn",
}
GPUS = Path("/proc/driver/nvidia/gpus")


@contextmanager
def connected(where: str, threads_of_each: int | None) -> Iterator[Client]:
    """Reach a cluster, as ``--cluster`` has it, or start one for the block.

    Each process of ``local:N`` has so many threads, or its share of the cores. Raises UserError when no scheduler
    answers there.
    """
    address = address_of(where)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        stack.enter_context(dask.config.set(_SETTINGS))
        target: Any = address
        if address.startswith("tls:"):
            _check_certificates(address)
        if address.startswith(LOCAL):
            target = stack.enter_context(_local(int(address.removeprefix(LOCAL)), threads_of_each))
        # Results come straight from the processes here; elsewhere a worker may be reached by the scheduler alone.
        straight = True if address.startswith(LOCAL) else None
        try:
            client = stack.enter_context(
                Client(target, timeout=CONNECT, set_as_default=False, direct_to_workers=straight)
            )
        except (OSError, ValueError, ImportError, RuntimeError) as error:
            raise UserError(
                f"No Dask scheduler answered at {address} within {CONNECT:.0f} s ({error}). Start one with 'python -m "
                f"dask scheduler --host HOST', correct --cluster, or leave it out to compute here."
            ) from error
        log.info("cluster %s: dashboard %s", where, client.dashboard_link)
        with client.as_current():  # for `wait`; a client of the user's own stays the default one
            yield client


def _check_certificates(address: str) -> None:
    """Raise UserError when Dask's configuration has no certificates for this side, or they cannot be read."""
    try:
        security = Security()
        found = security.get_connection_args("client")["ssl_context"]
        reason = "It has no ca-file or no client.cert"
    except (OSError, ValueError) as error:
        named = [path for path in (security.tls_ca_file, security.tls_client_cert, security.tls_client_key) if path]
        found, reason = None, f"Of {', '.join(named)}: {error}"
    if found is None:
        raise UserError(
            f"For {address} the certificates of this side must be in Dask's configuration, under "
            f"distributed.comm.tls, or in the environment: DASK_DISTRIBUTED__COMM__TLS__CA_FILE, …__CLIENT__CERT and "
            f"…__CLIENT__KEY, each the path of a PEM file. {reason}."
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave it to this module to say what has become of scheduler and workers.

    What an interrupt leaves unfinished the event loop reports when it is collected, so that is done in the block.
    """
    loggers = [logging.getLogger(name) for name in ("distributed", "tornado", "asyncio", "concurrent.futures")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        gc.collect()
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _local(count: int, threads_of_each: int | None) -> SpecCluster:
    """Start processes on this machine, which this address alone reaches.

    They are spawned, never forked, which TensorFlow would not survive. Dask would give each one thread by the
    environment, and kill it at 95 % of its share of the memory, of which TensorFlow takes more than it uses.
    """
    each = threads_of_each or max(1, _cores() // count)
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(each))
    quiet = {"host": "127.0.0.1", "silence_logs": logging.CRITICAL}
    worker = {**quiet, "nthreads": each, "memory_limit": None, "dashboard": False}
    # A terminal tells all processes of an interrupt. Those are started by threads that begin here, and block it as
    # these do; what came meanwhile comes to this process afterwards. The tracker is there before, as it lets go of it.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return SpecCluster(
            workers={
                number: {"cls": Nanny, "options": {**worker, "env": {**environment, **_pinned(number)}}}
                for number in range(count)
            },
            scheduler={
                "cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, "dashboard_address": "127.0.0.1:0"}
            },
            silence_logs=logging.CRITICAL,
        )  # fmt: skip
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _pinned(number: int) -> dict[str, str]:
    """What keeps a process to one of several GPUs, each to the next: TensorFlow would take the memory of all."""
    gpus = len(list(GPUS.iterdir())) if GPUS.is_dir() and "CUDA_VISIBLE_DEVICES" not in os.environ else 0
    return {"CUDA_VISIBLE_DEVICES": str(number % gpus)} if gpus > 1 else {}


def _cores() -> int:
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1

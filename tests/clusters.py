"""Real ``dask scheduler`` and ``dask worker`` processes on this machine, and workers with something wrong.

Unless it is to run VGG16, a worker computes by the cheap function of `faults`, and so begins in a second.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
TTL = 5  # seconds without a heartbeat after which the scheduler of these tests gives a worker up
SLOW = 0.1  # seconds that the cheap function takes for a batch, so that there is time to disturb it
PATH = {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
CHEAP = {**PATH, "DASK_DISTRIBUTED__WORKER__PRELOAD": "clusters", "PIPELINE_FAULT": ""}  # of any process with workers


def until(condition: Callable[[], object], seconds: float = 120) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not come true")
        time.sleep(0.05)


def kept(features: Path) -> int:
    """How many parts of a cache are there."""
    return len(list(features.glob("*.parts/t*.h5")))


class Cluster:
    """A scheduler, and the workers that were started for it."""

    def __init__(self, folder: Path, certificate: Path | None = None) -> None:
        self.folder, self.file = folder, folder / "scheduler.json"
        self._tls: list[str] = []
        if certificate is not None:  # which holds its key, too, and is the authority for itself
            self._tls = [f"--tls-{name}={certificate}" for name in ("ca-file", "cert", "key")]
        self.workers: list[subprocess.Popen[bytes]] = []
        self.scheduler = self._start(
            "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0",
            "--scheduler-file", str(self.file), *self._tls, *(["--protocol", "tls"] if certificate else ()),
            DASK_DISTRIBUTED__SCHEDULER__WORKER_TTL=f"{TTL}s",
        )  # fmt: skip
        until(lambda: self.file.exists() and self.file.read_text(encoding="utf-8").rstrip().endswith("}"))
        self.address = json.loads(self.file.read_bytes())["address"]

    def _start(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        log = (self.folder / f"{time.monotonic_ns()}.log").open("wb")
        with log:
            return subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                env={**os.environ, **PATH, **env}, stdout=log, stderr=log, cwd=self.folder,
                start_new_session=True,
            )  # fmt: skip

    def start_worker(self, fault: str = "", *, real: bool = False, threads: int = 1) -> subprocess.Popen[bytes]:
        """Start a worker, of VGG16 if it is a real one; one with a fault is made so by `dask_setup`."""
        worker = self._start(
            "worker", self.address, "--nthreads", str(threads), "--memory-limit", "0", "--no-dashboard",
            "--local-directory", str(self.folder), *self._tls, **({} if real else {**CHEAP, "PIPELINE_FAULT": fault}),
        )  # fmt: skip
        self.workers.append(worker)
        return worker

    def have(self, workers: int, *, real: bool = False) -> None:
        """Start workers until there are so many."""
        while len(self.workers) < workers:
            self.start_worker(real=real)

    def pids(self) -> list[int]:
        """Processes that compute: each is the child of a nanny, which starts another when it dies."""
        found = []
        for nanny in self.workers:
            for child in psutil.Process(nanny.pid).children() if nanny.poll() is None else ():
                with suppress(psutil.Error):  # it was killed just now
                    found += [child.pid] if "spawn_main" in " ".join(child.cmdline()) else []
        return found

    def kill_at_random(self, kills: int, ended: threading.Event, features: Path) -> int:
        """SIGKILL one process at a time while they compute, until there were so many kills or the run has ended.

        Each time at a random moment after a part has come to the folder of ``features`` since the kill before.
        """
        killed = seen = 0
        while killed < kills and not ended.wait(0.02):
            if kept(features) > seen and not ended.wait(random.uniform(0, 0.5)) and (pids := self.pids()):
                os.kill(random.choice(pids), signal.SIGKILL)
                killed, seen = killed + 1, kept(features)
        return killed

    def stop(self, *processes: subprocess.Popen[bytes]) -> None:
        """Kill some of the cluster's processes, each with its children."""
        for process in processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.workers = [worker for worker in self.workers if worker.poll() is None]


@contextmanager
def started(folder: Path, certificate: Path | None = None) -> Iterator[Cluster]:
    """A scheduler without workers, for the block; with TLS if there is a certificate."""
    cluster = Cluster(folder, certificate)
    try:
        yield cluster
    finally:
        cluster.stop(*cluster.workers, cluster.scheduler)


# --- on a worker, as a preload of it ---------------------------------------------------------------


def dask_setup(worker: object) -> None:
    """Let a worker compute by the cheap function; and make it one that cannot be trusted, if it is to be."""
    import faults

    import pipeline
    from pipeline.common import cluster
    from pipeline.features import on_workers
    from pipeline.network import compile as compiling
    from pipeline.network import device

    def make(layers: object, taps: tuple[str, ...], **others: object) -> object:
        network = faults.cheap_network(taps)
        return lambda images: (time.sleep(SLOW), network(images))[1]

    compiling.make_extractor = make
    fault = os.environ["PIPELINE_FAULT"]
    seal = cluster.seal
    if fault == "version":
        pipeline.__version__ = "0.1.0"
    elif fault == "bit":

        def flipped(value: object) -> cluster.Sealed:
            content, digest = seal(value)
            damaged = bytearray(content)
            damaged[len(damaged) // 2] ^= 1
            return cluster.Sealed(bytes(damaged), digest)

        cluster.seal = flipped
    elif fault == "weights":
        prepare = on_workers.prepare

        def without(setup: on_workers.Setup) -> object:
            kernel = setup.layers["block1_conv1"][0]
            kernel[0, 0, 0, 0] += 1
            return prepare(setup)

        on_workers.prepare = without
    elif fault == "no features":
        from pipeline.features import store

        store.open_all = lambda paths, spec: store.open(paths[0].with_name("absent.h5"))
    elif fault == "precision":
        device.has_bfloat16 = lambda: False
    elif fault.startswith("gate="):  # it computes when it is told to; and forgets once, as a new process there would
        compute, gate, forgotten = on_workers.compute, Path(fault.partition("=")[2]), []

        def gated(*arguments: object) -> object:
            until(gate.exists)
            if not forgotten:
                forgotten.append(cluster._prepared.popitem())
            return compute(*arguments)

        on_workers.compute = gated
    elif fault.startswith("images="):
        other = Path(fault.partition("=")[2])
        on_workers._here = lambda images, folder: images.moved(lambda path: other / path.relative_to(folder))

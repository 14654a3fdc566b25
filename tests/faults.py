"""Stand before and after every file operation of stage one, and let something happen there.

The points are numbered in the order in which a run reaches them. Runs are real processes: forked, so that
hundreds of them fit into a test, and with VGG16 replaced by a cheap deterministic function; `torture.py`
and the tests of random kills run the real network instead.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pictures

from pipeline import cli
from pipeline.common import atomic, bar
from pipeline.data import digits
from pipeline.features import extract, layout, parts, store
from pipeline.network import compile as compiling
from pipeline.network import weights
from pipeline.network.taps import TAP_COLUMNS

PRIMITIVES = (
    "open_lock", "open_new", "reserve", "write", "truncate", "fsync", "rename", "unlink", "sync_directory",
    "make_directory", "remove_directory",
)  # fmt: skip
ROWS = 10  # of each split
PART_ROWS = 6  # small, so that a few images make several parts
TAPS = ("block1_conv1.avg", "block2_conv1.avg")

Act = Callable[[int], None]


@dataclass
class Outcome:
    """How a child process ended: its exit status, or minus the signal that ended it, and what it said."""

    status: int
    said: str

    @property
    def is_user_error(self) -> bool:
        """Status 2, one paragraph, no traceback."""
        errors = [line for line in self.said.splitlines() if line.startswith("error: ")]
        return self.status == 2 and len(errors) == 1 and "Traceback" not in self.said


def in_child(work: Callable[[], int]) -> Outcome:
    """Do some work in a forked process and wait for its end."""
    with tempfile.TemporaryFile() as spool:
        child = start_child(work, spool.fileno())
        _, status = os.waitpid(child, 0)
        spool.seek(0)
        return Outcome(os.waitstatus_to_exitcode(status), spool.read().decode("utf-8", "replace"))


def in_children(works: list[Callable[[], int]]) -> list[Outcome]:
    """Do several works in forked processes at the same time, and wait for the end of all."""
    spools = [tempfile.TemporaryFile() for _ in works]  # noqa: SIM115 - all are open at once, closed below
    children = [start_child(work, spool.fileno()) for work, spool in zip(works, spools, strict=True)]
    outcomes = []
    for child, spool in zip(children, spools, strict=True):
        _, status = os.waitpid(child, 0)
        with spool:
            spool.seek(0)
            outcomes.append(Outcome(os.waitstatus_to_exitcode(status), spool.read().decode("utf-8", "replace")))
    return outcomes


def start_child(work: Callable[[], int], output: int) -> int:
    """Start some work in a forked process, its output going to a descriptor; return the process number."""
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout = os.fdopen(1, "w", closefd=False)
        sys.stderr = os.fdopen(2, "w", errors="backslashreplace", closefd=False)  # as Python has it
        cli.log.handlers.clear()
        bar.Bar.set_lock(threading.RLock())  # tqdm's is shared with processes that are killed, one of which may hold it
        status = work()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


class Points:
    """Numbers the moments before and after every primitive, and acts at each."""

    def __init__(self, act: Act) -> None:
        self.count = 0
        self.trace: list[tuple[str, str]] = []
        self._act = act

    def reach(self) -> None:
        """Count one more point, and act."""
        self.count += 1
        self._act(self.count)

    def wrap(self, name: str, primitive: Callable[..., Any]) -> Callable[..., Any]:
        """Put a point before and one after a primitive."""

        def wrapped(*arguments: Any) -> Any:
            self.reach()
            result = primitive(*arguments)
            where = next((item.name for item in reversed(arguments) if isinstance(item, Path)), "")
            self.trace.append((name, where))
            self.reach()
            return result

        return wrapped


# Loaded once, for all children.
random_weights = cache(weights.random_weights)
_digits = cache(partial(digits.load_digits, Path(), download=False))


def cheap_network(taps: tuple[str, ...]) -> Callable[[list[np.ndarray]], dict[str, np.ndarray]]:
    """Stand-in for VGG16: every column depends on every pixel."""

    def forward(images: list[np.ndarray]) -> dict[str, np.ndarray]:
        level = np.stack(images).reshape(len(images), -1).astype(np.float64)
        mixed = level @ np.cos(np.arange(level.shape[1])) / 1000
        return {tap: np.sin(mixed[:, None] * (1 + np.arange(TAP_COLUMNS[tap]))).astype(np.float16) for tap in taps}

    return forward


def install(act: Act, delay: Callable[[], None] = lambda: None) -> Points:
    """Put the points into this process, and the cheap network in place of the real one."""
    points = Points(act)
    for name in PRIMITIVES:
        setattr(atomic, name, points.wrap(name, getattr(atomic, name)))

    def make(layers: object, taps: tuple[str, ...], **others: object) -> Any:
        delay()
        return cheap_network(taps)

    weights.random_weights = random_weights
    digits.load_digits = lambda *_, **__: _digits()
    compiling.make_extractor = make
    parts.PART_ROWS = PART_ROWS
    return points


def arguments(folder: Path, images: Path | None = None) -> list[str]:
    """A small stage one, on the digits or on a folder of images."""
    data = ["--dataset", "digits", "--limit", str(ROWS)] if images is None else ["--dataset", str(images)]
    return [
        "features", *data, "--weights", "random", "--precision", "float32", "--image-size", "32",
        "--batch-size", "6", "--taps", ",".join(TAPS), "--features-dir", str(folder),
    ]  # fmt: skip


def run(
    folder: Path,
    act: Act = lambda number: None,
    delay: Callable[[], None] = lambda: None,
    images: Path | None = None,
) -> Outcome:
    """Stage one in a child process, with something happening at its points."""
    return in_child(work_of(folder, act, delay, images))


def work_of(
    folder: Path,
    act: Act = lambda number: None,
    delay: Callable[[], None] = lambda: None,
    images: Path | None = None,
) -> Callable[[], int]:
    """Stage one as a work for a child process, with something happening at its points."""
    random_weights()
    _digits()

    def work() -> int:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        install(act, delay)
        return cli.main(arguments(folder, images))

    return work


def together(folder: Path) -> list[Outcome]:
    """Two runs on one cache, started at the same time; the one that computes takes long enough to be met."""
    return in_children([work_of(folder, delay=lambda: time.sleep(0.05))] * 2)


def holder_killed(folder: Path) -> tuple[int, Outcome]:
    """Kill a run that holds the lock while another waits: the first one's process number, the other's outcome."""
    with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
        holder = start_child(work_of(folder, delay=lambda: time.sleep(60)), one.fileno())
        while not list(folder.glob("*.parts")):
            time.sleep(0.01)
        waiter = start_child(work_of(folder), two.fileno())
        time.sleep(0.6)
        waits = os.waitpid(waiter, os.WNOHANG) == (0, 0)
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        if not waits:
            raise AssertionError("the second run did not wait for the first")
        status = os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1])
        two.seek(0)
        return holder, Outcome(status, two.read().decode("utf-8", "replace"))


class SmallFileSystem:
    """A file system of 256 KiB on which only so much is left as is asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ballast = folder, folder / "ballast"

    def leave(self, room: int) -> None:
        """Fill the file system up to so many free bytes."""
        self.leave_all()
        usage = os.statvfs(self._folder)
        self._ballast.write_bytes(bytes(max(0, usage.f_bavail * usage.f_frsize - room)))

    def leave_all(self) -> None:
        """Make room."""
        self._ballast.unlink(missing_ok=True)


@contextmanager
def small_file_system(folder: Path) -> Iterator[SmallFileSystem | None]:
    """Mount a small file system on a folder for the block; None where this process must not."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield SmallFileSystem(folder)
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def run_unchecked(folder: Path) -> Outcome:
    """Stage one without its look at the free space beforehand, so that it is the file system that refuses."""
    work = work_of(folder)

    def unchecked() -> int:
        extract._check_space = lambda build: None
        return work()

    return in_child(unchecked)


def trace(folder: Path, images: Path | None = None) -> list[tuple[str, str]]:
    """All operations of an undisturbed stage one: name, and the file concerned."""
    with tempfile.NamedTemporaryFile() as notes:

        def work() -> int:
            points = install(lambda number: None)
            status = cli.main(arguments(folder, images))
            Path(notes.name).write_text("".join(f"{name}\t{path}\n" for name, path in points.trace), encoding="utf-8")
            return status

        outcome = in_child(work)
        if outcome.status:
            raise AssertionError(outcome.said)
        lines = Path(notes.name).read_text(encoding="utf-8").splitlines()
    return [(name, path) for name, _, path in (line.partition("\t") for line in lines)]


def kill_at(number: int, what: signal.Signals = signal.SIGKILL) -> Act:
    """SIGKILL, or another signal, at a point."""

    def act(reached: int) -> None:
        if reached == number:
            os.kill(os.getpid(), what)

    return act


def raise_at(number: int, code: int) -> Act:
    """An OSError at a point."""

    def act(reached: int) -> None:
        if reached == number:
            raise OSError(code, os.strerror(code))

    return act


ERRORS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO}


def grown_folder(folder: Path) -> tuple[Path, Path]:
    """A folder of images, some of them faulty, and a cache of it from before it grew."""
    images = folder / "insects"
    pictures.fill(images, count=6)
    (images / "ant" / "bad.png").write_bytes(pictures.FAULTS["truncated.png"][0](1))
    outcome = run(folder / "before", images=images)
    if outcome.status:
        raise AssertionError(outcome.said)
    (before,) = (folder / "before").glob("*.h5")
    pictures.fill(images, classes=("bee",), count=9, seed=1000)
    (images / "bee" / "notes.txt").write_bytes(b"Not an image.")
    return images, before


def arrays(folder: Path, before: Path | None = None) -> dict[str, np.ndarray]:
    """Everything in the one finished cache of a folder, verified, besides one that was there before."""
    (path,) = (path for path in folder.glob("*.h5") if before is None or path.name != before.name)
    return arrays_in(path)


def arrays_in(path: Path) -> dict[str, np.ndarray]:
    """Everything in a cache, verified."""
    read = {}
    with store.open(path) as found:
        if found.has_members:
            read["skipped"] = np.array([f"{item.file}: {item.reason}".encode() for item in found.skipped])
        for split in layout.SPLITS:
            if found.has_members:
                members = found.members(split)
                read[f"{split}/names"] = np.array([os.fsencode(name) for name in members.names])
                read[f"{split}/digests"] = members.digests
            read[f"{split}/labels"] = found.labels(split)
            for tap in found.spec.taps:
                read[f"{split}/{tap}"] = found.features(split, [tap])
    return read


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    """Whether two caches hold the same arrays, bit for bit."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and one[name].tobytes() == other[name].tobytes() for name in one
    )


def leftovers(folder: Path) -> list[str]:
    """What lies in a folder besides a finished cache."""
    return sorted(path.name for path in folder.iterdir() if path.suffix != ".h5")


def never_half(folder: Path) -> None:
    """What a reader finds at any moment: no cache, or one that verifies."""
    for path in folder.glob("*.h5"):
        store.verify(path)

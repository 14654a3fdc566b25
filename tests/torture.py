"""Attack stage one for longer than a test may take, and count what was lost: ``make torture``.

Each line of the result counts the faults injected, and after each of them a rerun: rows that were lost, rows
that were wrong (compared bit for bit with an undisturbed run), and tracebacks.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]

import clusters
import faults
import numpy as np

from pipeline import cli
from pipeline.common.progress import format_seconds
from pipeline.features import parts
from pipeline.network import device

REAL_ROWS = 120  # of each split
CLUSTER_ROWS = 1442  # of train; computed in some seconds, so that there is time for kills
REAL_PART_ROWS = 8
REAL = ["--dataset", "digits", "--weights", "random", "--precision", "float32", "--image-size", "32"]
REAL += ["--batch-size", str(REAL_PART_ROWS)]


@dataclass
class Tally:
    """What an attack did."""

    what: str
    faults: int = 0
    lost: int = 0
    wrong: int = 0
    tracebacks: int = 0
    unclear: int = 0

    def compare(self, folder: Path, reference: dict[str, np.ndarray], before: Path | None = None) -> None:
        """Count rows of a finished cache that are missing or differ."""
        made = [path for path in folder.glob("*.h5") if before is None or path.name != before.name]
        found = faults.arrays_in(*made) if made else {}
        for name, expected in reference.items():
            have = found.get(name, expected[:0])
            self.lost += len(expected) - len(have)
            rows = min(len(have), len(expected))
            self.wrong += sum(have[row].tobytes() != expected[row].tobytes() for row in range(rows))

    def said(self, outcome: faults.Outcome, allowed: tuple[int, ...]) -> None:
        """Count tracebacks, and endings that are neither success nor a clear error."""
        traceback = "Traceback" in outcome.said
        unclear = outcome.status not in allowed or (outcome.status == 2 and not outcome.is_user_error)
        self.tracebacks += traceback
        self.unclear += unclear
        if traceback or unclear:
            print(f"exit status {outcome.status}: {outcome.said}", flush=True)

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not (self.lost or self.wrong or self.tracebacks or self.unclear)

    def __str__(self) -> str:
        """One line of the result."""
        line = f"{self.faults:6,} {self.what}: {self.lost} lost rows, {self.wrong} wrong rows, {self.tracebacks} tracebacks"
        return line + (f", {self.unclear} UNCLEAR ENDINGS" if self.unclear else "")


def every_point(folder: Path, images: Path | None = None, before: Path | None = None) -> Iterator[Tally]:
    """A kill, a stop and each error before and after every file operation; on the digits, or a folder that grew."""
    faults.run(folder / "reference", images=images)
    reference = faults.arrays(folder / "reference")
    points = 2 * len(faults.trace(_new(folder / "trace", before), images))
    signals = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 130, "SIGINT": 130}
    for what in (*signals, *faults.ERRORS):
        tally = Tally(f"points with {what} before or after a file operation" + (" on a folder" if images else ""))
        for number in range(1, points + 1):
            place = _new(folder / what / str(number), before)
            if what in signals:
                act, expected = faults.kill_at(number, signal.Signals[what]), signals[what]
            else:
                # The last two points surround the lock's removal, when everything is done: no error to report.
                act, expected = faults.raise_at(number, faults.ERRORS[what]), 2 if number < points - 1 else 0
            tally.said(faults.run(place, act, images=images), (expected,))
            tally.said(faults.run(place, images=images), (0,))
            tally.compare(place, reference, before)
            tally.faults += 1
        yield tally


def folders(folder: Path) -> Iterator[Tally]:
    """The same on a folder of images, some faulty, of which an older cache has a part."""
    yield from every_point(folder, *faults.grown_folder(folder))


def _new(parent: Path, before: Path | None = None) -> Path:
    """A features folder that is not there yet, in a folder that is: so every run has the same operations.

    With a cache from before, it is there, with that cache in it.
    """
    parent.mkdir(parents=True)
    if before is not None:
        (parent / "features").mkdir()
        shutil.copy2(before, parent / "features")
    return parent / "features"


def two_at_once(folder: Path, pairs: int) -> Iterator[Tally]:
    """Two runs started together; and one killed while it holds the lock that another waits for."""
    faults.run(folder / "reference")
    reference = faults.arrays(folder / "reference")
    tally = Tally("pairs of runs started together")
    for number in range(pairs):
        place = folder / "together" / str(number)
        for outcome in faults.together(place):
            tally.said(outcome, (0,))
        tally.compare(place, reference)
        tally.faults += 1
    yield tally

    tally = Tally("holders of the lock killed while another run waits")
    for number in range(pairs):
        place = folder / "holder" / str(number)
        tally.said(faults.holder_killed(place)[1], (0,))
        tally.compare(place, reference)
        tally.faults += 1
    yield tally


def full_disks(folder: Path) -> Iterator[Tally]:
    """A file system with more and more room, until everything fits."""
    faults.run(folder / "reference")
    reference = faults.arrays(folder / "reference")
    tally = Tally("runs on a file system too full for them")
    mount = folder / "mount"
    mount.mkdir()
    with faults.small_file_system(mount) as disk:
        if disk is None:
            print("       no file system filled: this process must not mount one")
            return
        place = mount / "features"
        for room in range(0, 80_000, 2_000):
            disk.leave(room)
            outcome = faults.run_unchecked(place)
            tally.said(outcome, (0, 2))
            if outcome.status == 0:
                break
            tally.faults += 1
            if place.exists():
                faults.never_half(place)
        tally.compare(place, reference)
    yield tally


def random_kills(folder: Path, kills: int) -> Iterator[Tally]:
    """SIGKILL at random times while the real network runs; then one run to the end, and again."""
    tally = Tally("kills at random times during real extraction")
    generator = np.random.default_rng()
    undisturbed = folder / "undisturbed"
    seconds = _real(undisturbed, None)[1]
    reference = faults.arrays(undisturbed)
    round_number = 0
    while tally.faults < kills:
        place = folder / f"round {round_number}"
        round_number += 1
        for _ in range(5):
            outcome, _ = _real(place, float(generator.uniform(0, seconds)))
            tally.said(outcome, (-signal.SIGKILL, 0))
            faults.never_half(place)
            if outcome.status == 0:
                break
            tally.faults += 1
            if tally.faults == kills:
                break
        tally.said(_real(place, None)[0], (0,))
        tally.compare(place, reference)
    yield tally


def _real(place: Path, kill_after: float | None, *more: str, rows: int = REAL_ROWS) -> tuple[faults.Outcome, float]:
    """Run the real stage one; kill it so many seconds after it has begun to compute. Says how long that took."""
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(place), "--limit", str(rows), *more]
    with tempfile.TemporaryFile() as spool:
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=spool)
        if child.stdout is None:
            raise AssertionError("no pipe")
        child.stdout.readline()  # "ready", or the end of a run that had nothing to compute
        began = time.monotonic()
        if kill_after is not None:
            try:
                child.wait(kill_after)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
        child.stdout.close()
        spool.seek(0)
        return faults.Outcome(child.returncode, spool.read().decode("utf-8", "replace")), time.monotonic() - began


def _child(place: Path, more: list[str]) -> int:
    """The process that is killed: stage one as it is, with small parts, saying when it begins to compute."""
    from pipeline.network import compile as compiling

    parts.PART_ROWS = REAL_PART_ROWS
    make = compiling.make_extractor

    def make_and_tell(*arguments: object, **others: object) -> object:
        network = make(*arguments, **others)  # type: ignore[arg-type]
        os.write(1, b"ready\n")
        return network

    compiling.make_extractor = make_and_tell  # type: ignore[assignment]
    return cli.main(["features", *REAL, "--features-dir", str(place), *more])


def cluster_kills(folder: Path, kills: int) -> Iterator[Tally]:
    """SIGKILL to workers of a real cluster at random times, while they compute."""
    tally = Tally("workers of a cluster killed at random times")
    undisturbed = folder / "undisturbed"
    tally.said(_real(undisturbed, None, rows=CLUSTER_ROWS)[0], (0,))
    reference = faults.arrays(undisturbed)
    (folder / "cluster").mkdir()
    with clusters.started(folder / "cluster") as cluster, ThreadPoolExecutor(1) as aside:
        cluster.start_worker(real=True, threads=device.cores())  # each with those of the reference
        cluster.start_worker(real=True, threads=device.cores())
        number = 0
        while tally.faults < kills:
            place, ended = folder / f"round {number}", threading.Event()
            number += 1
            killing = aside.submit(cluster.kill_at_random, kills - tally.faults, ended, place)
            outcome, _ = _real(place, None, "--cluster", cluster.address, rows=CLUSTER_ROWS)
            ended.set()
            tally.faults += killing.result()
            tally.said(outcome, (0,))
            tally.compare(place, reference)
    yield tally


def bit_flips(folder: Path, flips: int) -> Iterator[Tally]:
    """A flipped bit or a cut anywhere in the final file (refused) or in a part (computed again)."""
    faults.run(folder / "final")
    reference = faults.arrays(folder / "final")
    (final,) = (folder / "final").glob("*.h5")
    good = final.read_bytes()
    generator = np.random.default_rng()
    tally = Tally("bits flipped or bytes cut in the final file")
    for _ in range(flips):
        final.write_bytes(_damage(good, generator))
        outcome = faults.run(folder / "final")
        tally.said(outcome, (2,))  # refused, not replaced and not used
        tally.faults += 1
    yield tally

    tally = Tally("bits flipped or bytes cut in a part")
    point = next(index for index, item in enumerate(faults.trace(folder / "x")) if item[1].startswith(".digits"))
    for number in range(flips):
        place = folder / "part" / str(number)
        faults.run(place, faults.kill_at(2 * point))
        victims = sorted(place.glob("*.parts/t*.h5"))
        victim = victims[int(generator.integers(len(victims)))]
        victim.write_bytes(_damage(victim.read_bytes(), generator))
        outcome = faults.run(place)
        tally.said(outcome, (0,))
        tally.unclear += "computed again" not in outcome.said
        tally.compare(place, reference)
        tally.faults += 1
    yield tally


def _damage(content: bytes, generator: np.random.Generator) -> bytes:
    damaged, position = bytearray(content), int(generator.integers(len(content)))
    if generator.random() < 0.1:
        return bytes(damaged[:position])
    damaged[position] ^= 1 << int(generator.integers(8))
    return bytes(damaged)


def main() -> int:
    """Run the attacks and print their counts."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)  # what it does not know is a child's
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--flips", type=int, default=400)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--only", choices=("points", "folders", "pairs", "disks", "kills", "flips", "cluster"))
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--child", type=Path)
    parser.add_argument("--cluster-kills", type=int, default=20)
    chosen, more = parser.parse_known_args()
    if chosen.child:
        return _child(chosen.child, more)
    began = time.monotonic()
    clean = True
    with tempfile.TemporaryDirectory(dir=chosen.folder) as base:
        attacks = {
            "points": lambda folder: every_point(folder),
            "folders": lambda folder: folders(folder),
            "pairs": lambda folder: two_at_once(folder, chosen.pairs),
            "disks": lambda folder: full_disks(folder),
            "kills": lambda folder: random_kills(folder, chosen.kills),
            "flips": lambda folder: bit_flips(folder, chosen.flips),
            "cluster": lambda folder: cluster_kills(folder, chosen.cluster_kills),
        }
        for name, attack in attacks.items():
            if chosen.only in (None, name):
                (Path(base) / name).mkdir()
                for tally in attack(Path(base) / name):
                    print(tally, flush=True)
                    clean = clean and tally.clean
    print(f"{'clean' if clean else 'NOT CLEAN'}, in {format_seconds(time.monotonic() - began)}")
    return 0 if clean else 1


if __name__ == "__main__":
    sys.exit(main())

"""Measure stage one on a cluster: ``python benchmarks/cluster.py rates`` and ``… coordinator`` (a few minutes each).

``rates`` sets two worker processes of one thread each against one process with two threads, alternating, on CIFAR-10.
``coordinator`` says how much memory the process takes that hands out parts and writes them, how many bytes a row
pass through it, and how many rows a second it proves and writes: with workers that only pretend to compute.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np

from pipeline.data.dataset import Dataset, Split
from pipeline.features import extract, on_workers, store
from pipeline.features.options import ComputeOptions
from pipeline.network.taps import columns_of

WAYS = {"one process, two threads": ["--threads", "2"], "two workers, one thread each": ["--cluster", "local:2"]}


def rates(data_dir: Path, rows: int, size: int, pairs: int) -> None:
    """Print images per second of both ways, pair by pair, and the ratio."""
    ratios = []
    for _ in range(pairs):
        found = {}
        for way, flags in WAYS.items():
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, "-m", "pipeline", "features", *flags, "--features-dir", folder]
                command += ["--data-dir", str(data_dir), "--limit", str(rows), "--image-size", str(size)]
                command += ["--precision", "float32"]
                began = time.monotonic()
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
                seconds = time.monotonic() - began
            rate = re.search(r"\((\d+) images/s\)", done.stdout.replace("\n", " "))
            found[way] = float(rate[1]) if rate else float("nan")
            print(f"{way}: {found[way]:.0f} images/s, {seconds:.1f} s in all", flush=True)
        one, two = found.values()
        ratios.append(two / one)
    print(f"ratio: {', '.join(f'{ratio:.3f}' for ratio in ratios)}; median {np.median(ratios):.3f}")


def pretend(setup: on_workers.Setup) -> tuple[object, str]:
    """Be prepared for tasks without a network."""
    return setup, "pretends"


def features_of_nothing(setup: on_workers.Setup, images: np.ndarray) -> on_workers.Computed:
    """Give numbers in place of features, no two parts the same."""
    start = float(images.reshape(-1)[:4].view(np.uint32)[0] % 1000)
    return [None] * len(images), np.full((len(images), columns_of(setup.spec.taps)), start, np.float16)


def coordinator(rows: int) -> None:
    """Print memory, bytes a row and rows a second for so many images of 32 pixels."""
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    images, labels = np.broadcast_to(image, (rows, 32, 32, 3)), (np.arange(rows) % 10).astype(np.uint8)
    dataset = Dataset(
        "pretended", {"train": rows, "test": 0}, tuple("0123456789"), f"{rows:064x}", True, "nowhere",
        lambda: {"train": Split(images, labels), "test": Split(images[:0], labels[:0])},
    )  # fmt: skip
    on_workers.prepare, on_workers.compute = pretend, features_of_nothing  # type: ignore[assignment]
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as folder:
        options = ComputeOptions(weights="random", precision="float32", features_dir=Path(folder), cluster="local:2")
        (spec,) = extract.candidate_specs(options, dataset)
        began = time.monotonic()
        made = extract._build(options, dataset, spec, extract.compute.make_plan(options, 64))
        seconds = time.monotonic() - began
        with store.open(made.path) as cache:
            rate = cache.images_per_second
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    out, back = image.nbytes, 2 * columns_of(spec.taps)
    print(
        f"{rows:,} images: {memory:.2f} GB at most, {out:,} bytes a row out and {back:,} back, {seconds:.1f} s in all, "
        f"{rate:.0f} rows/s until all parts were there",
        flush=True,
    )


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("rates", "coordinator"))
    parser.add_argument("--data-dir", type=Path, default=ROOT / "data")
    parser.add_argument("--rows", type=int)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--pairs", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.what == "rates":
        rates(chosen.data_dir, chosen.rows or 4096, chosen.image_size, chosen.pairs)
    else:
        coordinator(chosen.rows or 60_000)


if __name__ == "__main__":
    main()

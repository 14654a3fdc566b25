"""What stage one costs beside the network itself.

    .venv/bin/python benchmarks/stage_one.py rate --data-dir DATA
    .venv/bin/python benchmarks/stage_one.py durability --data-dir DATA

``rate`` runs the default ``features`` on all images as a process of its own and sets its wall-clock rate, start to
end, against the bare graph's, measured before and after it. ``durability`` runs the same extraction with
verification and fsync on and off, alternating, in one process. Neither means anything while another job runs.
"""

from __future__ import annotations

import argparse
import logging
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline import datasets, extract, files, hardware, parts, sealing, spec, store, weights

IMAGE_SIZE = 64
BARE_SECONDS = 20.0


def bare_rate(data_dir: Path) -> float:
    """Images per second of the compiled graph alone, the images in memory, the features thrown away."""
    from pipeline import vgg16

    dataset = datasets.load("cifar10", data_dir, download=False)
    network = weights.resolve(
        "imagenet", data_dir, read_arrays=store.read_arrays, fetch_with_keras=vgg16.download_weights
    )
    precision = "bfloat16" if hardware.has_bfloat16() else "float32"
    graph = vgg16.Extractor(
        network.layers, spec.ALL_TAPS, image_size=IMAGE_SIZE, interpolation="bicubic", precision=precision
    )
    size = extract.BATCH_SIZE
    graph.raw(dataset.splits["train"].images[:size])
    began, done = time.monotonic(), 0
    while time.monotonic() - began < BARE_SECONDS:
        graph.raw(dataset.splits["train"].images[done : done + size])
        done += size
    return done / (time.monotonic() - began)


def rate(data_dir: Path) -> None:
    """Compare ``features`` on all images with the bare graph."""
    script = [sys.executable, __file__, "bare", "--data-dir", str(data_dir)]

    def bare() -> float:
        return float(subprocess.run(script, stdout=subprocess.PIPE, text=True, check=True).stdout)

    with tempfile.TemporaryDirectory() as folder:
        before = bare()
        began = time.monotonic()
        command = [sys.executable, "-m", "pipeline", "features", "--data-dir", str(data_dir), "--features-dir", folder]
        subprocess.run(command, check=True)
        seconds = time.monotonic() - began
        after = bare()
    whole, alone = 60_000 / seconds, (before + after) / 2
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
    print(f"bare graph      {before:6.0f} and {after:.0f} images/s, before and after")
    print(f"make features   {whole:6.0f} images/s: 60,000 in {seconds:.0f} s, from start to end of the process")
    print(f"ratio           {whole / alone:6.1%}")
    print(f"peak memory     {peak:6.2f} GB, the larger of both")


@contextmanager
def unsafe() -> Iterator[None]:
    """The same code without fsync and without any digest."""
    nothing = mock.Mock(return_value=None)
    empty = "0" * 64

    class NoDigest:
        def update(self, data: object) -> None: ...

        def hexdigest(self) -> str:
            return empty

    with (
        mock.patch.object(files, "fsync", nothing),
        mock.patch.object(files, "sync_directory", nothing),
        mock.patch.object(store, "array_digest", return_value=empty),
        mock.patch.object(sealing, "file_digest", return_value=empty),
        mock.patch.object(parts, "hashlib", mock.Mock(sha256=NoDigest)),
    ):
        yield


def durability(data_dir: Path, rows: int, repeats: int) -> None:
    """Compare extraction with verification and fsync on and off."""
    logging.getLogger("pipeline").setLevel(logging.ERROR)
    options = {"data_dir": data_dir, "limit": rows, "image_size": IMAGE_SIZE}

    def once() -> float:
        # In the working folder, not in /tmp, which may be memory: fsync must cost what it costs.
        with tempfile.TemporaryDirectory(dir=".") as folder:
            began = time.monotonic()
            extract.extract(extract.FeatureOptions(features_dir=Path(folder), **options))  # type: ignore[arg-type]
            return time.monotonic() - began

    once()  # TensorFlow's start, and the page cache
    safe: list[float] = []
    fast: list[float] = []
    for _ in range(repeats):
        safe.append(once())
        with unsafe():
            fast.append(once())
    ratios = [one / other for one, other in zip(safe, fast, strict=True)]
    print(f"{rows:,} + {rows:,} rows at {IMAGE_SIZE} px, {repeats} pairs, alternating, seconds:")
    print(f"on   {' '.join(f'{value:6.2f}' for value in safe)}   median {statistics.median(safe):.2f}")
    print(f"off  {' '.join(f'{value:6.2f}' for value in fast)}   median {statistics.median(fast):.2f}")
    print(f"verification and fsync cost {statistics.median(ratios) - 1:+.1%} (median of the pairs' ratios)")


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "durability", "bare"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.what == "bare":
        print(bare_rate(chosen.data_dir))
    elif chosen.what == "rate":
        rate(chosen.data_dir)
    else:
        durability(chosen.data_dir, chosen.rows, chosen.repeats)


if __name__ == "__main__":
    main()

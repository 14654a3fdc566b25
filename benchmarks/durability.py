"""What verification and fsync cost stage one.

    .venv/bin/python benchmarks/durability.py --data-dir DATA

The same extraction runs with verification and fsync on and off, alternating, in one process. It means nothing while
another job runs. How fast stage one is as a whole is `bench.py`'s matter.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from pipeline.common import atomic
from pipeline.features import checksum, extract, parts
from pipeline.features.options import ComputeOptions

IMAGE_SIZE = 64


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
        mock.patch.object(atomic, "fsync", nothing),
        mock.patch.object(atomic, "sync_directory", nothing),
        mock.patch.object(checksum, "array_digest", return_value=empty),
        mock.patch.object(checksum, "file_digest", return_value=empty),
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
            extract.extract(ComputeOptions(features_dir=Path(folder), **options))  # type: ignore[arg-type]
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
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=5)
    chosen = parser.parse_args()
    durability(chosen.data_dir, chosen.rows, chosen.repeats)


if __name__ == "__main__":
    main()

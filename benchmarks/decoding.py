"""The memory that it takes to decode the largest images that are read, eight side by side.

    .venv/bin/python benchmarks/decoding.py

Each kind of file is decoded in a process of its own, by as many threads as there are files; what is printed is the
most memory that the process ever had, and how many of the files were refused.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from pipeline.data import loader
from pipeline.data.dataset import Split, Unusable
from pipeline.data.image_files import FoundFiles
from pipeline.data.options import ImageOptions

SIDE = 13_300
FILES = 8
KINDS = {
    "grey16.png": (np.uint16, ()),
    "rgb.png": (np.uint8, (3,)),
    "rgba.png": (np.uint8, (4,)),
    "float32.tiff": (np.float32, ()),
    "int32.tiff": (np.int32, ()),
    "rgba.tiff": (np.uint8, (4,)),
    "rgb.jpg": (np.uint8, (3,)),
    "grey.webp": (np.uint8, ()),
}


def write(path: Path) -> None:
    """Write an image of stripes."""
    dtype, channels = KINDS[path.name]
    side = min(SIDE, 9_000) if path.suffix == ".webp" else SIDE
    pixels = np.zeros((side, side, *channels), dtype)
    pixels[::7] = 200
    Image.fromarray(pixels).save(path)


def decode(path: Path) -> str:
    """Decode a file several times at once; seconds, most memory, and what became of the files."""
    os.cpu_count = lambda: FILES  # type: ignore[assignment, return-value]
    loader._CHUNK = 1
    files, rows = FoundFiles([path] * FILES), [("train", row) for row in range(FILES)]
    began = time.perf_counter()
    with loader.batches(
        {"train": Split(files, np.zeros(FILES, np.uint8))}, rows, ImageOptions(fit="crop"), batch_size=FILES
    ) as source:
        faults = [str(image) for batch in source for _, image in batch if isinstance(image, Unusable)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = f"; {len(faults)} refused: {faults[0]}" if faults else ""
    return f"{path.name:14}{peak / 1e9:5.2f} GB {time.perf_counter() - began:6.1f} s{told}"


def main() -> None:
    """Write, then decode, each kind of file in a process of its own."""
    if len(sys.argv) == 3:
        print({"write": write, "decode": decode}[sys.argv[1]](Path(sys.argv[2])) or "", end="")
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for name in KINDS:
            for step in ("write", "decode"):
                command = [sys.executable, __file__, step, str(Path(folder) / name)]
                print(subprocess.run(command, check=True, capture_output=True, text=True).stdout, flush=True)
            (Path(folder) / name).unlink()


if __name__ == "__main__":
    main()

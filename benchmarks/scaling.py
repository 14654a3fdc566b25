"""Stage one on CIFAR-10 repeated to any number of images, for its time and peak memory.

    benchmarks/.venv/bin/python benchmarks/scaling.py --rows 240000 --data-dir DATA

The images lie in a file and are read slice by slice, as a data set too large for memory would be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from numpy.typing import NDArray

from pipeline.data import cifar10, datasets
from pipeline.data.dataset import Dataset, Split
from pipeline.data.options import ImageOptions
from pipeline.features import extract
from pipeline.features.options import ComputeOptions

PIXELS = (32, 32, 3)


class FileImages:
    """Images in a file, read when they are asked for: uint8 (n, 32, 32, 3)."""

    def __init__(self, path: Path, start: int, stop: int) -> None:
        self._path, self._rows = path, range(start, stop)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, key: slice) -> Any:
        rows = self._rows[key]
        if len(rows) == len(self._rows):
            return self
        size = int(np.prod(PIXELS))
        data = np.fromfile(self._path, np.uint8, len(rows) * size, offset=rows.start * size)
        return data.reshape(-1, *PIXELS)

    def decode(self, row: int, how: ImageOptions) -> NDArray[np.uint8]:
        """Read one image; see `pipeline.data.dataset.LazyImages`."""
        return self[row : row + 1][0]  # type: ignore[no-any-return]


def write_images(data_dir: Path, rows: int, path: Path) -> None:
    """Write the first ``rows`` of CIFAR-10's training images, repeated, to a file."""
    images = datasets.load_dataset("cifar10", data_dir, download=True).splits["train"].images
    batch = 10_000
    with open(path, "wb") as file:
        for start in range(0, rows, batch):
            file.write(np.ascontiguousarray(images[start % len(images) :][: min(batch, rows - start)]).data)


def repeated(rows: int, path: Path) -> Dataset:
    """A data set of a file's first ``rows`` images, a sixth of them test."""
    train = rows - rows // 6

    def split(start: int, stop: int) -> Split:
        labels: NDArray[np.uint8] = (np.arange(start, stop) % 10).astype(np.uint8)
        return Split(FileImages(path, start, stop), labels)

    splits = {"train": split(0, train), "test": split(train, rows)}
    return Dataset(
        name="cifar10",
        rows={name: len(split.labels) for name, split in splits.items()},
        class_names=cifar10.CLASSES,
        digest="0" * 64,  # of no data set: these features are thrown away
        official=False,
        source=str(path),
        read=lambda: splits,
    )


def main() -> None:
    """Extract once, into a folder that goes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--file", type=Path, help="where the images are; written when it is not there")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as folder:
        path = chosen.file or Path(folder) / "images"
        if not path.exists():
            write_images(chosen.data_dir, chosen.rows, path)
        dataset = repeated(chosen.rows, path)
        datasets.load_dataset = lambda *arguments, **options: dataset
        options = ComputeOptions(data_dir=chosen.data_dir, features_dir=Path(folder) / "f", image_size=(32,))
        extract.extract(options)


if __name__ == "__main__":
    main()

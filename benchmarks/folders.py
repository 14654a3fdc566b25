"""What it costs stage one that images are files in folders, and what is saved when a folder grows.

    .venv/bin/python benchmarks/folders.py rate --data-dir DATA --image-size 64
    .venv/bin/python benchmarks/folders.py growth --data-dir DATA

``rate`` writes CIFAR-10 images as PNG files and runs the command on that folder and on the same rows of the data set,
alternating, then compares all features bit for bit. ``growth`` adds 100 files to a folder of 5,000 that is cached.
Neither means anything while another job runs.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import numpy as np
from PIL import Image

from pipeline.data import cifar10, datasets
from pipeline.data.dataset import Split
from pipeline.features import layout, store


def write_files(folder: Path, split: Split, rows: range) -> None:
    """Write rows as PNG files, each named by its row, in a folder for each class."""
    for row in rows:
        place = folder / cifar10.CLASSES[int(split.labels[row])]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.asarray(split.images[row])).save(place / f"{row:05d}.png")


def features(features_dir: Path, data_dir: Path, *flags: str) -> tuple[float, float]:
    """Run the command; seconds from its start to its end, and the images per second its file says it computed."""
    command = [sys.executable, "-m", "pipeline", "features", "--data-dir", str(data_dir)]
    known = set(features_dir.glob("*.h5"))
    began = time.perf_counter()
    subprocess.run([*command, "--features-dir", str(features_dir), *flags], cwd=ROOT, check=True, capture_output=True)
    seconds = time.perf_counter() - began
    (made,) = set(features_dir.glob("*.h5")) - known
    return seconds, store.verify(made).images_per_second


def differing_rows(folder_cache: Path, reference_cache: Path) -> tuple[int, int]:
    """How many rows there are of the files, and how many differ in a bit from the data set's row."""
    total = wrong = 0
    with store.open(folder_cache) as cache, store.open(reference_cache) as reference:
        expected = {split: reference.features(split, reference.spec.taps) for split in layout.SPLITS}
        for split in layout.SPLITS:
            for name, row in zip(cache.members(split).names, cache.features(split, cache.spec.taps), strict=True):
                total += 1
                wrong += row.tobytes() != expected[Path(name).parts[0]][int(Path(name).stem)].tobytes()
    return total, wrong


def rate(data_dir: Path, image_size: int, rows: int, rounds: int) -> None:
    """Compare a folder of files with the same rows of the data set."""
    splits = datasets.load_dataset("cifar10", data_dir, download=True).splits
    size = str(image_size)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as name:
        place = Path(name)
        for split in ("train", "test"):
            write_files(place / "files" / split, splits[split], range(rows // 2))
        whole, loop = [], []
        for number in range(rounds):
            ways = {"files": ("--dataset", str(place / "files")), "data set": ("--limit", str(rows // 2))}
            seconds, rates = {}, {}
            for way, flags in ways.items():
                (place / f"{way}{number}").mkdir()
                seconds[way], rates[way] = features(place / f"{way}{number}", data_dir, "--image-size", size, *flags)
                print(f"{way:9} {seconds[way]:6.1f} s, {rates[way]:,.0f} images/s while computing", flush=True)
            whole.append(seconds["data set"] / seconds["files"])
            loop.append(rates["files"] / rates["data set"])
        caches = [next((place / f"{way}0").glob("*.h5")) for way in ("files", "data set")]
        total, wrong = differing_rows(*caches)
    print(
        f"{total:,} files at {image_size} px: {statistics.median(whole):.0%} of the data set's rate from start to end, "
        f"{statistics.median(loop):.0%} while computing (medians of {rounds}); {wrong} rows differ"
    )


def growth(data_dir: Path, rows: int, added: int) -> None:
    """Compare the time for a folder, for the folder with more files, and for those files alone."""
    train = datasets.load_dataset("cifar10", data_dir, download=True).splits["train"]
    with tempfile.TemporaryDirectory(prefix="bench-", dir=ROOT) as name:
        place = Path(name)
        write_files(place / "files", train, range(rows))
        write_files(place / "alone", train, range(rows, rows + added))
        for cache in ("cache", "cache-alone"):
            (place / cache).mkdir()
        first, _ = features(place / "cache", data_dir, "--dataset", str(place / "files"))
        write_files(place / "files", train, range(rows, rows + added))
        more, _ = features(place / "cache", data_dir, "--dataset", str(place / "files"))
        alone, _ = features(place / "cache-alone", data_dir, "--dataset", str(place / "alone"))
    print(
        f"{rows:,} files at 64 px: {first:.1f} s; with {added} more: {more:.1f} s; those {added} alone: {alone:.1f} s"
    )


def main() -> None:
    """Run the benchmark that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=("rate", "growth"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    data_dir = chosen.data_dir.resolve()
    if chosen.benchmark == "rate":
        rate(data_dir, chosen.image_size, chosen.rows, chosen.rounds)
    else:
        growth(data_dir, 5000, 100)


if __name__ == "__main__":
    main()

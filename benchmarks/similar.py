"""Measure the search beyond a million rows: an index against the comparison with all rows.

python benchmarks/similar.py features/cifar10-vgg16-32px-….h5 --folder scratch

It writes a feature file of 1.2 million rows into the folder (1.2 GB): the last layer of another, each row twenty times
with a little noise. Asked are rows of test with noise of their own.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from pipeline.network import device

device.prefer_avx512()

import numpy as np

from pipeline.common.keys import digest_of
from pipeline.common.progress import format_seconds, show_log
from pipeline.features import layout, neighbours, store

TAP, TIMES, NOISE = "block5_pool.avg", 20, 0.1  # of a column's deviation


def repeated(source: Path, folder: Path) -> Path:
    """Write the large file, if it is not there."""
    with store.open(source) as cache:
        spec = dataclasses.replace(
            cache.spec, dataset="repeated", taps=(TAP,), dataset_digest=digest_of([cache.spec.key(), TIMES, NOISE])
        )
        target = folder / f"{spec.file_stem}.h5"
        if target.exists():
            return target
        arrays, generator = {}, np.random.default_rng(0)
        for split in layout.SPLITS:
            rows = cache.features(split, [TAP])
            noise = NOISE * rows.std(axis=0)
            arrays[f"{split}/{TAP}"] = np.concatenate(
                [
                    np.maximum(rows + noise * generator.standard_normal(rows.shape, np.float32), 0).astype(np.float16)
                    for _ in range(TIMES)
                ]
            )
            arrays[f"{split}/labels"] = np.tile(cache.labels(split), TIMES)
        arrays["class_names"] = layout.encode_texts([name.encode() for name in cache.class_names])
        attributes = {
            "spec": json.dumps(spec.to_dict()), "key": spec.key(), "format_version": spec.format_version,
            "created": cache.created, "images_per_second": cache.images_per_second,
            "versions": json.dumps(dict(cache.versions)), "provenance": json.dumps(dict(cache.provenance)),
        }  # fmt: skip
        layout.write_file(target, attributes, arrays)
        return target


def search(path: Path, asked: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Open, search all at once, then one by one; print what each takes."""
    began = time.monotonic()
    with neighbours.Neighbours(path) as near:
        near.search(asked[:1], count)
        print(f"  from the file to the first answer {format_seconds(time.monotonic() - began)}")
        each = []
        for row in range(20):
            began = time.monotonic()
            near.search(asked[row : row + 1], count)
            each.append(time.monotonic() - began)
        print(f"  one more answer {np.median(each) * 1000:.0f} ms (median of {len(each)})")
        found = near.search(asked, count)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"  most memory of this process so far {peak:.1f} GB")
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--folder", type=Path, required=True)
    given = parser.parse_args()
    show_log()
    path = repeated(given.file, given.folder)
    with store.open(path) as cache:
        asked = cache.features("test", [TAP])[:: len(cache.labels("test")) // 1000][:1000]
    asked *= 1 + NOISE * np.random.default_rng(1).standard_normal(asked.shape, np.float32)
    for title in ("index, built", "index, kept"):
        print(title)
        distances, rows = search(path, asked, 10)
    (index,) = path.parent.glob(f"{path.stem}-*.index")
    print(f"  the index takes {index.stat().st_size / 1e6:.0f} MB")
    neighbours.MOST_EXACT = sys.maxsize
    print("all rows compared")
    exact, want = search(path, asked, 10)
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(rows, want, strict=True)])
    print(f"recall at 10: {recall:.2%}; nearest found {np.mean(rows[:, 0] == want[:, 0]):.2%}")
    print(f"distance of the tenth, on average: {distances[:, 9].mean():.4f} found, {exact[:, 9].mean():.4f} exact")


if __name__ == "__main__":
    main()

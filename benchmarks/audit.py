"""How much an audit finds of what was hidden in a data set: the figures of docs/audit.md.

python benchmarks/audit.py labels features/NAME.h5 --share 0.05     # labels flipped at random, seeded
python benchmarks/audit.py copies features/NAME.h5 --data-dir data  # images saved again, halved, cropped, mirrored
python benchmarks/audit.py pairs features/NAME.h5                   # near duplicates that are there by nature
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
from PIL import Image, ImageOps

from pipeline.common.progress import show_log
from pipeline.data.image_files import ImageArrays
from pipeline.features import arrays, store
from pipeline.features.images import ImageFeatures
from pipeline.features.neighbours import Index
from pipeline.features.originals import originals
from pipeline.features.rows import FeatureRows
from pipeline.models.history import Samples
from pipeline.selection import alike, copies, out_of_fold

LISTED = 2500
THRESHOLDS = (0.4, 0.45, 0.5, 0.55, 0.6, 0.65)


def labels(path: Path, share: float, seed: int) -> None:
    """Flip labels of train to another class by chance, and count how many of them come among the first listed."""
    with store.open(path) as cache:
        rows, truth = arrays.load_all(cache, cache.spec.taps)
        grouping = copies.group(cache, [cache.spec.taps])
        train, classes = cache.rows["train"], cache.class_names
    generator = np.random.default_rng(seed)
    flipped = np.zeros(len(truth), bool)
    flipped[generator.choice(train, round(share * train), replace=False)] = True
    given = np.where(flipped, (truth + generator.integers(1, len(classes), len(truth))) % len(classes), truth)
    began = time.monotonic()
    found = out_of_fold.probabilities(Samples(rows, given, grouping.groups, grouping.images), classes, folds=5, seed=0)
    seconds = time.monotonic() - began
    listed, quality = out_of_fold.mislabelled(given, found)
    most = min(LISTED, int(flipped.sum()) if share else LISTED)
    accuracy = (found.argmax(axis=1) == truth).mean()
    print(f"{path.name}: {flipped.sum():,} labels flipped; {seconds:.0f} s; accuracy {accuracy:.2%}")
    print(f"listed {len(listed):,}; of the flipped {flipped[listed].sum() / max(1, flipped.sum()):.1%}")
    for count in sorted({most, LISTED}):
        first = listed[:count]
        print(f"first {len(first):,}: {flipped[first].sum() / max(1, flipped.sum()):.1%} of the flipped")
    for name, order in (
        ("self_confidence alone", np.argsort(quality)),
        ("normalized_margin", np.argsort(_margin(given, found))),
    ):
        print(f"{name}, first {LISTED:,}: {flipped[order[:LISTED]].sum() / max(1, flipped.sum()):.1%}")


def _margin(given: np.ndarray, found: np.ndarray) -> np.ndarray:
    own = found[np.arange(len(given)), given]
    others = found.copy()
    others[np.arange(len(given)), given] = -1
    return own - others.max(axis=1)


def resaved(picture: Image.Image) -> Image.Image:
    """As JPEG of a lower quality than the data set's own."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=60)
    return Image.open(buffer).convert("RGB")


def cropped(picture: Image.Image) -> Image.Image:
    """By 5 % of each side, a pixel of each edge at least."""
    x, y = (max(1, round(0.025 * side)) for side in picture.size)
    return picture.crop((x, y, picture.width - x, picture.height - y))


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "saved again": resaved,
    "halved": lambda picture: picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.LANCZOS),
    "cropped": cropped,
    "mirrored": ImageOps.mirror,
}


def duplicates(path: Path, data_dir: Path, images: int, of: int, seed: int) -> None:
    """Put copies of some images beside so many, and count which of them are found, by kind and threshold."""
    with store.open(path) as cache:
        rows, labels = arrays.load_all(cache, cache.spec.taps)
        source = ImageFeatures(cache.spec, cache.provenance["weights"], "The file", data_dir=data_dir)
        pictures, generator = originals(cache, data_dir), np.random.default_rng(seed)
        chosen = np.sort(generator.choice(cache.rows["train"], of, replace=False))
        copied = np.sort(generator.choice(of, images, replace=False))
        blocks, family, kinds = [rows.take(chosen).array()], [np.arange(of)], [np.full(of, -1)]
        for number, make in enumerate(KINDS.values()):
            made = [pictures.pixels("train", int(chosen[row])) for row in copied]
            arrays_ = [np.asarray(make(Image.fromarray(np.ascontiguousarray(pixels)))) for pixels in made]
            made_of = [block for _, block, _ in source.batches(ImageArrays.identified(arrays_), "copies")]
            blocks.append(np.concatenate(made_of).astype(np.float16))
            family.append(copied)
            kinds.append(np.full(images, number))
    everything, families, kind = FeatureRows([np.concatenate(blocks)]), np.concatenate(family), np.concatenate(kinds)
    classes = labels[chosen][families]
    index = Index([everything])
    near = alike.compare(everything, index.scale, seed)
    print(f"{of:,} images and {len(KINDS)} copies of each of {images:,} of them")
    found, distances = alike.pairs(near, index, THRESHOLDS[-1])
    for threshold in THRESHOLDS:
        pairs = found[distances <= threshold]
        together = families[pairs[:, 0]] == families[pairs[:, 1]]
        own = pairs[together]
        recall = {
            name: len(np.unique(families[own[(kind[own] == number).any(axis=1)]])) / images
            for number, name in enumerate(KINDS)
        }
        others = pairs[~together]
        alien = (classes[others[:, 0]] != classes[others[:, 1]]).sum()
        print(
            f"threshold {threshold}: {len(pairs):,} pairs, {together.mean():.2%} of one image; of {len(others)} others "
            f"{alien} are of two classes; recall " + ", ".join(f"{name} {share:.1%}" for name, share in recall.items())
        )


def natural(path: Path) -> None:
    """Count the pairs of a data set by threshold, and how many are of two classes."""
    with store.open(path) as cache:
        rows, labels = arrays.load_all(cache, cache.spec.taps)
        train = cache.rows["train"]
    began = time.monotonic()
    index = Index([rows])
    near = alike.compare(rows, index.scale, 0)
    found, distances = alike.pairs(near, index, THRESHOLDS[-1])
    print(f"compared in {time.monotonic() - began:.0f} s")
    for threshold in THRESHOLDS:
        pairs = found[distances <= threshold]
        alien = (labels[pairs[:, 0]] != labels[pairs[:, 1]]).mean()
        leaks = len(np.unique(pairs[(pairs[:, 0] < train) & (pairs[:, 1] >= train), 1]))
        print(f"threshold {threshold}: {len(pairs):,} pairs, {alien:.2%} of two classes; {leaks:,} leaks")


def main() -> None:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("labels", "copies", "pairs"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--share", type=float, default=0.05)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--of", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    show_log()
    if given.what == "labels":
        labels(given.file, given.share, given.seed)
    elif given.what == "copies":
        duplicates(given.file, given.data_dir, given.images, given.of, given.seed)
    else:
        natural(given.file)
    print(f"memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()

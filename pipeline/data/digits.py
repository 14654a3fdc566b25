"""scikit-learn's digits: a small data set that comes with an installed package."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.data.dataset import Dataset, Split


def load_digits(data_dir: Path, *, download: bool) -> Dataset:
    """Read 1,797 scans of 8×8 pixels, 16 grey levels, from the UCI repository.

    Each pixel becomes a square of 4×4 and each grey three equal channels. Every fifth scan of a class,
    in the order of the file, is test: 20 %, stratified, fixed.
    """
    # load_digits() would import scikit-learn, which takes longer than all the rest of a cache hit.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UserError("scikit-learn, which brings the digits, is not installed. Run 'make install'.")
    path = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    with file_errors("read the digits", path), gzip.open(path, "rt") as stream:
        table = np.loadtxt(stream, delimiter=",", dtype=np.uint8)
    labels = table[:, 64]
    grey = np.rint(table[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey.repeat(4, axis=1).repeat(4, axis=2)[..., np.newaxis], 3, axis=3)
    is_test = np.zeros(len(labels), bool)
    for label in range(10):
        is_test[np.flatnonzero(labels == label)[4::5]] = True
    names = tuple(str(label) for label in range(10))
    parts = [
        hashlib.sha256(array[mask].tobytes()).hexdigest() for mask in (~is_test, is_test) for array in (images, labels)
    ]
    splits = {"train": Split(images[~is_test], labels[~is_test]), "test": Split(images[is_test], labels[is_test])}
    return Dataset(
        name="digits",
        rows={name: len(split.labels) for name, split in splits.items()},
        class_names=names,
        digest=digest_of(["digits", parts, names]),
        official=True,
        source="scikit-learn's digits",
        read=lambda: splits,
    )

"""CIFAR-10, in any of its four official forms: binary or Python version, packed or unpacked.

An archive, and the pickles of the Python version, are opened only when their bytes are the official ones. The unpacked
binary version holds nothing but labels and pixels, so any that is well-formed is taken, and called unofficial.

Source of the formats, the address and the archives' names: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of
from pipeline.data.dataset import Dataset, NotFoundHere, Split
from pipeline.data.download import download as download_file

log = logging.getLogger("pipeline")

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SIZE = 170_052_171  # bytes there
ROWS = 10_000  # in a batch
PIXELS = 3 * 32 * 32  # bytes of an image: 1024 red, 1024 green, 1024 blue, each row by row
RECORD = 1 + PIXELS  # bytes of the binary version: the label, then the image
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")

# sha256 of the official batches as the binary version has them.
_OFFICIAL_RECORDS = {
    "data_batch_1": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
    "data_batch_2": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
    "data_batch_3": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
    "data_batch_4": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
    "data_batch_5": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
    "test_batch": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
}
# md5 of the official pickles of the Python version.
_OFFICIAL_PICKLES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
# sha256 of the official archives.
_OFFICIAL_ARCHIVES = {
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-10-python.tar.gz": "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
}


def load_cifar10(data_dir: Path, *, download: bool) -> Dataset:
    """Find CIFAR-10, or download it; see `datasets.load_dataset`."""
    with file_errors("read CIFAR-10", data_dir):
        found = _find(data_dir)
        if found is None and download:
            name = URL.rpartition("/")[2]
            download_file(
                "CIFAR-10",
                URL,
                data_dir / name,
                f"sha256:{_OFFICIAL_ARCHIVES[name]}",
                size=SIZE,
                advice=f"Check the connection and run the same command again, or fetch {name} elsewhere and put it "
                f"into {data_dir}. 'make demo' needs no download of data.",
            )
            found = _find(data_dir)
        if found is None:
            raise NotFoundHere(
                f"CIFAR-10 is not in {data_dir}, nor in Keras' cache. Put cifar-10-binary.tar.gz or "
                f"cifar-10-python.tar.gz there, packed or unpacked, or name its folder with --data-dir."
            )
        kind, path = found
        digests = _identify(kind, path)
    official = digests == _OFFICIAL_RECORDS
    if not official:
        log.warning(
            "warning: %s is well-formed, but not the official CIFAR-10: its bytes differ. It is used, and all that is "
            'derived from it says "official": false',
            path,
        )

    def read() -> Mapping[str, Split]:
        records: NDArray[np.uint8] = np.empty((len(_BATCHES), ROWS, RECORD), np.uint8)
        with file_errors("read CIFAR-10", path):
            for batch, content in _contents(kind, path):
                records[_BATCHES.index(batch)] = _records(kind, path, batch, content, digests[batch])
        pixels = records[:, :, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = records[:, :, 0].reshape(-1)
        last = 5 * ROWS
        return {"train": Split(pixels[:last], labels[:last]), "test": Split(pixels[last:], labels[last:])}

    return Dataset(
        name="cifar10",
        rows={"train": 5 * ROWS, "test": ROWS},
        class_names=CLASSES,
        digest=digest_of(["cifar10", digests, CLASSES]),
        official=official,
        source=str(path),
        read=read,
    )


def _find(data_dir: Path) -> tuple[str, Path] | None:
    """First form of CIFAR-10 that exists, as (kind, path): data_dir before Keras' cache."""
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"The data folder {data_dir} is a file. Name the folder that holds it.")
    keras = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "datasets"
    places = [
        ("binary folder", data_dir / "cifar-10-batches-bin"),
        ("binary archive", data_dir / "cifar-10-binary.tar.gz"),
        ("python folder", data_dir / "cifar-10-batches-py"),
        ("python archive", data_dir / "cifar-10-python.tar.gz"),
        # Keras has changed the name under which it keeps the Python version over the years.
        ("python folder", keras / "cifar-10-batches-py-target" / "cifar-10-batches-py"),
        ("python folder", keras / "cifar-10-batches-py"),
        ("python archive", keras / "cifar-10-batches-py.tar.gz"),
        ("python archive", keras / "cifar-10-batches-py-target_archive"),
    ]
    for kind, path in places:
        if path.is_dir() if kind.endswith("folder") else path.is_file():
            return kind, path
    return None


def _identify(kind: str, path: Path) -> dict[str, str]:
    """sha256, in hex, of each batch as the binary version stores it: known, where nothing else is opened, or taken.

    Raises UserError when it is incomplete, faulty, or of a form that must be official and is not.
    """
    if kind.endswith("archive"):
        with open(path, "rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found not in _OFFICIAL_ARCHIVES.values():
            raise UserError(
                f"CIFAR-10's archive {path} is not the official one: it is damaged, or was packed by somebody else "
                f"(its sha256 is {found[:12]}…). Download it again, or unpack it by hand beside it."
            )
        return dict(_OFFICIAL_RECORDS)
    extension = ".bin" if kind.startswith("binary") else ""
    files = {batch: path / f"{batch}{extension}" for batch in _BATCHES}
    missing = [file.name for file in files.values() if not file.is_file()]
    if missing:
        raise UserError(
            f"CIFAR-10's folder {path} is incomplete: {', '.join(missing)} missing of the {len(_BATCHES)} batches. "
            f"Unpack the archive again, or remove the folder so that another copy is looked for."
        )
    if not extension:
        for batch, content in _contents(kind, path):
            if not _is_official_pickle(batch, content):
                raise UserError(
                    f"CIFAR-10's {files[batch]} is not the official one. It is a pickle, which runs whatever code is "
                    f"in it, so it is not opened. Use the binary version, cifar-10-binary.tar.gz."
                )
        return dict(_OFFICIAL_RECORDS)
    # One batch's memory serves for all: a cache hit needs the digest, not the images.
    records: NDArray[np.uint8] = np.empty((ROWS, RECORD), np.uint8)
    digests = {}
    for batch, file in files.items():
        size = file.stat().st_size
        if size != records.nbytes:
            raise UserError(
                f"CIFAR-10's {file} has the wrong size: {size:,} bytes; expected {records.nbytes:,} ({ROWS:,} records "
                f"of {RECORD:,}). Copy or download it again."
            )
        with open(file, "rb") as stream:
            stream.readinto(records.data)
        wrong = np.flatnonzero(records[:, 0] > 9)
        if wrong.size:
            raise UserError(
                f"CIFAR-10's {file} is faulty: row {wrong[0]} has the label {records[wrong[0], 0]}; labels are 0 to 9. "
                f"Copy or download the file again."
            )
        digests[batch] = hashlib.sha256(records.data).hexdigest()
    return digests


def _contents(kind: str, path: Path) -> Iterator[tuple[str, bytes]]:
    """Each batch and the bytes of its file."""
    extension = ".bin" if kind.startswith("binary") else ""
    if kind.endswith("folder"):
        for batch in _BATCHES:
            yield batch, (path / f"{batch}{extension}").read_bytes()
        return
    with tarfile.open(path) as archive:
        for member in archive:
            batch = Path(member.name).name.removesuffix(".bin")
            content = archive.extractfile(member) if batch in _BATCHES else None
            if content is not None:
                yield batch, content.read()


def _records(kind: str, path: Path, batch: str, content: bytes, digest: str) -> NDArray[np.uint8]:
    """A batch as the binary version stores it, uint8 (rows, record), if it is what was identified."""
    if kind.startswith("python") and _is_official_pickle(batch, content):
        fields = pickle.loads(content, encoding="bytes")  # noqa: S301 - the official bytes
        content = np.column_stack([np.array(fields[b"labels"], np.uint8), fields[b"data"]]).tobytes()
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"CIFAR-10 in {path} changed while it was being used. Run the same command again.")
    return np.frombuffer(content, np.uint8).reshape(ROWS, RECORD)


def _is_official_pickle(batch: str, content: bytes) -> bool:
    return hashlib.md5(content, usedforsecurity=False).hexdigest() == _OFFICIAL_PICKLES[batch]

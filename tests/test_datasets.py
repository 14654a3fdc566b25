"""CIFAR-10 in every form it comes in, and in forms that somebody made up."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import served_folder

from pipeline.common.errors import UserError
from pipeline.data import cifar10, datasets
from pipeline.data.dataset import Dataset, NotFoundHere

ROWS = 100  # of a batch in these tests; the official 10,000 are read in the tests on real data
BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    """Six batches as the binary version stores them: uint8 (6, ROWS, 3073)."""
    batches = np.random.default_rng(0).integers(0, 256, (6, ROWS, 3073), dtype=np.uint8)
    batches[:, :, 0] = np.arange(ROWS) % 10
    return batches


def python2_pickle(pixels: np.ndarray, labels: list[int]) -> bytes:
    """A batch as Python 2 pickled the official ones: protocol 2, byte strings, numpy.core."""

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value

    def integer(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little")

    dtype = b"cnumpy\ndtype\n" + text(b"u1") + integer(0) + integer(1) + b"\x87R"
    dtype += (
        b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1 % (1 << 32)) + integer(-1 % (1 << 32)) + integer(0) + b"tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"\x87R"
    shape = integer(pixels.shape[0]) + integer(pixels.shape[1]) + b"\x86"
    array += b"(" + integer(1) + shape + dtype + b"\x89" + text(pixels.tobytes()) + b"tb"
    numbers = b"](" + b"".join(integer(label) for label in labels) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + numbers + b"u."


def batch_bytes(records: np.ndarray, form: str) -> list[tuple[str, bytes]]:
    if form == "bin":
        return [(f"{name}.bin", records[index].tobytes()) for index, name in enumerate(BATCHES)]
    return [
        (name, python2_pickle(records[index, :, 1:], records[index, :, 0].tolist()))
        for index, name in enumerate(BATCHES)
    ]


def write_folder(folder: Path, records: np.ndarray, form: str) -> Path:
    path = folder / f"cifar-10-batches-{form}"
    path.mkdir(parents=True)
    for name, content in batch_bytes(records, form):
        (path / name).write_bytes(content)
    return path


def write_archive(folder: Path, records: np.ndarray, form: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ("cifar-10-binary.tar.gz" if form == "bin" else "cifar-10-python.tar.gz")
    with (
        gzip.GzipFile(path, "wb", compresslevel=1, mtime=0) as stream,
        tarfile.open(fileobj=stream, mode="w") as archive,
    ):
        for name, content in reversed(batch_bytes(records, form)):
            member = tarfile.TarInfo(f"cifar-10-batches-{form}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture(scope="module")
def four_forms(records: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("forms")
    write_folder(base / "bin folder", records, "bin")
    write_archive(base / "bin archive", records, "bin")
    write_folder(base / "py folder", records, "py")
    write_archive(base / "py archive", records, "py")
    return {name: base / name for name in ("bin folder", "bin archive", "py folder", "py archive")}


@pytest.fixture(autouse=True)
def _official(four_forms: dict[str, Path], records: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let these small files pass for the official ones."""
    own = {name: hashlib.sha256(records[index].tobytes()).hexdigest() for index, name in enumerate(BATCHES)}
    pickles = {name: hashlib.md5(content).hexdigest() for name, content in batch_bytes(records, "py")}
    archives = [path for form in ("bin archive", "py archive") for path in four_forms[form].iterdir()]
    monkeypatch.setattr(cifar10, "ROWS", ROWS)
    monkeypatch.setattr(cifar10, "_OFFICIAL_RECORDS", own)
    monkeypatch.setattr(cifar10, "_OFFICIAL_PICKLES", pickles)
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in archives}
    monkeypatch.setattr(cifar10, "_OFFICIAL_ARCHIVES", hashes)


def load(folder: Path) -> Dataset:
    return datasets.load_dataset("cifar10", folder, download=False)


def test_all_forms_give_the_same(four_forms: dict[str, Path], records: np.ndarray) -> None:
    loaded = {name: load(folder) for name, folder in four_forms.items()}
    assert len({dataset.digest for dataset in loaded.values()}) == 1
    for dataset in loaded.values():
        assert dataset.official
        assert dataset.splits["train"].images.shape == (5 * ROWS, 32, 32, 3)
        assert dataset.splits["test"].images.shape == (ROWS, 32, 32, 3)
        assert dataset.splits["train"].images.dtype == np.uint8
        assert dataset.class_names[3] == "cat"
        # Record ROWS + 7 is the eighth of the second batch: red plane first, each row by row.
        record = records[1, 7]
        assert dataset.splits["train"].labels[ROWS + 7] == record[0]
        assert dataset.splits["train"].images[ROWS + 7, 4, 9].tolist() == [
            record[1 + c * 1024 + 4 * 32 + 9] for c in range(3)
        ]
        for split in ("train", "test"):
            expected = loaded["bin folder"].splits[split]
            np.testing.assert_array_equal(dataset.splits[split].images, expected.images)
            np.testing.assert_array_equal(dataset.splits[split].labels, expected.labels)


def test_unofficial_files_are_labelled(
    records: np.ndarray, four_forms: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_folder(tmp_path, records[::-1], "bin")
    assert not load(tmp_path).official
    assert "not the official CIFAR-10" in caplog.text


@pytest.mark.parametrize("form", ["bin folder", "bin archive", "py folder", "py archive"])
def test_what_changed_after_it_was_identified_is_not_used(
    four_forms: dict[str, Path], records: np.ndarray, tmp_path: Path, form: str
) -> None:
    shutil.copytree(four_forms[form], tmp_path / "data")
    dataset = load(tmp_path / "data")
    shutil.rmtree(tmp_path / "data")
    write = write_archive if form.endswith("archive") else write_folder
    write(tmp_path / "data", records[::-1], form.split(maxsplit=1)[0])
    with pytest.raises(UserError, match="changed while it was being used"):
        _ = dataset.splits


def test_the_digest_covers_images_and_labels(records: np.ndarray, tmp_path: Path) -> None:
    digests = set()
    for number, (batch, row, byte) in enumerate([(0, 0, 0), (0, 0, 1), (5, ROWS - 1, 3072), (2, 5, 0)]):
        changed = records.copy()
        changed[batch, row, byte] = (int(changed[batch, row, byte]) + 1) % 10
        write_folder(tmp_path / str(number), changed, "bin")
        digests.add(load(tmp_path / str(number)).digest)
    assert len(digests) == 4


def test_keras_cache_is_found(
    records: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, four_forms: dict[str, Path]
) -> None:
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(NotFoundHere, match=r"cifar-10-binary\.tar\.gz"):
        load(tmp_path / "data")
    write_folder(tmp_path / "keras" / "datasets" / "cifar-10-batches-py-target", records, "py")
    dataset = load(tmp_path / "data")
    assert "keras" in dataset.source
    assert dataset.digest == load(four_forms["bin folder"]).digest


# --- faulty files -----------------------------------------------------------------------------


def test_missing_batches(records: np.ndarray, tmp_path: Path) -> None:
    (write_folder(tmp_path, records, "bin") / "data_batch_3.bin").unlink()
    with pytest.raises(UserError, match=r"incomplete: data_batch_3\.bin missing"):
        load(tmp_path)


@pytest.mark.parametrize("change", [-1, 1])
def test_wrong_size(records: np.ndarray, tmp_path: Path, change: int) -> None:
    path = write_folder(tmp_path, records, "bin") / "data_batch_3.bin"
    size = ROWS * 3073
    os.truncate(path, size + change)
    with pytest.raises(UserError, match=rf"data_batch_3\.bin .* {size + change:,} bytes; expected {size:,}"):
        load(tmp_path)


def test_label_out_of_range(records: np.ndarray, tmp_path: Path) -> None:
    changed = records.copy()
    changed[4, 77, 0] = 10
    write_folder(tmp_path, changed, "bin")
    with pytest.raises(UserError, match=r"data_batch_5.* label 10"):
        load(tmp_path)


@pytest.mark.parametrize("form", ["bin", "py"])
def test_archives_that_are_not_official_are_not_opened(
    four_forms: dict[str, Path], records: np.ndarray, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Damaged or packed anew, with whatever members: it is not looked into."""
    (archive,) = four_forms[f"{form} archive"].iterdir()
    good = archive.read_bytes()
    monkeypatch.setattr(tarfile, "open", lambda *arguments: pytest.fail("opened"))
    for content in (b"", good[:-9], good[:99] + bytes([good[99] ^ 1]) + good[100:], gzip.compress(bytes(1 << 20))):
        (tmp_path / archive.name).write_bytes(content)
        with pytest.raises(UserError, match="not the official one.*unpack it by hand"):
            load(tmp_path)


class _Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def _evaluates(marker: Path) -> bytes:
    return f'c__builtin__\neval\n(S\'open("{marker}", "w")\'\ntR.'.encode()


@pytest.mark.parametrize(
    "content",
    [
        lambda marker: pickle.dumps({"data": _Runs(marker), "labels": []}),
        _evaluates,
        lambda marker: pickle.dumps({"data": np.zeros((ROWS, 3072), np.uint8), "labels": [0] * ROWS}),
        lambda marker: b"",
    ],
    ids=["os.system", "eval", "harmless", "empty"],
)
def test_hostile_pickles_run_nothing(records: np.ndarray, tmp_path: Path, content: Callable[[Path], bytes]) -> None:
    marker = tmp_path / "it ran"
    folder = write_folder(tmp_path, records, "py")
    (folder / "data_batch_2").write_bytes(content(marker))
    with pytest.raises(UserError, match=r"data_batch_2 is not the official one.* it is not opened"):
        load(tmp_path)
    assert not marker.exists()


# --- downloading ------------------------------------------------------------------------------


def test_no_network_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "URL", "http://127.0.0.1:9/cifar-10-binary.tar.gz")
    with pytest.raises(UserError, match="could not be downloaded from .*refused.*--data-dir|could not be downloaded"):
        datasets.load_dataset("cifar10", tmp_path / "data", download=True)
    assert not list((tmp_path / "data").iterdir())


def test_download(four_forms: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (archive,) = four_forms["bin archive"].iterdir()
    data = tmp_path / "data"
    with served_folder(archive.parent) as address:
        monkeypatch.setattr(cifar10, "URL", f"{address}/{archive.name}")
        with monkeypatch.context() as patched:
            patched.setattr(cifar10, "_OFFICIAL_ARCHIVES", {archive.name: "0" * 64})
            with pytest.raises(UserError, match="not the official file"):
                datasets.load_dataset("cifar10", data, download=True)
        assert not list(data.iterdir())
        assert datasets.load_dataset("cifar10", data, download=True).official
    assert [path.name for path in data.iterdir()] == [archive.name]


# --- digits -----------------------------------------------------------------------------------


def test_digits_are_scikit_learns(tmp_path: Path) -> None:
    from sklearn.datasets import load_digits

    original = load_digits()
    digits = datasets.load_dataset("digits", tmp_path, download=False)
    assert digits.official
    assert len(digits.splits["train"].labels) + len(digits.splits["test"].labels) == 1797
    assert digits.splits["train"].images.shape[1:] == (32, 32, 3)
    images = np.concatenate([digits.splits["train"].images, digits.splits["test"].images])
    assert images.min() == 0
    assert images.max() == 255
    both = np.concatenate([digits.splits["train"].labels, digits.splits["test"].labels])
    np.testing.assert_array_equal(np.bincount(both), np.bincount(original.target))
    shares = np.bincount(digits.splits["test"].labels) / np.bincount(both)
    assert (abs(shares - 0.2) < 0.01).all(), "stratified"
    first = original.images[np.flatnonzero(original.target == 0)[4]]
    np.testing.assert_array_equal(
        digits.splits["test"].images[digits.splits["test"].labels == 0][0][::4, ::4, 0], np.rint(first * 255 / 16)
    )


def test_digits_load_without_scikit_learn() -> None:
    """A cache hit on the digits must not pay for importing it."""
    import subprocess

    code = (
        "import sys; from pathlib import Path; from pipeline.data import datasets\n"
        "datasets.load_dataset('digits', Path('data'), download=False)\n"
        "sys.exit('sklearn' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be one of cifar10, digits, or a folder of images. Got 'cifar100'"):
        datasets.load_dataset("cifar100", tmp_path, download=False)

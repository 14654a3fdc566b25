"""Named data sets: images, labels, class names, and a digest over all of it. Folders are read by `data.folder`.

CIFAR-10 is read in any of its four official forms. Nothing in them is trusted: archives are streamed
and only the members wanted, named exactly, are looked at; the pickles of the Python version are read
by an unpickler that builds nothing but numbers, text and arrays.

Source of the formats, the address and the archives' names: https://www.cs.toronto.edu/~kriz/cifar.html.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import io
import logging
import os
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.keys import digest_of, safe_name
from pipeline.common.progress import Progress
from pipeline.data import dataset

log = logging.getLogger("pipeline")

Dataset = dataset.Dataset
Split = dataset.Split
NotFoundHere = dataset.NotFoundHere

NAMES = ("cifar10", "digits")

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
CIFAR10_ROWS = 10_000  # in a batch
CIFAR10_PIXELS = 3 * 32 * 32  # bytes of an image: 1024 red, 1024 green, 1024 blue, each row by row
CIFAR10_RECORD = 1 + CIFAR10_PIXELS  # bytes of the binary version: the label, then the image
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
# sha256 and size, in bytes, of the official archives.
_OFFICIAL_ARCHIVES = {
    "cifar-10-binary.tar.gz": ("c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd", 170_052_171),
    "cifar-10-python.tar.gz": ("6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce", 170_498_071),
}
_MAX_PICKLE = 64 << 20  # bytes; the official ones have 31 MB
_MAX_ARCHIVE = 512 << 20  # bytes after decompression; the official ones have 186 MB
_MAX_MEMBERS = 1000  # the official ones have 9


def is_folder(name: str) -> bool:
    """Whether a ``--dataset`` names a folder of images; `NAMES` come before folders of the same name."""
    return name not in NAMES and Path(name).expanduser().is_dir()


def name_of(name: str) -> str:
    """What a data set is called: a folder by its own name, which must not pass for one of `NAMES`."""
    if name in NAMES:
        return name
    base = safe_name(Path(name).expanduser().resolve().name)
    return f"{base}-folder" if base.lower() in NAMES else base


def load(name: str, data_dir: Path, *, download: bool, follow_links: bool = False) -> Dataset:
    """Load a data set by name.

    Parameters
    ----------
    name : {'cifar10', 'digits'} or the path of a folder
    data_dir : Path
        Where to look first, and where a download goes.
    download : bool
        Whether to download what is not on this machine.
    follow_links : bool
        Whether symbolic links that lead out of a folder are followed.

    Raises
    ------
    NotFoundHere
        When it is not on this machine and must not be downloaded, or is neither a known name nor a folder.
    UserError
        When the files are faulty, or the download failed.
    """
    if name == "digits":
        return _load_digits()
    if is_folder(name):
        from pipeline.data import folder as folders  # late: it loads Pillow

        return folders.load_folder(Path(name).expanduser(), name_of(name), follow_links=follow_links)
    if name != "cifar10":
        raise NotFoundHere(
            f"The dataset parameter must be one of {', '.join(NAMES)}, or a folder of images. Got {name!r}, where "
            f"there is no folder."
        )
    with file_errors("read CIFAR-10", data_dir):
        form = _find_cifar10(data_dir)
        if form is None and download:
            _download_cifar10(data_dir)
            form = _find_cifar10(data_dir)
        if form is None:
            raise NotFoundHere(
                f"CIFAR-10 is not in {data_dir}, nor in Keras' cache. Put cifar-10-binary.tar.gz or "
                f"cifar-10-python.tar.gz there, packed or unpacked, or name its folder with --data-dir."
            )
        return _load_cifar10(*form)


# --- digits -----------------------------------------------------------------------------------


def _load_digits() -> Dataset:
    """scikit-learn's digits: 1,797 scans of 8×8 pixels, 16 grey levels, from the UCI repository.

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


# --- CIFAR-10: finding ------------------------------------------------------------------------


def _keras_home() -> Path:
    return Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser()


def _find_cifar10(data_dir: Path) -> tuple[str, Path] | None:
    """First form of CIFAR-10 that exists, as (kind, path): data_dir before Keras' cache."""
    if data_dir.exists() and not data_dir.is_dir():
        raise UserError(f"The data folder {data_dir} is a file. Name the folder that holds it.")
    keras = _keras_home() / "datasets"
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


class _DownloadProgress:
    """What pooch asks of a progress bar, shown by ours."""

    def __init__(self) -> None:
        self.total = 0
        self._progress: Progress | None = None

    def update(self, count: int) -> None:
        if self._progress is None:
            self._progress = Progress("CIFAR-10", self.total, "B", scale=True)
        self._progress.update(count)

    def reset(self) -> None:
        """Called by pooch once all has come, to count it all again; there is no need to."""

    def close(self) -> None:
        if self._progress is not None:
            self._progress.close()


def _download_cifar10(data_dir: Path) -> None:
    """Fetch the official archive: temporary name, size and sha256 checked, then renamed."""
    import pooch  # late: only a first run on a fresh machine needs it
    import requests

    name = CIFAR10_URL.rpartition("/")[2]
    digest, size = _OFFICIAL_ARCHIVES[name]
    advice = (
        f"Check the connection and run the same command again, or fetch {name} elsewhere and put it into "
        f"{data_dir}. 'make demo' needs no download of data."
    )

    def fetch(url: str, output: str, manager: Any) -> None:
        pooch.HTTPDownloader(progressbar=_DownloadProgress(), chunk_size=1 << 16, timeout=30)(url, output, manager)
        found = Path(output).stat().st_size
        if found != size:
            raise UserError(f"The download of {url} has {found:,} bytes; expected {size:,}. Nothing was kept. {advice}")

    log.info("CIFAR-10 is not on this machine: downloading %s (170 MB) to %s", CIFAR10_URL, data_dir)
    pooch.get_logger().setLevel(logging.WARNING)
    with file_errors("store CIFAR-10", data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        try:
            pooch.retrieve(CIFAR10_URL, f"sha256:{digest}", name, data_dir, downloader=fetch)
        except requests.RequestException as error:
            raise UserError(
                f"CIFAR-10 could not be downloaded from {CIFAR10_URL}: {_plain(error)}. {advice}"
            ) from error
        except ValueError as error:  # pooch's word for another hash
            raise UserError(f"The download of {CIFAR10_URL} is not the official file: {error}. {advice}") from error


def _plain(error: BaseException) -> str:
    """The innermost reason of a nested network error."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).rstrip(".")


# --- CIFAR-10: reading ------------------------------------------------------------------------


def _load_cifar10(kind: str, path: Path) -> Dataset:
    # One batch's memory serves for all: a cache hit needs the digest, not the images.
    batch: NDArray[np.uint8] = np.empty((CIFAR10_ROWS, CIFAR10_RECORD), np.uint8)
    if kind.endswith("archive") and _is_official_archive(path):
        digests, official = dict(_OFFICIAL_RECORDS), True  # known without unpacking it; `read` checks them
    else:
        digests, official = _read_batches(kind, path, [batch] * len(_BATCHES))
    if not official:
        log.warning(
            "warning: %s is well-formed, but not the official CIFAR-10: its bytes differ. It is used, and all that is "
            'derived from it says "official": false',
            path,
        )

    def read() -> Mapping[str, Split]:
        records: NDArray[np.uint8] = np.empty((len(_BATCHES), CIFAR10_ROWS, CIFAR10_RECORD), np.uint8)
        with file_errors("read CIFAR-10", path):
            found, _ = _read_batches(kind, path, list(records))
        if found != digests:
            raise UserError(f"CIFAR-10 in {path} changed while it was being used. Run the same command again.")
        pixels = records[:, :, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        labels = records[:, :, 0].reshape(-1)
        last = 5 * CIFAR10_ROWS
        return {"train": Split(pixels[:last], labels[:last]), "test": Split(pixels[last:], labels[last:])}

    return Dataset(
        name="cifar10",
        rows={"train": 5 * CIFAR10_ROWS, "test": CIFAR10_ROWS},
        class_names=CIFAR10_CLASSES,
        digest=digest_of(["cifar10", digests, CIFAR10_CLASSES]),
        official=official,
        source=str(path),
        read=read,
    )


def _read_batches(kind: str, path: Path, places: Sequence[NDArray[np.uint8]]) -> tuple[dict[str, str], bool]:
    """Read and check all batches, each to its place, uint8 (rows, record).

    Returns
    -------
    digests : dict
        sha256, in hex, of each batch as the binary version stores it.
    official : bool
        Whether the archive or all batches have the official hashes.
    """
    form, container = kind.split()
    extension = ".bin" if form == "binary" else ""
    contents: Mapping[str, bytes] = {}
    container_official = False
    if container == "folder":
        _check_folder(path, extension)
    else:
        digest = hashlib.sha256()
        contents = _read_archive(path, extension, digest.update)
        container_official = digest.hexdigest() in {sha for sha, _ in _OFFICIAL_ARCHIVES.values()}
    digests: dict[str, str] = {}
    pickles: dict[str, str] = {}
    for rows, batch in zip(places, _BATCHES, strict=True):
        where = f"{batch}{extension} in {path}"
        if contents:
            source: IO[bytes] = io.BytesIO(contents[batch])
        else:
            source = open(path / f"{batch}{extension}", "rb")  # noqa: SIM115 - closed below, like the other kind
        with source:
            if extension:
                _fill_from_binary(rows, source, where)
            else:
                pickles[batch] = _fill_from_pickle(rows, source.read(), where)
        wrong = np.flatnonzero(rows[:, 0] > 9)
        if wrong.size:
            raise UserError(
                f"CIFAR-10's {where} is faulty: row {wrong[0]} has the label {rows[wrong[0], 0]}; labels "
                f"are 0 to 9. Copy or download the file again."
            )
        digests[batch] = hashlib.sha256(rows.data).hexdigest()
    return digests, container_official or digests == _OFFICIAL_RECORDS or pickles == _OFFICIAL_PICKLES


def _is_official_archive(path: Path) -> bool:
    """Whether a file is one of the official archives, to the last byte."""
    if path.stat().st_size not in {size for _, size in _OFFICIAL_ARCHIVES.values()}:
        return False
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() in {sha for sha, _ in _OFFICIAL_ARCHIVES.values()}


def _check_folder(path: Path, extension: str) -> None:
    files = [path / f"{batch}{extension}" for batch in _BATCHES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"CIFAR-10's folder {path} is incomplete: {', '.join(missing)} missing of the {len(_BATCHES)} batches. "
            f"Unpack the archive again, or remove the folder so that another copy is looked for."
        )
    for file in files:
        _check_size(file.stat().st_size, extension, f"{file.name} in {path}")


def _check_size(size: int, extension: str, where: str) -> None:
    exact = CIFAR10_ROWS * CIFAR10_RECORD
    if extension and size != exact:
        raise UserError(
            f"CIFAR-10's {where} has the wrong size: {size:,} bytes; expected {exact:,} ({CIFAR10_ROWS:,} records of "
            f"{CIFAR10_RECORD:,}). Copy or download it again."
        )
    if size > _MAX_PICKLE:
        raise UserError(f"CIFAR-10's {where} has {size:,} bytes, more than any batch. Copy or download it again.")


class _Stream(io.RawIOBase):
    """The decompressed bytes of an archive, in order and no more than `_MAX_ARCHIVE` of them."""

    def __init__(self, inner: gzip.GzipFile, path: Path) -> None:
        self._inner, self._path, self._left = inner, path, _MAX_ARCHIVE

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(min(size, self._left + 1) if size >= 0 else self._left + 1)
        self._left -= len(data)
        if self._left < 0:
            raise UserError(
                f"The archive {self._path} unpacks to more than {_MAX_ARCHIVE >> 20} MiB, so it is not CIFAR-10. "
                f"Download it again."
            )
        return data


class _Tee(io.RawIOBase):
    """A file whose bytes are also shown to ``see`` as they are read."""

    def __init__(self, inner: IO[bytes], see: Callable[[bytes], object]) -> None:
        self._inner, self._see = inner, see

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        buffer[: len(data)] = data
        self._see(data)
        return len(data)


def _read_archive(path: Path, extension: str, see: Callable[[bytes], object]) -> dict[str, bytes]:
    """Read the six batches out of an archive in one pass, showing ``see`` the archive's own bytes.

    The stream is read to its end, because gzip's checksum stands there.
    """
    folder = "cifar-10-batches-bin" if extension else "cifar-10-batches-py"
    wanted = {f"{folder}/{batch}{extension}": batch for batch in _BATCHES}
    found: dict[str, bytes] = {}

    def fault(what: str) -> UserError:
        return UserError(f"CIFAR-10's archive {path} is faulty: {what}. Nothing was unpacked. Download it again.")

    try:
        with open(path, "rb") as file:
            compressed = io.BufferedReader(_Tee(file, see), 1 << 20)
            stream = _Stream(gzip.GzipFile(fileobj=compressed), path)
            with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as archive:
                for count, member in enumerate(archive):
                    if count >= _MAX_MEMBERS:
                        raise fault(f"it has more than {_MAX_MEMBERS} members")
                    batch = wanted.get(member.name)
                    if batch is None:
                        continue  # never opened, never written: what its name says does not matter
                    if batch in found:
                        raise fault(f"it holds {member.name} twice")
                    if not member.isreg() or member.issparse():
                        raise fault(f"{member.name} is no ordinary file in it")
                    _check_size(member.size, extension, f"{member.name} in {path}")
                    content = archive.extractfile(member)
                    found[batch] = content.read() if content is not None else b""
            while stream.read(1 << 20):
                pass
            while compressed.read(1 << 20):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise fault(f"truncated or damaged ({error})") from error
    missing = [name for name, batch in wanted.items() if batch not in found]
    if missing:
        raise fault(f"it does not hold {', '.join(missing)}")
    return found


def _fill_from_binary(records: NDArray[np.uint8], source: IO[bytes], where: str) -> None:
    """Read a batch of the binary version straight to its place: a copy would cost a cache hit half its time."""
    found = source.readinto(records.data)  # type: ignore[attr-defined]
    _check_size(found + len(source.read(1)), ".bin", where)


def _fill_from_pickle(records: NDArray[np.uint8], blob: bytes, where: str) -> str:
    """Read a batch of the Python version to its place, and return the md5 of its pickle, in hex."""
    try:
        content = _BatchUnpickler(io.BytesIO(blob), encoding="bytes").load()
        fields = {key.decode() if isinstance(key, bytes) else key: value for key, value in content.items()}
        pixels, labels = fields["data"].to_array(), fields["labels"]
        if pixels.shape != (CIFAR10_ROWS, CIFAR10_PIXELS):
            raise ValueError(f"data has the shape {pixels.shape}; expected {(CIFAR10_ROWS, CIFAR10_PIXELS)}")
        if not isinstance(labels, list) or len(labels) != CIFAR10_ROWS:
            raise ValueError(f"labels is no list of {CIFAR10_ROWS}")
        wrong = [label for label in labels if type(label) is not int or not 0 <= label <= 9]
        if wrong:
            raise ValueError(f"the label {wrong[0]!r:.40} is not 0 to 9")
    # Whatever a hostile pickle makes the unpickler raise, it is the file that is wrong.
    except Exception as error:
        reason = f"it lacks {error}" if isinstance(error, KeyError) else str(error) or type(error).__name__
        raise UserError(
            f"CIFAR-10's {where} is no batch of the Python version: {reason}. No code in it was run. "
            f"Copy or download the file again."
        ) from error
    records[:, 0] = labels
    records[:, 1:] = pixels
    return hashlib.md5(blob, usedforsecurity=False).hexdigest()


class _PickledDtype:
    """Stands for numpy.dtype in a batch; only ever notes what it was called with."""

    def __init__(self, *arguments: object) -> None:
        self.code = arguments[0] if arguments else None

    def __setstate__(self, state: object) -> None:
        """Byte order and alignment: nothing that a byte has."""


class _PickledArray:
    """Stands for a numpy array in a batch: its state is kept as it stands and checked afterwards."""

    def __init__(self, *arguments: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def to_array(self) -> NDArray[np.uint8]:
        _, shape, dtype, fortran, data = self.state
        code = dtype.code.decode() if isinstance(dtype.code, bytes) else dtype.code
        if code not in ("u1", "uint8") or not isinstance(data, bytes):
            raise ValueError(f"data is no array of bytes but of {code!r:.40}")
        return np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _latin1(text: object, encoding: object) -> bytes:
    """How Python 3 writes bytes into an old pickle."""
    if not isinstance(text, str) or encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError("text in an encoding other than latin1")
    return text.encode("latin1")


class _BatchUnpickler(pickle.Unpickler):
    """Admits the four names that a CIFAR-10 batch refers to, and gives harmless stand-ins for them."""

    _ADMITTED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # since numpy 2
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no batch needs") from None

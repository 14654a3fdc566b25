"""The ways to turn images into VGG16 features that `bench.py` compares, each in a process of its own.

    benchmarks/.venv/bin/python benchmarks/contenders.py NAME --size 32 --data-dir DATA --images IMAGES.npy

The process builds the contender, tries its batch sizes, and prints one line of JSON: the batch size chosen and the
features of the first images, for the check. For every line on stdin, a number of seconds, it then computes for that
long and prints images, seconds, and the energy that the processors took, where the machine tells it. Between two lines
it sleeps, so it takes nothing from the others.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from numpy.typing import NDArray

from pipeline.network import device, weights
from pipeline.network.taps import ALL_TAPS, TOP_TAPS

CHECKED = 64  # images whose features are compared with the reference
TRIAL_SECONDS = 0.7
MOST_PIXELS = 4 * device.BATCH_PIXELS  # of a batch that is tried: more of large images take minutes, and gigabytes
PRODUCTS = (1024, 2048, 4096)  # rows and columns of the matrices of the ceiling
MEAN_BGR = (103.939, 116.779, 123.68)

Images = NDArray[np.uint8]
Forward = Callable[[Images], NDArray[Any]]  # features of images of the batch size it was built for
Build = Callable[[int], Forward]


def _layers(data_dir: Path) -> dict[str, weights.Layer]:
    return dict(weights.load_weights("imagenet", data_dir).layers)


def _keras(layers: dict[str, weights.Layer], size: int) -> Any:
    import keras

    model = keras.applications.VGG16(include_top=False, weights=None, pooling="avg", input_shape=(size, size, 3))
    for name, layer in layers.items():
        model.get_layer(name).set_weights(list(layer))
    return model


def classic(layers: dict[str, weights.Layer], size: int) -> Build:
    """The script that everybody writes: Keras' predict, batches of 32, float32."""
    import keras

    model = _keras(layers, size)
    preprocess = keras.applications.vgg16.preprocess_input

    def build(batch: int) -> Forward:
        return lambda images: model.predict(preprocess(images.astype("float32")), batch_size=batch, verbose=0)

    return build


def tf_function(layers: dict[str, weights.Layer], size: int) -> Build:
    """Keras' model in a tf.function, float32."""
    import keras
    import tensorflow as tf

    model = _keras(layers, size)
    preprocess = keras.applications.vgg16.preprocess_input

    def build(batch: int) -> Forward:
        @tf.function(input_signature=[tf.TensorSpec((batch, size, size, 3), tf.uint8)])
        def forward(images: Any) -> Any:
            return model(preprocess(tf.cast(images, tf.float32)), training=False)

        return lambda images: forward(tf.constant(images)).numpy()

    return build


def _torch_module(layers: dict[str, weights.Layer], precision: str) -> Any:
    import torch

    dtype = getattr(torch, precision)
    blocks: list[Any] = []
    for layer, following in zip(layers, [*list(layers)[1:], ""], strict=True):
        kernel, bias = layers[layer]
        convolution = torch.nn.Conv2d(kernel.shape[2], kernel.shape[3], 3, padding=1)
        convolution.weight.data = torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
        convolution.bias.data = torch.from_numpy(bias.copy())
        blocks += [convolution, torch.nn.ReLU(inplace=True)]
        if following[:6] != layer[:6]:
            blocks.append(torch.nn.MaxPool2d(2))

    class Features(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.blocks = torch.nn.Sequential(*blocks).to(dtype)
            self.register_buffer("mean", torch.tensor(MEAN_BGR))

        def forward(self, images: Any) -> Any:
            pixels = (images.to(torch.float32).flip(3) - self.mean).to(dtype)
            maps = self.blocks(pixels.permute(0, 3, 1, 2))  # NHWC memory seen as NCHW is channels-last
            return maps.to(torch.float32).mean((2, 3))

    return Features().eval().to(memory_format=torch.channels_last)


def torch_cpu(layers: dict[str, weights.Layer], size: int, precision: str) -> Build:
    """PyTorch, channels-last."""
    import torch

    module = _torch_module(layers, precision)

    def forward(images: Images) -> NDArray[Any]:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).numpy()  # type: ignore[no-any-return]

    return lambda batch: forward


def openvino_cpu(layers: dict[str, weights.Layer], size: int, precision: str) -> Build:
    """OpenVINO, throughput mode: as many requests in flight as it asks for."""
    import openvino

    def build(batch: int) -> Forward:
        core = openvino.Core()
        compiled = core.compile_model(
            core.read_model(_onnx(layers, size, batch), b""),
            "CPU",
            {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            },
        )
        queue = openvino.AsyncInferQueue(compiled)

        def forward(images: Images) -> NDArray[Any]:
            result = np.empty((len(images), 512), np.float32)

            def put(request: Any, start: int) -> None:
                result[start : start + batch] = request.get_output_tensor().data.reshape(batch, 512)

            queue.set_callback(put)
            for start in range(0, len(images), batch):
                queue.start_async({0: images[start : start + batch]}, start)
            queue.wait_all()
            return result

        forward.at_once = 2 * len(queue)  # type: ignore[attr-defined]
        return forward

    return build


def _onnx(layers: dict[str, weights.Layer], size: int, batch: int) -> bytes:
    """The network as an ONNX file, written here: nothing of another library is between."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants = [("mean", np.array(MEAN_BGR, np.float32).reshape(1, 3, 1, 1)), ("bgr", np.array([2, 1, 0]))]

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"n{len(nodes)}"], **attributes))
        return f"n{len(nodes) - 1}"

    pixels = node("Transpose", node("Cast", "images", to=TensorProto.FLOAT), perm=[0, 3, 1, 2])
    maps = node("Sub", node("Gather", pixels, "bgr", axis=1), "mean")
    for layer, following in zip(layers, [*list(layers)[1:], ""], strict=True):
        kernel, bias = layers[layer]
        constants += [(f"{layer}.kernel", kernel.transpose(3, 2, 0, 1)), (f"{layer}.bias", bias)]
        maps = node("Relu", node("Conv", maps, f"{layer}.kernel", f"{layer}.bias", pads=[1, 1, 1, 1]))
        if following[:6] != layer[:6]:
            maps = node("MaxPool", maps, kernel_shape=[2, 2], strides=[2, 2])
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("images", TensorProto.UINT8, (batch, size, size, 3))],
        [helper.make_tensor_value_info(node("GlobalAveragePool", maps), TensorProto.FLOAT, (batch, 512, 1, 1))],
        [numpy_helper.from_array(np.ascontiguousarray(values), name) for name, values in constants],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    serialized: bytes = model.SerializeToString()
    return serialized


def onnxruntime_cpu(layers: dict[str, weights.Layer], size: int) -> Build:
    """ONNX Runtime."""
    import onnxruntime

    def build(batch: int) -> Forward:
        session = onnxruntime.InferenceSession(_onnx(layers, size, batch), providers=["CPUExecutionProvider"])
        return lambda images: session.run(None, {"images": images})[0].reshape(batch, 512)

    return build


def ncnn_cpu(layers: dict[str, weights.Layer], size: int) -> Build:
    """ncnn, which has Winograd's convolutions: it takes image by image, so there is one for each core at a time."""
    import tempfile
    from concurrent.futures import ThreadPoolExecutor

    import ncnn

    def build(batch: int) -> Forward:
        lines, arrays, blob = ["Input images 0 1 b0"], list[NDArray[Any]](), 0
        for layer, following in zip(layers, [*list(layers)[1:], "block6"], strict=True):  # 9=1: with ReLU
            kernel, bias = layers[layer]
            lines.append(f"Convolution {layer} 1 1 b{blob} b{blob + 1} 0={len(bias)} 1=3 4=1 5=1 6={kernel.size} 9=1")
            arrays += [np.zeros(1, np.uint32), kernel.transpose(3, 2, 0, 1), bias]  # 0 says that it is float32
            blob += 1
            if following[:6] != layer[:6]:
                lines.append(f"Pooling {layer}_pool 1 1 b{blob} b{blob + 1} 0=0 1=2 2=2 5=1")
                blob += 1
        lines.append(f"Pooling all 1 1 b{blob} features 0=1 4=1")
        net = ncnn.Net()
        net.opt.num_threads = 1
        with tempfile.TemporaryDirectory() as folder:
            param, model = Path(folder) / "vgg16.param", Path(folder) / "vgg16.bin"
            param.write_text("\n".join(["7767517", f"{len(lines)} {blob + 2}", *lines, ""]), encoding="ascii")
            model.write_bytes(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays))
            if net.load_param(str(param)) or net.load_model(str(model)):
                raise SystemExit("ncnn does not read its model")

        def one(image: Images) -> NDArray[Any]:
            pixels = np.ascontiguousarray((image[..., ::-1] - np.array(MEAN_BGR, np.float32)).transpose(2, 0, 1))
            with net.create_extractor() as extractor:
                extractor.input("b0", ncnn.Mat(pixels).clone())
                return np.array(extractor.extract("features")[1])

        pool = ThreadPoolExecutor(device.cores())
        return lambda images: np.stack(list(pool.map(one, images)))

    return build


def ours(layers: dict[str, weights.Layer], size: int, precision: str, taps: tuple[str, ...]) -> Build:
    """The product's graph, as stage one runs it: features in float16."""
    from pipeline.network import vgg16

    def build(batch: int) -> Forward:
        extractor = vgg16.Extractor(layers, taps, image_size=size, precision=precision, batch_size=batch)

        def forward(images: Images) -> NDArray[Any]:
            return extractor(images)["block5_pool.avg"]

        return forward

    return build


def ceiling(precision: str) -> float:
    """Floating-point operations a second of a large matrix product, the best of two libraries."""
    import tensorflow as tf
    import torch

    multiply = tf.function(lambda x: tf.matmul(x, x)[:1, :1])
    best = 0.0
    for size in PRODUCTS:
        factor = np.random.default_rng(0).standard_normal((size, size), np.float32)
        one = tf.cast(tf.constant(factor), precision)
        other = torch.from_numpy(factor).to(getattr(torch, precision))
        for _ in range(8):
            began = time.perf_counter()
            multiply(one).numpy()
            middle = time.perf_counter()
            torch.matmul(other, other)
            fastest = min(middle - began, time.perf_counter() - middle)
            best = max(best, 2 * size**3 / fastest)
    return best


NAMES = {
    "keras predict, float32": (classic, [32]),
    "tf.function, float32": (tf_function, [32, 128, 256]),
    "PyTorch, float32": (lambda w, s: torch_cpu(w, s, "float32"), [16, 32, 64, 128, 256]),
    "PyTorch, bfloat16": (lambda w, s: torch_cpu(w, s, "bfloat16"), [16, 32, 64, 128, 256]),
    "ONNX Runtime, float32": (onnxruntime_cpu, [1, 8, 32, 64]),
    "ncnn, float32": (ncnn_cpu, [32]),
    "OpenVINO, float32": (lambda w, s: openvino_cpu(w, s, "float32"), [1, 8, 32, 64]),
    "OpenVINO, bfloat16": (lambda w, s: openvino_cpu(w, s, "bfloat16"), [1, 8, 32, 64]),
    "ours, top, float32": (lambda w, s: ours(w, s, "float32", TOP_TAPS), []),
    "ours, all taps, float32": (lambda w, s: ours(w, s, "float32", ALL_TAPS), []),
    "ours, top, bfloat16": (lambda w, s: ours(w, s, "bfloat16", TOP_TAPS), []),
    "ours, all taps, bfloat16": (lambda w, s: ours(w, s, "bfloat16", ALL_TAPS), []),
}
FROM_32 = "ours, from 32 px"  # the bare graph of the default command, enlarging included


def joules() -> float | None:
    """Energy that the processors have taken, from some time on; None where the machine does not tell."""
    counters = Path("/sys/class/powercap").glob("intel-rapl:[0-9]*")
    try:
        packages = [int((one / "energy_uj").read_text()) for one in counters if one.name.count(":") == 1]
    except OSError:  # only root may read it
        return None
    return sum(packages) / 1e6 if packages else None


def compute(forward: Forward, batch: int, images: Images, seconds: float) -> tuple[int, float]:
    """Compute for some seconds, in whole pieces; return images and seconds."""
    piece = batch * getattr(forward, "at_once", 1)
    pieces = max(1, len(images) // piece)
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        start = done % pieces * piece
        forward(np.take(images, range(start, start + piece), axis=0, mode="wrap"))
        done += 1
    return done * piece, time.perf_counter() - began


def main() -> None:
    """Build a contender, show its features, and compute on demand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[*NAMES, FROM_32, "ceiling"])
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--images", type=Path)
    chosen = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    if chosen.name == "ceiling":
        rates = {precision: ceiling(precision) for precision in ("float32", "bfloat16")}
        answers.write(json.dumps(rates) + "\n")
        return
    if chosen.name == FROM_32:
        precision = "bfloat16" if device.is_faster_in_bfloat16() else "float32"
        contender, batches = (lambda w, s: ours(w, s, precision, ALL_TAPS)), list[int]()
    else:
        contender, batches = NAMES[chosen.name]
    images: Images = np.load(chosen.images)
    build = contender(_layers(chosen.data_dir), chosen.size)
    best: tuple[float, int, Forward] | None = None
    batches = [batch for batch in batches if batch <= max(min(batches), MOST_PIXELS // chosen.size**2)]
    for batch in batches or [device.default_batch_size(chosen.size)]:
        forward = build(batch)
        compute(forward, batch, images, 0.0)  # compiles
        done, seconds = compute(forward, batch, images, TRIAL_SECONDS if len(batches) > 1 else 0.0)
        if best is None or done / seconds > best[0]:
            best = (done / seconds, batch, forward)
    assert best is not None
    _, batch, forward = best
    piece = batch * getattr(forward, "at_once", 1)
    rows = np.take(images, range(-(-CHECKED // piece) * piece), axis=0, mode="wrap")
    found = np.concatenate([forward(rows[start : start + piece]) for start in range(0, len(rows), piece)])
    answers.write(json.dumps({"batch": batch, "features": found[:CHECKED].astype(float).tolist()}) + "\n")
    answers.flush()
    for line in sys.stdin:
        before = joules()
        done, seconds = compute(forward, batch, images, float(line))
        after = joules()
        energy = None if before is None or after is None or after < before else after - before  # it may start anew
        answers.write(json.dumps({"images": done, "seconds": seconds, "joules": energy}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

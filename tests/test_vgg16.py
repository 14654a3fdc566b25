"""The graph and the network in NumPy, which share no line of computing, against each other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT, WEIGHTS_FILE

from pipeline.common.errors import UserError
from pipeline.network import by_numpy, weights
from pipeline.network import device as hardware
from pipeline.network.device import Gpu
from pipeline.network.taps import ALL_TAPS, TAP_COLUMNS

pytestmark = pytest.mark.tensorflow

BATCH_SIZE = 4


def reference(images: np.ndarray, layers: Mapping[str, weights.Layer], size: int) -> dict[str, np.ndarray]:
    """Every tap of VGG16 in NumPy: float64 (n, columns)."""
    return by_numpy.Network(layers, every_tap(size), image_size=size, precision="float64").raw(images)


def every_tap(size: int) -> tuple[str, ...]:
    """All that there are at a size: at 32 px the last map is a single pixel."""
    return tuple(tap for tap in TAP_COLUMNS if size >= 64 or tap != "block5_pool.avg2x2")


def images(count: int) -> np.ndarray:
    """Smooth pictures with edges: uint8 (count, 32, 32, 3)."""
    generator = np.random.default_rng(3)
    coarse = generator.integers(0, 256, (count, 4, 4, 3))
    fine = generator.integers(-20, 21, (count, 32, 32, 3))
    return np.clip(coarse.repeat(8, axis=1).repeat(8, axis=2) + fine, 0, 255).astype(np.uint8)


def extractor(  # type: ignore[no-untyped-def]
    layers: Mapping[str, weights.Layer],
    size: int,
    precision: str,
    taps: tuple[str, ...] = ALL_TAPS,
    view: str = "plain",
):
    from pipeline.network import vgg16

    return vgg16.Extractor(layers, taps, image_size=size, precision=precision, batch_size=BATCH_SIZE, view=view)


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))


needs_bfloat16 = pytest.mark.skipif(not hardware.has_bfloat16(), reason="this processor has no bfloat16")

# float16 storage rounds each value by up to 2**-11 = 0.05 %, so the graph's own outputs are compared for 1e-4.


# The image's own, enlarged, maps of odd sizes, and the layout for large ones.
@pytest.mark.parametrize("size", [32, 64, 50, 100])
def test_float32_is_vgg16(size: int) -> None:
    layers = weights.random_weights().layers
    found = extractor(layers, size, "float32", every_tap(size)).raw(images(3))
    expected = reference(images(3), layers, size)
    assert set(found) == set(expected)
    for tap, values in expected.items():
        assert found[tap].shape == (3, TAP_COLUMNS[tap])
        assert relative(found[tap], values) < (1e-3 if tap.endswith(".cov") else 1e-4), tap  # roots of what is near 0


@pytest.mark.weights
@pytest.mark.parametrize(
    ("precision", "tolerance"), [("float32", 1e-4), pytest.param("bfloat16", 0.02, marks=needs_bfloat16)]
)
@pytest.mark.parametrize("size", [32, 64])
def test_golden_features_under_the_real_weights(size: int, precision: str, tolerance: float) -> None:
    layers = weights.from_file(WEIGHTS_FILE).layers
    network = extractor(layers, size, precision, every_tap(size))
    network.check_precision(images(2))
    found, stored = network.raw(images(4)), network(images(4))
    for tap, values in reference(images(4), layers, size).items():
        most = 3 * tolerance if tap.endswith(".cov") else tolerance  # roots, of what is near 0, too
        assert relative(found[tap], values) < most, tap
        assert stored[tap].dtype == np.float16
        assert relative(stored[tap], values) < most + 2**-11, tap


@pytest.mark.weights
@needs_bfloat16
def test_precision_is_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 features must differ from float32 ones, or they are float32 under another name."""
    from pipeline.network import vgg16

    layers = weights.from_file(WEIGHTS_FILE).layers
    exact = extractor(layers, 32, "float32")
    exact.check_precision(images(2))
    rounded = extractor(layers, 32, "bfloat16")
    rounded.check_precision(images(2))
    assert 1e-3 < relative(rounded.raw(images(8))["block5_pool.avg"], exact.raw(images(8))["block5_pool.avg"]) < 0.02
    monkeypatch.setitem(vgg16._DIFFERENCE, "float32", vgg16._DIFFERENCE["bfloat16"])
    with pytest.raises(UserError, match="does not compute in the precision asked for"):
        exact.check_precision(images(2))


def test_one_tap_is_the_same_as_of_all() -> None:
    layers = weights.random_weights().layers
    every = extractor(layers, 32, "float32").raw(images(4))
    for tap in ("block5_pool.avg", "block1_conv2.avg"):
        one = extractor(layers, 32, "float32", (tap,)).raw(images(4))
        assert list(one) == [tap]
        np.testing.assert_allclose(one[tap], every[tap], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("tap", "convolutions"),
    [("block1_conv1.avg", 1), ("block3_conv2.avg", 6), ("block4_pool.max", 10), ("block5_pool.avg", 13)],
)
@pytest.mark.parametrize("size", [32, 128])
def test_layers_above_the_highest_tap_are_not_computed(tap: str, convolutions: int, size: int) -> None:
    network = extractor(weights.random_weights().layers, size, "float32", tuple({"block1_conv1.avg", tap}))
    operations = network._network.graph.get_operations()
    assert sum(operation.type in ("Conv2D", "Conv3D") for operation in operations) == convolutions


@pytest.mark.parametrize(
    ("precision", "view"), [("float32", "mirror"), pytest.param("bfloat16", "plain", marks=needs_bfloat16)]
)
def test_numpy_computes_what_the_graph_does(precision: str, view: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the precision of the graph, of images of any shape, and whatever part of a map goes through at a time."""
    layers, taps, pictures = weights.random_weights().layers, every_tap(48), [images(1)[0], images(2)[1][:17, :30]]
    of_graph = extractor(layers, 48, precision, taps, view)(pictures)
    network = by_numpy.Network(layers, taps, image_size=48, precision=precision, view=view)
    found = network(pictures)
    exact = by_numpy.Network(layers, taps, image_size=48, view=view).raw(pictures)
    for tap in taps:
        assert found[tap].dtype == np.float16
        near = 2**-11 if precision == "float32" else 5e-3
        assert relative(found[tap], of_graph[tap].astype(float)) < (3 * near if tap.endswith(".cov") else near), tap
        if precision == "bfloat16":
            assert relative(network.raw(pictures)[tap], exact[tap]) > 1e-4, f"{tap} is rounded"
    monkeypatch.setattr(by_numpy, "_BAND", 4000)
    for tap, values in network(pictures).items():
        assert relative(values, found[tap].astype(float)) < 1e-3, tap


@pytest.mark.parametrize("precision", ["float32", pytest.param("bfloat16", marks=needs_bfloat16)])
# The image's own size, enlarged with odd maps, and the layout for large ones.
@pytest.mark.parametrize(("size", "view"), [(32, "mirror"), (40, "plain"), (128, "mirror")])
def test_a_row_does_not_depend_on_its_neighbours(size: int, precision: str, view: str) -> None:
    """Bit for bit: at any place of a batch, in a batch that is not full, and from memory in another order."""
    taps = ("block1_conv2.avg", "block5_pool.avg", "block2_conv2.std", "block4_conv1.avg2x2", "block3_conv3.cov")
    network = extractor(weights.random_weights().layers, size, precision, taps, view)
    pictures = images(7)
    whole = network.raw(pictures)
    planes = np.ascontiguousarray(pictures.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1)
    assert not planes.flags.c_contiguous
    order = np.random.default_rng(5).permutation(7)
    shuffled = network.raw(planes[order])
    single = [network.raw(pictures[i : i + 1]) for i in range(7)]
    for tap, rows in whole.items():
        assert rows[order].tobytes() == shuffled[tap].tobytes(), tap
        assert rows.tobytes() == np.concatenate([one[tap] for one in single]).tobytes(), tap


def test_images_of_many_sizes_go_together() -> None:
    """A sequence of images of their own sizes gives what each gives alone, bit for bit."""
    network = extractor(weights.random_weights().layers, 48, "float32", ("block2_conv2.avg", "block5_pool.avg"))
    pictures = images(6)
    cuts = [(32, 32), (17, 30), (48, 48), (32, 32), (17, 30), (5, 48)]
    mixed = [np.resize(picture, (height, width, 3)) for picture, (height, width) in zip(pictures, cuts, strict=True)]
    together = network(mixed)
    for i, picture in enumerate(mixed):
        for tap, values in network(picture[np.newaxis]).items():
            assert together[tap][i].tobytes() == values[0].tobytes(), (i, tap)
    alike = network(list(pictures))
    for tap, values in network(pictures).items():
        assert alike[tap].tobytes() == values.tobytes(), "a list of equal sizes is an array"


def test_both_layouts_agree_at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """At sizes that do not halve evenly too: 50 pixels become 25, 12, 6, 3 and 1."""
    from pipeline.network import layouts

    layers = weights.random_weights().layers
    one = extractor(layers, 50, "float32", every_tap(50)).raw(images(2))
    monkeypatch.setattr(layouts, "BATCH_INNERMOST_SIZE", 0)
    other = extractor(layers, 50, "float32", every_tap(50)).raw(images(2))
    for tap in every_tap(50):
        assert relative(one[tap], other[tap]) < (1e-3 if tap.endswith(".cov") else 1e-5), tap


def test_the_mirror_view_is_the_mean_of_image_and_mirror_image() -> None:
    layers, taps = weights.random_weights().layers, ("block1_conv2.std", "block5_pool.avg")
    plain, mirror = (extractor(layers, 32, "float32", taps, view) for view in ("plain", "mirror"))
    image, turned = plain.raw(images(3)), plain.raw(images(3)[:, :, ::-1])
    for tap, values in mirror.raw(images(3)).items():
        np.testing.assert_allclose(values, (image[tap] + turned[tap]) / 2, rtol=1e-6)
        assert relative(values, image[tap]) > 1e-4


def test_deviations_of_blank_images_do_not_cancel() -> None:
    """About the mean: by the mean of squares, what is constant but for the edges would be rounding."""
    layers, blank = weights.random_weights().layers, np.full((2, 32, 32, 3), 255, np.uint8)
    taps = tuple(tap for tap in every_tap(32) if tap.endswith(".std"))
    found = extractor(layers, 32, "float32", taps).raw(blank)
    expected = reference(blank, layers, 32)
    for tap in taps:
        assert relative(found[tap], expected[tap]) < 1e-4, tap


def test_memory_that_does_not_suffice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    network = extractor(weights.random_weights().layers, 32, "float32", ("block1_conv1.avg",))
    for error in (MemoryError(), tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")):

        def fail(batch: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(network, "_run", fail)
        with pytest.raises(UserError, match=r"Memory does not suffice for batches of 4 .* smaller --batch-size"):
            network(images(1))
        with pytest.raises(UserError, match=r"Memory does not suffice for batches of 4 .* smaller --batch-size"):
            network.check_precision(images(1))


def test_an_overflow_names_its_tap() -> None:
    layers = dict(weights.random_weights().layers)
    kernel, bias = layers["block2_conv1"]
    layers["block2_conv1"] = (kernel, bias + 1e5)
    network = extractor(layers, 32, "float32", ("block1_conv2.avg", "block2_conv1.avg"))
    in_numpy = by_numpy.Network(layers, ("block1_conv2.avg", "block2_conv1.avg"), image_size=32)
    for compute in (network, in_numpy):
        with pytest.raises(UserError, match=r"block2_conv1\.avg gives a value beyond float16"):
            compute(images(1))


def test_gpus_that_tensorflow_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their memory is 0 where it cannot be found out: such a GPU is left alone, and the run goes on."""
    import tensorflow as tf

    from pipeline.network import vgg16

    details = {"/gpu:0": {"device_name": "an Ampere", "compute_capability": (8, 6)}, "/gpu:1": {}}
    physical = [SimpleNamespace(name=name) for name in details]
    memory = {"/device:CPU:0": 1, "/device:GPU:1": 2, "/device:GPU:0": 3}
    local = [SimpleNamespace(name=name, memory_limit=limit) for name, limit in memory.items()]
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: physical)
    monkeypatch.setattr(tf.config.experimental, "get_device_details", lambda device: details[device.name])
    monkeypatch.setattr(vgg16.device_lib, "list_local_devices", lambda: local)
    assert vgg16.gpus() == [Gpu("an Ampere", (8, 6), 3), Gpu("/gpu:1", (0, 0), 2)]

    def fail() -> None:
        raise tf.errors.InternalError(None, None, "CUDA_ERROR_OUT_OF_MEMORY")

    monkeypatch.setattr(vgg16.device_lib, "list_local_devices", fail)
    assert [gpu.free for gpu in vgg16.gpus()] == [0, 0]


def test_keras_is_not_loaded_and_can_be_later() -> None:
    """TensorFlow loads it by itself, which takes seconds; also where two threads begin at the same time."""
    code = (
        "import sys; from multiprocessing.pool import ThreadPool;"
        "from pipeline.network import compile, device, weights; layers = weights.random_weights().layers;"
        "plan = device.Plan('CPU:0', 'the processor', 'float32', 4);"
        "wanted = dict(plan=plan, taps=['block1_conv1.avg'], image_size=32, view='plain');"
        "ThreadPool(2).map(lambda _: compile.make_extractor(layers, **wanted), range(2));"
        "assert not {'keras', 'sklearn'} & set(sys.modules);"
        "import tensorflow as tf; from tensorflow.keras import layers, optimizers;"
        "tf.keras.Sequential([layers.Input((3,)), layers.Dense(2)]).compile(optimizers.Adam(), 'mse')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)

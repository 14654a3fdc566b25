"""Winograd's convolutions against direct ones, and where they are chosen."""

from __future__ import annotations

import dataclasses
import logging
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from test_vgg16 import every_tap, images, reference, relative

from pipeline.network import device, weights, winograd
from pipeline.network.taps import ALL_TAPS

pytestmark = pytest.mark.tensorflow


def convolved(maps: np.ndarray, kernel: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """By the textbook: float64 (height, width, image, channel)."""
    height, width = maps.shape[:2]
    padded = np.pad(maps.astype(np.float64), ((1, 1), (1, 1), (0, 0), (0, 0)))
    places = [(row, column) for row in range(3) for column in range(3)]
    return np.maximum(
        sum(padded[row : row + height, column : column + width] @ kernel[row, column] for row, column in places) + bias,
        0,
    )


def drawn(height: int, width: int, count: int, channels: int, results: int) -> tuple[np.ndarray, ...]:
    generator = np.random.default_rng(1)
    shapes = (height, width, count, channels), (3, 3, channels, results), (results,)
    return tuple(generator.standard_normal(shape, np.float32) for shape in shapes)


each = pytest.mark.parametrize("filtering", winograd.FILTERINGS, ids=lambda each: f"F({each.tile} × {each.tile})")


@each
@pytest.mark.parametrize(
    ("height", "width", "channels", "results"),
    [(4, 4, 512, 64), (6, 6, 64, 128), (7, 14, 64, 64), (25, 9, 64, 64), (33, 64, 64, 64), (1, 2, 64, 64)],
)
def test_it_is_the_convolution(
    height: int, width: int, channels: int, results: int, filtering: winograd.Filtering
) -> None:
    maps, kernel, bias = drawn(height, width, 16, channels, results)
    (found,) = winograd.Convolution(filtering, kernel, bias, winograd.Workers(2))(maps)
    assert found.shape == (height, width, 16, results)
    assert found.dtype == np.float32
    exact = convolved(maps, kernel, bias)
    assert relative(found, exact) < 2e-5
    both = winograd.Convolution(filtering, kernel, bias, winograd.Workers(3), 1, halve=True, average=True)
    halves, averages = both(maps)
    even = exact[: height // 2 * 2, : width // 2 * 2].reshape(height // 2, 2, width // 2, 2, 16, results)
    assert halves.shape == (height // 2, width // 2, 16, results)
    assert not halves.size or relative(halves, even.max(axis=(1, 3))) < 2e-5
    assert relative(averages, exact.mean(axis=(0, 1))) < 1e-5


@each
@pytest.mark.parametrize(
    ("height", "width", "channels"), [(2, 3, 64), (8, 8, 64), (4, 4, 512), (7, 7, 512), (12, 12, 256), (64, 64, 64)]
)
def test_an_image_is_the_same_anywhere(height: int, width: int, channels: int, filtering: winograd.Filtering) -> None:
    """Bit for bit: at any place of a batch of any size, with any number of threads."""
    maps, kernel, bias = drawn(height, width, 64, channels, channels)
    whole, averages = winograd.Convolution(filtering, kernel, bias, winograd.Workers(1), average=True)(maps)
    order = np.random.default_rng(2).permutation(64)
    for threads, count in ((1, 8), (2, 64), (3, 24), (16, 32)):
        some = np.ascontiguousarray(maps[:, :, order[:count]])
        found, means = winograd.Convolution(filtering, kernel, bias, winograd.Workers(threads), average=True)(some)
        np.testing.assert_array_equal(found, whole[:, :, order[:count]])
        np.testing.assert_array_equal(means, averages[order[:count]])


def extractor(layers, size, batch_size, taps=ALL_TAPS, view="plain"):  # type: ignore[no-untyped-def]
    from pipeline.network import vgg16

    return vgg16.Extractor(layers, taps, image_size=size, precision="float32", batch_size=batch_size, view=view)


@pytest.fixture
def anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Winograd's convolutions on any processor, for few images too."""
    from pipeline.network import layouts

    monkeypatch.setattr(winograd, "is_of_use", lambda: True)
    monkeypatch.setattr(layouts, "WINOGRAD_PIXELS", 0)


def convolutions(network) -> tuple[int, int]:  # type: ignore[no-untyped-def]
    """How many convolutions of a network are direct, and how many are Winograd's."""
    kinds = [operation.type for operation in network._network.graph.get_operations()]
    return sum(kind in ("Conv2D", "Conv3D") for kind in kinds), kinds.count("PyFuncStateless")


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("size", "direct"), [(32, 4), (64, 1), (96, 1)])
def test_float32_is_vgg16_by_fewer_multiplications(size: int, direct: int) -> None:
    """At 32 px the last block has maps of 2 × 2, for which there are no fewer; at 96 px tiles of 6 × 6 are full."""
    layers = weights.random_weights().layers
    exact = reference(images(3), layers, size)
    # Of the second taps averages and halves are taken without whole maps.
    for taps in ([tap for tap in every_tap(size) if not tap.endswith(".cov")], ALL_TAPS):
        network = extractor(layers, size, 8, taps)
        assert convolutions(network) == (direct, 13 - direct)
        network.check_precision(images(2))
        found = network.raw(images(3))
        for tap in taps:
            assert relative(found[tap], exact[tap]) < 1e-4, tap


@pytest.mark.usefixtures("anywhere")
@pytest.mark.parametrize(("size", "view"), [(40, "plain"), (100, "mirror")])
def test_a_row_does_not_depend_on_its_batch(size: int, view: str) -> None:
    layers, pictures = weights.random_weights().layers, images(19)
    taps = ("block1_conv2.avg", "block5_pool.avg", "block2_conv2.std", "block4_conv1.avg2x2", "block3_conv3.cov")
    whole = extractor(layers, size, 24, taps, view).raw(pictures)
    network = extractor(layers, size, 8, taps, view)
    order = np.random.default_rng(5).permutation(19)
    shuffled, single = network.raw(pictures[order]), network.raw(pictures[3:4])
    for tap, rows in whole.items():
        assert rows[order].tobytes() == shuffled[tap].tobytes(), tap
        assert rows[3:4].tobytes() == single[tap].tobytes(), tap


@pytest.mark.usefixtures("anywhere")
def test_threads_may_share_a_network() -> None:
    """Maps of all batches have the same places in memory."""
    network = extractor(weights.random_weights().layers, 64, 8, ("block1_conv2.avg", "block3_conv3.std"))
    pictures = np.split(images(32), 4)
    one_by_one = [network.raw(some) for some in pictures]
    with ThreadPoolExecutor(4) as pool:
        for expected, found in zip(one_by_one, pool.map(network.raw, pictures), strict=True):
            for tap, values in expected.items():
                assert values.tobytes() == found[tap].tobytes(), tap


@pytest.mark.usefixtures("anywhere")
def test_layers_above_the_highest_tap_are_not_computed() -> None:
    assert convolutions(extractor(weights.random_weights().layers, 64, 8, ("block3_conv2.avg",))) == (1, 5)


@pytest.mark.usefixtures("anywhere")
def test_weights_that_lose_precision_have_direct_convolutions(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    layers = weights.random_weights().layers
    exact = extractor(layers, 32, 4).raw(images(2))
    wrong = [dataclasses.replace(each, input=each.input * np.float32(1.001)) for each in winograd.FILTERINGS]
    monkeypatch.setattr(winograd, "FILTERINGS", wrong)
    network = extractor(layers, 32, 8)
    with caplog.at_level(logging.WARNING, "pipeline"):
        network.check_precision(images(2))
    assert caplog.text.count("computing by direct ones") == 1
    assert convolutions(network) == (13, 0)
    for tap, values in network.raw(images(2)).items():
        assert values.tobytes() == exact[tap].tobytes(), tap


@pytest.mark.usefixtures("anywhere")
def test_memory_that_does_not_suffice_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.common.errors import UserError

    def fail(*shape: int) -> np.ndarray:
        raise MemoryError

    network = extractor(weights.random_weights().layers, 32, 8)
    monkeypatch.setattr(winograd, "_aligned", fail)
    for attempt in (lambda: network(images(1)), lambda: extractor(weights.random_weights().layers, 32, 8)):
        with pytest.raises(UserError, match=r"Memory does not suffice for batches of 8 .* smaller --batch-size"):
            attempt()


def test_it_is_chosen_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in bfloat16, for few images, without AVX2, or with a BLAS that leaves half of AVX-512 idle."""
    from pipeline.network.layouts import choose_layout

    def direct(size: int = 64, batch: int = 128, precision: str = "float32", on: str = "CPU:0") -> bool:
        return choose_layout(size, batch, precision=precision, device=on).direct

    haswell = {"avx2", "fma"}
    kind = "Haswell"
    monkeypatch.setattr(device, "flags", lambda: haswell)
    monkeypatch.setattr(
        winograd, "ThreadpoolController", lambda: type("Found", (), {"info": lambda _: [{"architecture": kind}]})()
    )
    assert not direct()
    assert not direct(224, 8)
    assert direct(batch=4)
    assert direct(batch=100)
    assert direct(precision="bfloat16")
    assert direct(on="GPU:0")
    monkeypatch.setattr(device, "flags", lambda: haswell | device.AVX512)
    assert direct()
    kind = "SkylakeX"
    assert not direct()
    monkeypatch.setattr(device, "flags", set)
    assert direct()

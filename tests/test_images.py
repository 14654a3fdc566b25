"""One image file to pixels: every format, every fault, and the shape that the network takes."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pictures
import pytest
from conftest import ROOT
from PIL import Image, ImageCms

from pipeline.data import decode
from pipeline.data.dataset import Unusable
from pipeline.data.options import ImageOptions


@pytest.mark.parametrize("name", list(pictures.USABLE))
def test_every_format_becomes_rgb(name: str) -> None:
    content = pictures.USABLE[name](7)
    assert not decode.fault_of_head(name, content[:16], len(content))
    found = decode.decode(content)
    assert found.dtype == np.uint8
    assert found.shape == ((40, 60, 3) if "rotated" in name else (40, 40, 3))
    expected = pictures.pixels(7, 40, 60) if "rotated" in name else pictures.pixels(7)
    difference = np.abs(found.astype(float) - expected).mean()
    if name in ("rgb.png", "rgb.bmp", "rgb.tif", "png-called.jpg"):
        assert difference == 0
    elif "rotated" in name or name in ("rgb.jpg", "rgb.webp", "animated.webp", "cmyk.tiff", "cmyk.jpg"):
        assert difference < 8, "the colours, the orientation and the first frame are right"


@pytest.mark.parametrize("name", ["grey16.png", "grey16.tiff", "float.tiff"])
def test_deep_greys_keep_their_grey(name: str) -> None:
    found = decode.decode(pictures.USABLE[name](3))
    expected = np.repeat(pictures.pixels(3)[..., :1], 3, axis=2)
    np.testing.assert_array_equal(found, expected)


def test_transparency_shows_white() -> None:
    expected = 0.5 * pictures.pixels(5) + 0.5 * 255
    assert np.abs(decode.decode(pictures.USABLE["alpha.png"](5)) - expected).max() <= 1.5
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([9, 9, 9, 200, 0, 0])
    transparent = pictures.encode(palette, "PNG", transparency=0)
    assert (decode.decode(transparent) == 255).all()


def test_cmyk_goes_through_its_profile() -> None:
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain = Image.fromarray(pictures.pixels(1)).convert("CMYK")
    misfit = pictures.encode(plain, "JPEG", icc_profile=srgb, quality=95)
    assert np.abs(decode.decode(misfit).astype(float) - pictures.pixels(1)).mean() < 8, (
        "a profile of RGB is passed over"
    )


@pytest.mark.parametrize("name", list(pictures.FAULTS))
def test_every_fault_is_named(name: str) -> None:
    make, word = pictures.FAULTS[name]
    content = make(1)
    fault = decode.fault_of_head(name, content[:16], len(content))
    if not fault:
        with pytest.raises(Unusable) as caught:
            decode.decode(content, ImageOptions())
        fault = str(caught.value)
    assert word in fault


@pytest.mark.parametrize("name", list(pictures.USABLE))
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_the_same_whether_made_in_one_piece_or_in_many(
    name: str, orientation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = pictures.USABLE[name](3)
    if name in ("rgb.png", "grey16.png", "cmyk.jpg"):
        exif = Image.Exif()
        exif[0x0112] = orientation
        image = Image.open(io.BytesIO(content)).resize((59, 137))
        content = pictures.encode(image, str(Image.open(io.BytesIO(content)).format), exif=exif)
    elif orientation > 1:
        return
    shown = [
        None,
        *(ImageOptions(image_size=32, fit=fit) for fit in ("squash", "crop", "pad")),
        ImageOptions(fit="crop"),
    ]
    whole = [decode.decode(content, how) for how in shown]
    monkeypatch.setattr(decode, "_BAND_PIXELS", 500)
    for how, expected in zip(shown, whole, strict=True):
        np.testing.assert_array_equal(decode.decode(content, how), expected)


@pytest.mark.parametrize("mode", ["I;16", "RGBA", "F"])
def test_the_memory_of_all_images_together_is_bounded(tmp_path: Path, mode: str) -> None:
    """Six files at once, by six threads: each takes 35 or 70 MB, and they may have 134 MB together."""
    path = tmp_path / ("large.tiff" if mode == "F" else "large.png")
    Image.new(mode, (4200, 4200)).save(path, compress_level=1)
    code = f"""if True:
        from concurrent.futures import ThreadPoolExecutor
        from pathlib import Path
        from pipeline.common import memory
        from pipeline.data import decode
        from pipeline.data.image_files import FoundFiles
        from pipeline.data.options import ImageOptions
        decode.MAX_MEMORY = 1 << 27
        files = FoundFiles([Path({str(path)!r})] * 6)
        images = lambda row: files.decode(row, ImageOptions(fit="crop"))
        images(0)
        before = memory.proc_fields(memory.STATUS)["VmHWM"]
        with ThreadPoolExecutor(6) as pool:
            assert [image.shape for image in pool.map(images, range(6))] == [(64, 64, 3)] * 6
        print(before, memory.proc_fields(memory.STATUS)["VmHWM"])
    """
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    one, six = (int(number) / 1024 for number in done.stdout.replace("kB", "").split())  # MB
    assert one < 160
    assert six < 260


def test_an_image_that_takes_more_memory_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pictures.bomb(9000, 9000)
    monkeypatch.setattr(decode, "free_memory", lambda: 150_000_000)
    with pytest.raises(Unusable, match=r"decoding it takes 81\.0 MB of memory; at most 75\.0 MB may be taken here"):
        decode.decode(content, ImageOptions())


def test_a_large_image_of_a_known_size_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(Unusable, match=r"400000000 pixels\) exceeds limit of 178956970"):
        decode.decode(pictures.bomb())


@pytest.mark.parametrize("fit", ["squash", "crop", "pad"])
def test_square_images_that_fit_are_left_alone(fit: str) -> None:
    for side in (8, 32, 64):
        image = pictures.pixels(2, side, side)
        np.testing.assert_array_equal(
            decode.decode(pictures.encode(Image.fromarray(image), "PNG"), ImageOptions(fit=fit)), image
        )
        assert decode.resized_to_fit(image, ImageOptions(fit=fit)) is image


@pytest.mark.parametrize(
    ("fit", "height", "width", "shape"),
    [
        ("squash", 200, 100, (64, 64)), ("squash", 20, 100, (64, 64)), ("squash", 20, 40, (20, 40)),
        ("crop", 200, 100, (64, 64)), ("crop", 20, 100, (20, 20)), ("crop", 300, 300, (64, 64)),
        ("pad", 200, 100, (64, 64)), ("pad", 20, 40, (40, 40)), ("pad", 1, 5000, (64, 64)),
    ],
)  # fmt: skip
def test_fits(fit: str, height: int, width: int, shape: tuple[int, int]) -> None:
    image = pictures.pixels(4, height, width)
    found = decode.decode(pictures.encode(Image.fromarray(image), "PNG"), ImageOptions(fit=fit))
    assert found.shape == (*shape, 3)
    np.testing.assert_array_equal(decode.resized_to_fit(image, ImageOptions(fit=fit)), found)
    if fit == "pad" and height != width:
        assert tuple(found[0, 0]) == decode.PAD_COLOUR


def test_cropping_takes_the_middle() -> None:
    image = np.zeros((10, 30, 3), np.uint8)
    image[:, 10:20] = 200
    assert (decode.resized_to_fit(image, ImageOptions(fit="crop")) == 200).all()


def test_reducing_does_not_alias() -> None:
    """A fine checkerboard becomes grey, not a pattern."""
    board = np.indices((512, 512)).sum(axis=0) % 2 * 255
    image = np.repeat(board[..., None], 3, axis=2).astype(np.uint8)
    found = decode.decode(pictures.encode(Image.fromarray(image), "PNG"), ImageOptions()).astype(int)
    assert np.abs(found - 128).max() < 12


def test_large_jpegs_are_reduced_while_they_are_decoded() -> None:
    image = Image.fromarray(pictures.pixels(6, 1600, 1200))
    content = pictures.encode(image, "JPEG", quality=92)
    exact = np.asarray(Image.open(io.BytesIO(content)).resize((64, 64), Image.Resampling.BICUBIC)).astype(float)
    assert np.abs(decode.decode(content, ImageOptions()) - exact).mean() < 1.5

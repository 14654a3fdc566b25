"""Arrays that somebody prepared already are told from pixels."""

from __future__ import annotations

import numpy as np
import pictures
import pytest
from conftest import DATA_DIR

from pipeline.common.errors import UserError
from pipeline.data import datasets, pixel_check

PIXELS = np.stack([pictures.pixels(seed, 32, 32) for seed in range(8)])
FLOATS = PIXELS.astype(np.float32)
MEAN_BGR = np.array([103.939, 116.779, 123.68], np.float32)


@pytest.mark.parametrize(
    ("images", "cause"),
    [
        (FLOATS / 255, "divided by 255"),
        ((FLOATS / 255).astype(np.float64), "divided by 255"),
        ((PIXELS >= 255).astype(np.uint8) | (PIXELS > 250), "divided by 255|type bool"),
        ((PIXELS > 100).astype(np.uint8), "divided by 255 and cast back"),
        ((FLOATS - FLOATS.mean()) / FLOATS.std(), "standardised"),
        ((FLOATS / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], "standardised"),
        (FLOATS / 127.5 - 1, "scaled to -1 to 1"),
        (FLOATS[..., ::-1] - MEAN_BGR, "preprocess_input.*BGR"),
        (FLOATS - MEAN_BGR[::-1], "order they are whole numbers"),
        (FLOATS - FLOATS.mean(), "mean was probably subtracted"),
        (FLOATS, r"astype\('uint8'\) loses nothing"),
        (FLOATS + 0.25, "not whole numbers|beyond 255"),
        (PIXELS.astype(np.int64), r"astype\('uint8'\)"),
        (PIXELS.astype(np.uint16) * 257, "16-bit"),
        (FLOATS * np.nan, "not finite"),
        (PIXELS.transpose(0, 3, 1, 2), "channels-first"),
        (PIXELS[..., 0], "grey"),
        (PIXELS[..., :1], "grey"),
        (PIXELS[0], "one image"),
        (np.concatenate([PIXELS, PIXELS[..., :1]], axis=3), "alpha"),
        (PIXELS.reshape(8, -1), "reshape"),
        (np.zeros(5, np.uint8), "does not look like images"),
        ([image.transpose(2, 0, 1) for image in PIXELS], r"X\[0\].*channels-first"),
        ([PIXELS[0], FLOATS[1] / 255], r"X\[1\].*divided by 255"),
        (np.full((2, 4, 4, 3), "a"), "no pixels"),
    ],
)
def test_the_likely_cause_is_named(images, cause: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError, match=cause) as caught:
        pixel_check.check_images(images)
    assert "uint8" in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [PIXELS, list(PIXELS), PIXELS[:, :3, :3], np.zeros((3, 8, 8, 3), np.uint8), PIXELS[..., ::-1], PIXELS[:0]],
    ids=["array", "list", "3 by 3", "black", "few in BGR", "none"],
)
def test_pixels_pass(images) -> None:  # type: ignore[no-untyped-def]
    assert len(pixel_check.check_images(images)) == len(images)


def test_masks_pass_when_one_insists() -> None:
    pixel_check.check_images((PIXELS > 100).astype(np.uint8), guess=False)


@pytest.mark.data
def test_photographs_in_bgr_are_told_and_none_in_rgb_is_accused() -> None:
    train = datasets.load_dataset("cifar10", DATA_DIR, download=False).splits["train"]
    images = np.asarray(train.images[:6000])
    for start in range(0, 6000, 1000):
        pixel_check.check_images(images[start : start + 1000])
        with pytest.raises(UserError, match=r"look BGR.*guard=False"):
            pixel_check.check_images(images[start : start + 1000, ..., ::-1])
    for label in range(10):  # skies and seas, too
        pixel_check.check_images(images[train.labels[:6000] == label])

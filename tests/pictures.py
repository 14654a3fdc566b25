"""Image files of every kind and fault, made on the spot."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image


def pixels(seed: int, height: int = 40, width: int = 40) -> np.ndarray:
    """A smooth picture that differs from seed to seed: uint8 (height, width, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def png(seed: int, height: int = 40, width: int = 40) -> bytes:
    return encode(Image.fromarray(pixels(seed, height, width)), "PNG")


def bomb(width: int = 20_000, height: int = 20_000) -> bytes:
    """A PNG of 400 million pixels in half a megabyte at most."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    packer = zlib.compressobj(9)
    data = b"".join(packer.compress(bytes(width + 1)) for _ in range(height // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def animated(seed: int, kind: str = "GIF") -> bytes:
    frames = [Image.fromarray(pixels(seed + i)) for i in range(3)]
    return encode(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)


def rotated(seed: int) -> bytes:
    """A JPEG that a camera held sideways: EXIF orientation 6."""
    image = Image.fromarray(pixels(seed, 40, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    return encode(image.rotate(90, expand=True), "JPEG", quality=95, exif=exif)


def _of(mode: str, kind: str) -> Callable[[int], bytes]:
    return lambda seed: encode(Image.fromarray(pixels(seed)).convert(mode), kind)


def _alpha(seed: int) -> bytes:
    image = Image.fromarray(pixels(seed)).convert("RGBA")
    image.putalpha(128)
    return encode(image, "PNG")


def _grey16(kind: str) -> Callable[[int], bytes]:
    def make(seed: int) -> bytes:
        grey = pixels(seed)[..., 0].astype(np.uint16) * 257
        return encode(Image.fromarray(grey), kind)

    return make


def _float_tiff(seed: int) -> bytes:
    return encode(Image.fromarray(pixels(seed)[..., 0].astype(np.float32) / 255), "TIFF")


USABLE: dict[str, Callable[[int], bytes]] = {
    "rgb.png": png,
    "grey.png": _of("L", "PNG"),
    "palette.png": _of("P", "PNG"),
    "bilevel.png": _of("1", "PNG"),
    "alpha.png": _alpha,
    "greyalpha.png": _of("LA", "PNG"),
    "grey16.png": _grey16("PNG"),
    "rgb.jpg": _of("RGB", "JPEG"),
    "grey.jpeg": _of("L", "JPEG"),
    "cmyk.jpg": _of("CMYK", "JPEG"),
    "rotated.JPG": rotated,
    "rgb.webp": _of("RGB", "WEBP"),
    "rgb.bmp": _of("RGB", "BMP"),
    "palette.gif": _of("P", "GIF"),
    "animated.gif": animated,
    "animated.webp": lambda seed: animated(seed, "WEBP"),
    "rgb.tif": _of("RGB", "TIFF"),
    "grey16.tiff": _grey16("TIFF"),
    "float.tiff": _float_tiff,
    "cmyk.tiff": _of("CMYK", "TIFF"),
    "lab.tiff": lambda seed: encode(_lab(seed), "TIFF"),
    "png-called.jpg": png,
}


def _lab(seed: int) -> Image.Image:
    return Image.merge("LAB", [Image.fromarray(plane) for plane in np.moveaxis(pixels(seed), 2, 0)])


# Name: content, and a word of the reason that must be given.
FAULTS: dict[str, tuple[Callable[[int], bytes], str]] = {
    "empty.jpg": (lambda seed: b"", "empty"),
    "text.jpg": (lambda seed: b"This is no image, number %d." % seed, "no image"),
    "truncated.jpg": (lambda seed: _of("RGB", "JPEG")(seed)[:-120], "damaged"),
    "truncated.png": (lambda seed: png(seed)[:-400], "damaged"),
    "header-only.webp": (lambda seed: b"RIFF\x10\0\0\0WEBPVP8 " + bytes([seed % 256]) * 8, "damaged"),
    "bomb.png": (lambda seed: bomb() + b"%d" % seed, "absurdly large"),
    "notes.txt": (lambda seed: b"Notes %d" % seed, "wrong extension"),
    "image.dat": (png, "rename it to .png"),
    "document.pdf": (lambda seed: b"%PDF-1.4 " + bytes([seed % 256]), "wrong extension"),
}


def fill(folder: Path, classes: tuple[str, ...] = ("ant", "bee"), count: int = 5, seed: int = 0) -> None:
    """A class folder with plain PNGs for each class."""
    for number, label in enumerate(classes):
        (folder / label).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (folder / label / f"{i:03d}.png").write_bytes(png(seed + 1000 * number + i))


def tones(folder: Path, count: int) -> None:
    """Two classes that any features tell apart: dark pictures and light ones."""
    for label, level in (("dark", 40), ("light", 200)):
        (folder / label).mkdir(parents=True)
        for i in range(count):
            image = np.clip(pixels(i, 40, 50 + i) / 8 + level, 0, 255).astype(np.uint8)
            Image.fromarray(image).save(folder / label / f"{i:02d}.png")

"""One image file or array to the pixels that the network is to see: decoded, upright, RGB, of the right shape.

Nothing in a file is trusted: its format is told by its first bytes, its size is checked before it is decoded, and
whatever a decoder raises on hostile bytes is one named fault of that one file.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import PurePath
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import (
    ExifTags,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from pipeline.common.memory import free_memory
from pipeline.common.progress import format_bytes
from pipeline.data.dataset import Unusable
from pipeline.data.options import ImageOptions

# Extensions of each format that is read, and what its files begin with.
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
_FORMAT_OF = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions}
_MAGIC = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF....WEBP)|(?P<BMP>BM)|(?P<GIF>GIF8[79]a)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])",
    re.DOTALL,
)
MAGIC_BYTES = 16
MAX_FILE_BYTES = 1 << 30  # larger than this is no picture to classify
MAX_MEMORY = 1 << 30  # bytes that all images being decoded may take together
_MUCH_MEMORY = 1 << 26  # bytes; what one image needs beyond it must be free
_BAND_PIXELS = 1 << 18  # that are converted at a time, in up to 32 bytes each
_EMPTY = "empty: it has no bytes"

# ImageNet's mean red, green and blue, rounded: what VGG16's preprocessing makes (nearly) zero of, so that padding
# is neither light nor dark to the network. Keras' imagenet_utils, "caffe" mode.
PAD_COLOUR = (124, 117, 104)

# The memory of an image in one block, not in many: what has 32 MiB or more comes from the system and goes back to it
# when it is freed, of smaller blocks glibc keeps some for every thread.
# https://pillow.readthedocs.io/en/stable/reference/block_allocator.html
Image.core.set_block_size(MAX_MEMORY)  # type: ignore[attr-defined]

# What Pillow warns of (odd metadata, many pixels) is either harmless or a fault that is listed with its file.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def sniffed_format(head: bytes) -> str | None:
    """Name of the image format that a file's first bytes tell; None when they are no such format's."""
    found = _MAGIC.match(head)
    return found and found.lastgroup


def extension_format(name: str) -> str | None:
    """Name of the image format that a file's extension tells; None when it is not an image's."""
    return _FORMAT_OF.get(PurePath(name).suffix.lower())


def too_many_bytes(size: int) -> str:
    """Why a file of so many bytes is not read."""
    return f"absurdly large: {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"


def fault_of_head(name: str, head: bytes, size: int) -> str:
    """Why a file can be no image, by its name, its first bytes and its size in bytes; "" when it may be one."""
    sniffed, extension = sniffed_format(head), PurePath(name).suffix
    if size == 0:
        return _EMPTY
    if size > MAX_FILE_BYTES:
        return too_many_bytes(size)
    if extension_format(name) is None:
        what = f"its extension {extension} is not an image's" if extension else "it has no extension"
        if sniffed:
            return f"wrong extension: {what}, though it holds a {sniffed} image; rename it to {EXTENSIONS[sniffed][0]}"
        known = ", ".join(extensions[0] for extensions in EXTENSIONS.values())
        return f"wrong extension: {what}; read are {known}"
    if sniffed is None:
        return f"no image, whatever its extension {extension} says: it begins with {head[:12]!r}"
    return ""


def decode(source: bytes | IO[bytes], how: ImageOptions | None = None) -> NDArray[np.uint8]:
    """Decode an image file to RGB, uint8 (h, w, 3), at its own size, or as `resized_to_fit` makes it.

    Grey becomes three equal channels, 16 bits become 8 (of grey by dividing by 257, of colours as their upper byte),
    what is transparent shows white, CMYK goes through its embedded profile where it has one, and the orientation that a
    camera recorded is applied. Of an animation the first frame counts, of a TIFF the first page.

    The source is all its bytes, or a binary file, which spares their memory. Raises Unusable when it is empty, no
    image, damaged, has absurdly many pixels, or takes more memory than may be had.
    """
    with _opened(source, how.image_size if how else None) as pixels:
        if how is not None:
            return np.array(_shaped(pixels, how).convert("RGB"))
        width, height = pixels.size
        result = np.empty((height, width, 3), np.uint8)
        for top, band in pixels.bands((0, 0, width, height)):
            result[top : top + band.height] = np.asarray(band.convert("RGB"))
        return result


def thumbnail(source: bytes | IO[bytes], side: int) -> NDArray[np.uint8]:
    """Decode an image file to at most so many pixels a side, its proportions kept; raises Unusable."""
    with _opened(source, side) as pixels:
        return np.array(_inside(pixels, side).convert("RGB"))


@contextmanager
def _opened(source: bytes | IO[bytes], image_size: int | None) -> Iterator[_Pixels]:
    """Decode a file, once there is the memory for it; whatever goes wrong in the block is `Unusable`."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    stream.seek(0)
    head = stream.read(MAGIC_BYTES)
    stream.seek(0)
    if not head:
        raise Unusable(_EMPTY)
    if sniffed_format(head) is None:
        raise Unusable(f"no image: it begins with {head[:12]!r}")
    try:
        with Image.open(stream, formats=list(EXTENSIONS)) as image:
            width, height = image.size
            if image_size is not None:
                # Lets libjpeg halve while it decodes, to no less than twice of what is needed.
                image.draft(None, (2 * image_size, 2 * image_size))
            needed = _memory_needed(image, width * height) + (0 if image_size else 3 * width * height)
            with _in_flight.hold(needed):
                try:
                    image.load()
                    yield _Pixels(image)
                finally:
                    Image.Image.close(image)  # frees the pixels while they are counted; the file is the caller's
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        raise Unusable(f"absurdly large: {str(error).rstrip('.')}") from error
    except UnidentifiedImageError as error:
        raise Unusable("damaged: its header is of no image that can be read") from error
    except MemoryError as error:
        raise Unusable("absurdly large: decoding it takes more memory than there is") from error
    except Exception as error:  # decoders raise whatever hostile bytes make them: OSError, SyntaxError, struct.error …
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"damaged: {reason}") from error


# --- memory -----------------------------------------------------------------------------------


def _memory_needed(image: ImageFile.ImageFile, whole: int) -> int:
    """Bytes that decoding takes, at most: Pillow's pixels, and what the format's library holds beside them.

    ``whole`` is the number of pixels in the file, of which fewer may have been asked for.
    """
    depth = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    needed = image.width * image.height * depth
    if isinstance(image, JpegImagePlugin.JpegImageFile) and "progressive" in image.info:
        sampling = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
        needed += 2 * whole * sum(sampling) // max(sampling)  # the coefficients of all scans, 16 bits each
    elif isinstance(image, WebPImagePlugin.WebPImageFile):
        needed += 12 * whole  # two canvases and their copy, RGBA
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        if tags.get(ExifTags.Base.Orientation, 1) != 1:
            needed *= 2  # Pillow turns it by itself
        if image.tile and image.tile[0].codec_name == "libtiff":
            rows = min(tags.get(TiffImagePlugin.ROWSPERSTRIP, image.height), image.height)
            piece = tags.get(TiffImagePlugin.TILEWIDTH, image.width) * tags.get(TiffImagePlugin.TILELENGTH, rows)
            needed += piece * (4 + sum(tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))) // 8)
    elif image.tile and image.tile[0].codec_name == "bmp_rle":
        needed += 2 * whole
    return needed


class _Budget:
    """Memory that all threads share: who needs more than is left waits for others, or, beyond all of it, is refused."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0

    @contextmanager
    def hold(self, needed: int) -> Iterator[None]:
        """Have so many bytes for the block, or raise Unusable."""
        limit = MAX_MEMORY
        if needed > _MUCH_MEMORY:
            free = free_memory()
            limit = MAX_MEMORY if free is None else min(MAX_MEMORY, free // 2)
        if needed > max(limit, _MUCH_MEMORY):
            raise Unusable(
                f"absurdly large: decoding it takes {format_bytes(needed)} of memory; at most {format_bytes(limit)} "
                f"may be taken here"
            )
        with self._changed:
            self._changed.wait_for(lambda: self._taken == 0 or self._taken + needed <= limit)
            self._taken += needed
        try:
            yield
        finally:
            with self._changed:
                self._taken -= needed
                self._changed.notify_all()


_in_flight = _Budget()


# --- pixels -----------------------------------------------------------------------------------

_Box = tuple[int, int, int, int]  # left, top, right, bottom


class _Pixels:
    """A decoded image, upright and with 8 bits a channel, grey or RGB.

    It is made so band by band: a large one never has a copy.
    """

    def __init__(self, image: Image.Image) -> None:
        self._image = image
        self._method, self._sideways, self._mirror_x, self._mirror_y = _TURNS[_orientation(image)]
        self._convert = _converter(image)
        self.size = (image.height, image.width) if self._sideways else image.size

    def bands(self, box: _Box, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
        """A part of the image from top to bottom, a multiple of so many rows at a time, each with its first row."""
        left, top, right, bottom = box
        rows = max(1, _BAND_PIXELS // (right - left) // multiple) * multiple
        for start in range(top, bottom, rows):
            yield start - top, self._crop((left, start, right, min(start + rows, bottom)))

    def _crop(self, box: _Box) -> Image.Image:
        width, height = self._image.size
        left, top, right, bottom = (box[1], box[0], box[3], box[2]) if self._sideways else box
        if self._mirror_x:
            left, right = width - right, width - left
        if self._mirror_y:
            top, bottom = height - bottom, height - top
        band = self._image.crop((left, top, right, bottom))
        return self._convert(band if self._method is None else band.transpose(self._method))

    def resized(self, box: _Box, size: tuple[int, int]) -> Image.Image:
        """A part of the image at another size: what `Image.resize` makes of it, reducing_gap being 3."""
        width, height = box[2] - box[0], box[3] - box[1]
        by = (int(width / size[0] / 3.0) or 1, int(height / size[1] / 3.0) or 1)
        pieces = ((top // by[1], band.reduce(by)) for top, band in self.bands(box, by[1]))
        _, reduced = next(pieces)
        if reduced.height * by[1] < height:
            first, reduced = reduced, Image.new(reduced.mode, (reduced.width, -(-height // by[1])))
            for top, piece in chain([(0, first)], pieces):
                reduced.paste(piece, (0, top))
        if size == (width, height):
            return reduced
        return reduced.resize(size, Image.Resampling.BICUBIC, (0, 0, width / by[0], height / by[1]))


# By EXIF's orientation: what sets an image upright, whether its rows are columns then, and which of its axes,
# as they are before, are mirrored: https://www.cipa.jp/std/documents/e/DC-X008-Translation-2019-E.pdf, 4.6.4.
_TURNS: dict[int, tuple[Image.Transpose | None, bool, bool, bool]] = {
    1: (None, False, False, False),
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, True, False),
    3: (Image.Transpose.ROTATE_180, False, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, False, True),
    5: (Image.Transpose.TRANSPOSE, True, False, False),
    6: (Image.Transpose.ROTATE_270, True, False, True),
    7: (Image.Transpose.TRANSVERSE, True, True, True),
    8: (Image.Transpose.ROTATE_90, True, True, False),
}


# --- the shape that the network takes ---------------------------------------------------------


def resized_to_fit(image: NDArray[np.uint8], how: ImageOptions) -> NDArray[np.uint8]:
    """Give an image, RGB, uint8 (h, w, 3), the shape in which the network's graph takes it, neither side too large.

    What is larger than the network's size on a side is reduced here, with antialiasing; what is not is left as it
    is, and enlarged in the graph. A square image of at most that size is returned unchanged. One that is not square
    has its sides scaled each by its own factor (``fit`` squash), its middle taken (crop), or its shorter side filled
    up, on both ends, with ImageNet's mean colour (pad).
    """
    height, width = image.shape[:2]
    if max(height, width) <= how.image_size and (height == width or how.fit == "squash"):
        return image
    return np.array(_shaped(_Pixels(Image.fromarray(np.ascontiguousarray(image))), how))


def _shaped(pixels: _Pixels, how: ImageOptions) -> Image.Image:
    width, height = pixels.size
    box = (0, 0, width, height)
    if how.fit == "pad" and width != height:
        image = _inside(pixels, how.image_size)
        side = max(image.size)
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        return square
    if how.fit == "crop":
        width = height = min(width, height)
        left, top = (pixels.size[0] - width) // 2, (pixels.size[1] - height) // 2
        box = (left, top, left + width, top + height)
    size = how.image_size
    return pixels.resized(box, (width, height) if max(width, height) <= size else (size, size))


def _inside(pixels: _Pixels, side: int) -> Image.Image:
    """An image reduced to so many pixels on its longer side, if it has more."""
    width, height = pixels.size
    scale = min(1.0, side / max(width, height))
    return pixels.resized((0, 0, width, height), (max(1, round(width * scale)), max(1, round(height * scale))))


def _orientation(image: Image.Image) -> int:
    """The orientation recorded in the EXIF data, 1 to 8; faulty EXIF data is no fault of the pixels."""
    try:
        found = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # noqa: BLE001 - as in _opened, but here the image is there already
        return 1
    return found if found in _TURNS else 1


def _converter(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """How to make any part of an image, of any of Pillow's modes, RGB or grey of 8 bits."""
    if image.mode.startswith("I;16"):
        return lambda part: _from_grey(np.asarray(part).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        low, factor = _scale(image)
        return lambda part: _from_grey((np.asarray(part).astype(np.float64) - low) * factor)
    if image.has_transparency_data:
        return _on_white
    if image.mode in ("L", "RGB"):
        return lambda part: part
    transform = _profile(image)
    if transform is not None:
        return transform.apply
    return lambda part: part.convert("RGB")


def _on_white(part: Image.Image) -> Image.Image:
    pixels = part.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")


def _profile(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """To sRGB from CMYK, by the profile embedded in it, and from CIELAB; None where there is no (usable) profile."""
    try:
        if image.mode == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif image.mode == "CMYK" and image.info.get("icc_profile"):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        else:
            return None
        return ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), image.mode, "RGB")
    except ImageCms.PyCMSError:
        return None  # a profile that is damaged, or of another colour space


def _from_grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8))


def _scale(image: Image.Image) -> tuple[float, float]:
    """What is black and by what to multiply to 255, in grey of 32 bits, whose white no format fixes.

    White is 1, 255 or 65,535 if all values lie below, else the largest.
    """
    low, high = np.inf, -np.inf
    rows = max(1, _BAND_PIXELS // image.width)
    for top in range(0, image.height, rows):
        values = np.asarray(image.crop((0, top, image.width, min(top + rows, image.height))))
        if not np.isfinite(values).all():
            raise Unusable("damaged: it has pixels that are no finite number")
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low >= 0 and high <= 65_535:
        return 0.0, 255 / (1.0 if high <= 1 else 255.0 if high <= 255 else 65_535.0)
    return low, 255 / (high - low)

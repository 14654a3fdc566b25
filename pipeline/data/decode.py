"""One image file or array to the pixels that the network is to see: decoded, upright, RGB, of the right shape.

Nothing in a file is trusted: its format is told by its first bytes, its size is checked before it is decoded, and
whatever a decoder raises on hostile bytes is one named fault of that one file.
"""

from __future__ import annotations

import io
import re
import threading
import warnings
from contextlib import nullcontext
from pathlib import PurePath

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from pipeline.data.dataset import Unusable

# Extensions of each format that is read.
EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
}
_FORMAT_OF = {extension: name for name, extensions in EXTENSIONS.items() for extension in extensions}
_MAGIC = (
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("PNG", re.compile(rb"\x89PNG\r\n\x1a\n")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("BMP", re.compile(rb"BM")),
    ("GIF", re.compile(rb"GIF8[79]a")),
    ("TIFF", re.compile(rb"II[*+]\0|MM\0[*+]")),
)
MAGIC_BYTES = 16
MAX_FILE_BYTES = 1 << 30  # a file is read whole; larger than this is no picture to classify
MAX_PIXELS = 178_956_970  # Pillow's own limit: half a gigabyte as RGB
_MANY_PIXELS = 30_000_000  # from here on one image at a time is decoded, so that threads do not multiply its memory
_one_large = threading.Lock()
_EMPTY = "empty: it has no bytes"

# ImageNet's mean red, green and blue, rounded: what VGG16's preprocessing makes (nearly) zero of, so that padding
# is neither light nor dark to the network. Keras' imagenet_utils, "caffe" mode.
PAD_COLOUR = (124, 117, 104)

# What Pillow warns of (odd metadata, many pixels) is either harmless or a fault that is listed with its file.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def told_format(head: bytes) -> str | None:
    """Name of the image format that a file's first bytes tell; None when they are no such format's."""
    return next((name for name, magic in _MAGIC if magic.match(head)), None)


def named_format(name: str) -> str | None:
    """Name of the image format that a file's extension tells; None when it is not an image's."""
    return _FORMAT_OF.get(PurePath(name).suffix.lower())


def too_many_bytes(size: int) -> str:
    """Why a file of so many bytes is not read."""
    return f"absurdly large: {size:,} bytes; at most {MAX_FILE_BYTES:,} are read"


def fault_of_head(name: str, head: bytes, size: int) -> str:
    """Why a file can be no image, by its name, its first bytes and its size in bytes; "" when it may be one."""
    told, extension = told_format(head), PurePath(name).suffix
    if size == 0:
        return _EMPTY
    if size > MAX_FILE_BYTES:
        return too_many_bytes(size)
    if named_format(name) is None:
        what = f"its extension {extension} is not an image's" if extension else "it has no extension"
        if told:
            return f"wrong extension: {what}, though it holds a {told} image; rename it to {EXTENSIONS[told][0]}"
        known = ", ".join(extensions[0] for extensions in EXTENSIONS.values())
        return f"wrong extension: {what}; read are {known}"
    if told is None:
        return f"no image, whatever its extension {extension} says: it begins with {head[:12]!r}"
    return ""


def decode(content: bytes, image_size: int | None = None, fit: str = "squash") -> NDArray[np.uint8]:
    """Decode an image file.

    Grey becomes three equal channels, 16 bits become 8 (of grey by dividing by 257, of colours as their upper byte),
    what is transparent shows white, CMYK goes through its embedded profile where it has one, and the orientation that a
    camera recorded is applied. Of an animation the first frame counts, of a TIFF the first page.

    Parameters
    ----------
    content : bytes
        The whole file.
    image_size, fit
        As for `fitted`; an image_size of None leaves the image at its own size.

    Returns
    -------
    ndarray, uint8 (h, w, 3)
        RGB.

    Raises
    ------
    Unusable
        When it is empty, no image, damaged, or has absurdly many pixels.
    """
    if not content:
        raise Unusable(_EMPTY)
    if told_format(content[:MAGIC_BYTES]) is None:
        raise Unusable(f"no image: it begins with {content[:12]!r}")
    try:
        with Image.open(io.BytesIO(content), formats=list(EXTENSIONS)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:  # unless Pillow, at its own limit, was faster
                raise Unusable(_too_many(width * height))
            with _one_large if width * height > _MANY_PIXELS else nullcontext():
                if image_size is not None:
                    # Lets libjpeg halve while it decodes, to no less than twice of what is needed.
                    image.draft(None, (2 * image_size, 2 * image_size))
                image.load()
                pixels = _rgb(_upright(image))
                return np.array(pixels if image_size is None else _shaped(pixels, image_size, fit))
    except Unusable:
        raise
    except Image.DecompressionBombError as error:
        found = re.search(r"\d+", str(error))
        raise Unusable(_too_many(int(found[0]) if found else MAX_PIXELS + 1)) from error
    except UnidentifiedImageError as error:
        raise Unusable("damaged: its header is of no image that can be read") from error
    except Exception as error:  # decoders raise whatever hostile bytes make them: OSError, SyntaxError, struct.error …
        if isinstance(error, MemoryError):
            raise Unusable("absurdly large: decoding it takes more memory than there is") from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise Unusable(f"damaged: {reason}") from error


def thumbnail(content: bytes, side: int) -> NDArray[np.uint8]:
    """Decode an image file to at most so many pixels a side, its proportions kept; raises Unusable."""
    pixels = Image.fromarray(decode(content))
    pixels.thumbnail((side, side))
    return np.array(pixels)


def fitted(image: NDArray[np.uint8], image_size: int, fit: str) -> NDArray[np.uint8]:
    """Give an image the shape in which the network's graph takes it.

    What is larger than the network's size on a side is reduced here, with antialiasing; what is not is left as it
    is, and enlarged in the graph. A square image of at most that size is returned unchanged.

    Parameters
    ----------
    image : ndarray, uint8 (h, w, 3)
        RGB.
    image_size : int
        Height and width, in pixels, at which the network sees it.
    fit : {'squash', 'crop', 'pad'}
        What happens to an image that is not square: its sides are scaled each by its own factor; its middle is
        taken; or the shorter side is filled up, on both ends, with ImageNet's mean colour.

    Returns
    -------
    ndarray, uint8 (h', w', 3)
        Neither side is larger than image_size.
    """
    height, width = image.shape[:2]
    if max(height, width) <= image_size and (height == width or fit == "squash"):
        return image
    return np.array(_shaped(Image.fromarray(np.ascontiguousarray(image)), image_size, fit))


def _shaped(image: Image.Image, image_size: int, fit: str) -> Image.Image:
    width, height = image.size
    if fit == "crop" and width != height:
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    elif fit == "pad" and width != height:
        # Reduced first, so that a strip of 20,000 × 1 pixels does not become a square of 400 million.
        scale = min(1.0, image_size / max(width, height))
        inner = (max(1, round(width * scale)), max(1, round(height * scale)))
        if inner != image.size:
            image = image.resize(inner, Image.Resampling.BICUBIC, reducing_gap=3.0)
        side = max(inner)
        square = Image.new("RGB", (side, side), PAD_COLOUR)
        square.paste(image, ((side - inner[0]) // 2, (side - inner[1]) // 2))
        return square
    if max(image.size) > image_size:
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return image


def _too_many(pixels: int) -> str:
    return f"absurdly large, perhaps a decompression bomb: {pixels:,} pixels; at most {MAX_PIXELS:,} are decoded"


def _upright(image: Image.Image) -> Image.Image:
    """Apply the orientation recorded in the EXIF data; faulty EXIF data is no fault of the pixels."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - as in decode, but here the image is there already
        return image


def _rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB."""
    if image.mode.startswith("I;16"):
        return _from_grey(np.asarray(image).astype(np.float64) / 257)
    if image.mode in ("I", "F"):
        return _from_grey(_to_8_bits(np.asarray(image).astype(np.float64)))
    if image.has_transparency_data:
        pixels = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", pixels.size, "white"), pixels).convert("RGB")
    if image.mode == "RGB":
        return image
    return _by_profile(image) or image.convert("RGB")


def _by_profile(image: Image.Image) -> Image.Image | None:
    """CMYK by the profile embedded in it, and CIELAB; None where there is no (usable) profile."""
    try:
        if image.mode == "LAB":
            profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        elif image.mode == "CMYK" and image.info.get("icc_profile"):
            profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
        else:
            return None
        return ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    except ImageCms.PyCMSError:
        return None  # a profile that is damaged, or of another colour space


def _from_grey(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.rint(values).clip(0, 255).astype(np.uint8)).convert("RGB")


def _to_8_bits(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Grey of 32 bits, whose white no format fixes: 1, 255 or 65,535 if all values lie below, else the largest."""
    if not np.isfinite(values).all():
        raise Unusable("damaged: it has pixels that are no finite number")
    low, high = float(values.min()), float(values.max())
    if low >= 0 and high <= 65_535:
        white = 1.0 if high <= 1 else 255.0 if high <= 255 else 65_535.0
        return values * (255 / white)
    return (values - low) * (255 / (high - low))

"""One photo, from untrusted bytes to an upright RGB picture; no Ray, no torch.

Rules
- At most `MAX_FILE_BYTES` per file and `max_pixels` per picture (read from the header, before
  pixels are decoded); moving pictures are refused.
- EXIF orientation is applied; malformed EXIF is ignored.
- RGB: transparency onto white; 16 bits and floats scaled to 8; CMYK, LAB and pictures with an ICC
  profile go to sRGB through LittleCMS where the profile is usable, else by the plain conversion;
  palettes and grey are expanded.
- The shorter side must be at least a quarter of the training resolution (and 32 pixels), the longer
  side at most four times the shorter.
"""

from __future__ import annotations

import hashlib
import io
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dreamfleet.errors import SubjectSetError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 256 * 2**20
MIN_SIDE = 32
MAX_ASPECT = 4.0
TURNED = range(2, 9)  # EXIF orientations other than upright; cameras also write 0: unknown
THUMBNAIL = 16
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
UNSUPPORTED_SUFFIXES = frozenset(
    {".heic", ".heif", ".avif", ".raw", ".cr2", ".nef", ".dng", ".svg", ".jxl"}
)


@dataclass(frozen=True)
class UprightPhoto:
    """A usable photo."""

    image: Image.Image  # RGB, upright
    width: int  # of the upright original, pixels
    height: int
    notes: tuple[str, ...]  # what was done to it that a user may want to know


@dataclass(frozen=True)
class Fingerprint:
    """What two pictures of the same photo have in common."""

    phash: int  # 64 bits
    thumbnail: np.ndarray  # uint8 [16, 16, 3]


def content_hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def read_photo(data: bytes, *, max_pixels: int, resolution: int) -> UprightPhoto:
    """Decode and check one photo.

    Args:
        data: the file's bytes.
        max_pixels: pictures with more pixels are refused before they are decoded.
        resolution: side of the training picture in pixels.

    Raises:
        SubjectSetError: with the reason only (the caller knows the file's name).
    """
    from PIL import Image

    if not data:
        raise SubjectSetError("empty file (0 bytes)")
    if len(data) > MAX_FILE_BYTES:
        raise SubjectSetError(
            f"{len(data) / 2**20:.0f} MiB; at most {MAX_FILE_BYTES // 2**20} MiB are read"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own bomb warning comes later than our limit
        try:
            picture = Image.open(io.BytesIO(data), formats=FORMATS)
        except Image.DecompressionBombError as error:
            raise SubjectSetError(
                f"too many pixels; at most {max_pixels:,} are decoded (data.max_pixels)"
            ) from error
        except Exception as error:
            raise SubjectSetError(_not_a_picture(data)) from error
        _check_header(picture, max_pixels, resolution)
        return _decode(picture)


def _check_header(picture: Image.Image, max_pixels: int, resolution: int) -> None:
    width, height = picture.size
    if width * height > max_pixels:
        raise SubjectSetError(
            f"{width}x{height} is {width * height:,} pixels; at most {max_pixels:,} are "
            "decoded (data.max_pixels)"
        )
    smallest = max(MIN_SIDE, resolution // 4)
    if min(width, height) < smallest:
        raise SubjectSetError(
            f"{width}x{height} is too small; the shorter side must be at least {smallest} pixels"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise SubjectSetError(f"{width}x{height} is a strip; crop it to at most {MAX_ASPECT:g}:1")
    # MPO: a camera's JPEG with a preview as second picture; the first one is the photo.
    if picture.format not in ("MPO", "JPEG") and _moves(picture):
        raise SubjectSetError(f"a moving or many-page {picture.format}; give single pictures")


def _moves(picture: Image.Image) -> bool:
    try:
        return bool(getattr(picture, "is_animated", False))
    except Exception:
        return False  # a broken second frame; the first one decides


def _decode(picture: Image.Image) -> UprightPhoto:
    from PIL import ImageOps

    notes: list[str] = []
    try:
        picture.load()
    except Exception as error:
        raise SubjectSetError(f"truncated or corrupt {picture.format} ({_short(error)})") from error
    try:
        upright = ImageOps.exif_transpose(picture)
    except Exception:
        upright = picture
        notes.append("malformed EXIF ignored")
    if upright.size != picture.size or upright is not picture and _orientation(picture) in TURNED:
        notes.append("turned upright by its EXIF orientation")
    try:
        rgb = to_rgb(upright, notes)
    except Exception as error:
        raise SubjectSetError(
            f"mode {picture.mode} cannot be converted to RGB ({_short(error)})"
        ) from error
    return UprightPhoto(rgb, rgb.width, rgb.height, tuple(notes))


def _orientation(picture: Image.Image) -> int | None:
    try:
        return picture.getexif().get(0x0112)
    except Exception:
        return None


def to_rgb(picture: Image.Image, notes: list[str] | None = None) -> Image.Image:
    """8-bit sRGB by the rules of this module; appends what it did to `notes`."""
    from PIL import Image

    said = notes if notes is not None else []
    profile = picture.info.get("icc_profile")
    if picture.mode == "P":
        picture = picture.convert("RGBA" if "transparency" in picture.info else "RGB")
    elif picture.mode in ("I", "F") or picture.mode.startswith("I;16"):
        picture = _to_eight_bits(picture)
        said.append("scaled to 8 bits")
    elif picture.mode in ("LA", "La", "PA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if picture.mode == "RGBA":
        opaque = picture.convert("RGB")
        alpha = picture.getchannel("A")
        opaque = _to_srgb(opaque, profile, said)
        if np.asarray(alpha).min() < 255:
            said.append("transparency laid onto white")
        return Image.composite(opaque, Image.new("RGB", picture.size, "white"), alpha)
    return _to_srgb(picture, profile, said)


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey pictures of 16 or 32 bits or floats, as 8-bit grey: 65535 (or 1.0, where nothing is
    above) becomes 255.
    """
    from PIL import Image

    values = np.nan_to_num(np.asarray(picture, dtype=np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    top = float(values.max(initial=0.0))
    if picture.mode == "F" and top <= 1.0:
        full = 1.0
    elif picture.mode in ("F", "I") and top <= 255.0:
        full = 255.0
    else:
        full = 65535.0 if top <= 65535.0 else top
    return Image.fromarray(np.clip(np.rint(values * (255.0 / full)), 0, 255).astype(np.uint8), "L")


def _to_srgb(picture: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    from PIL import ImageCms

    if profile or picture.mode == "LAB":
        try:
            source = (
                ImageCms.ImageCmsProfile(io.BytesIO(profile))
                if profile
                else ImageCms.createProfile("LAB")
            )
            target = ImageCms.createProfile("sRGB")
            grey_or_rgb = (
                picture if picture.mode in ("RGB", "CMYK", "LAB", "L") else picture.convert("RGB")
            )
            converted = ImageCms.profileToProfile(grey_or_rgb, source, target, outputMode="RGB")
            if converted is not None:
                if "srgb" not in ImageCms.getProfileDescription(source).lower():
                    notes.append("converted from its ICC profile to sRGB")
                return converted
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            notes.append("unusable ICC profile ignored")
    if picture.mode == "CMYK":
        notes.append("converted from CMYK")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def fingerprint(image: Image.Image) -> Fingerprint:
    """Perceptual hash (ImageHash) and a tiny thumbnail."""
    import imagehash
    from PIL import Image

    bits = imagehash.phash(image).hash.reshape(-1)
    thumbnail = np.asarray(
        image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX), dtype=np.uint8
    )
    return Fingerprint(int("".join("1" if bit else "0" for bit in bits), 2), thumbnail)


def shrink(image: Image.Image, resolution: int) -> Image.Image:
    """The picture with its shorter side at `resolution` pixels: what any square crop needs, and no
    more.
    """
    from PIL import Image

    if min(image.size) == resolution:
        return image
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    return image.resize((size[0], size[1]), Image.Resampling.LANCZOS)


def to_png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def from_png(data: bytes) -> Image.Image:
    from PIL import Image

    image = Image.open(io.BytesIO(data), formats=("PNG",))
    image.load()
    return image.convert("RGB")


def _not_a_picture(data: bytes) -> str:
    head = data[:512].lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page saved under a picture's name; download the picture itself"
    if data[4:12] in (b"ftypheic", b"ftypheix", b"ftypmif1", b"ftypavif"):
        return "HEIC or AVIF; convert it to JPEG or PNG"
    return f"not a picture that can be read (expected one of {', '.join(FORMATS)})"


def _short(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:100]

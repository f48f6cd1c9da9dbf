"""One photo: what is refused, and how the rest becomes upright RGB."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from dreamfleet.data.photos import UprightPhoto, fingerprint, read_photo, shrink, to_rgb
from dreamfleet.errors import SubjectSetError
from tests.unit.data.helpers import encoded, picture


def read(data: bytes, max_pixels: int = 1_000_000, resolution: int = 64) -> UprightPhoto:
    return read_photo(data, max_pixels=max_pixels, resolution=resolution)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"hello", "not a picture"),
        (encoded(picture(), "JPEG")[:-300], "truncated or corrupt"),
        (encoded(picture(width=64, height=4000)), "strip"),
        (encoded(picture(width=16, height=16)), "too small"),
        (b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00", "HEIC"),
    ],
)
def test_unusable_files_are_refused_with_a_reason(data: bytes, message: str) -> None:
    with pytest.raises(SubjectSetError, match=message):
        read(data)


def test_one_pixel_strip_is_refused() -> None:
    with pytest.raises(SubjectSetError, match="1x4000"):
        read(encoded(picture(width=1, height=4000)))


@pytest.mark.parametrize("side", [5_000, 20_000, 100_000])
def test_bomb_is_refused_from_its_header(side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    with pytest.raises(SubjectSetError, match="pixels; at most"):
        read(png)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_moving_pictures_are_refused(kind: str) -> None:
    frames = [picture(seed) for seed in range(3)]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(SubjectSetError, match="moving or many-page"):
        read(data)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_ends_upright(orientation: int) -> None:
    upright = picture(width=96, height=64)
    undo = {
        2: 0,
        3: 3,
        4: 1,
        5: 5,
        6: 2,
        7: 6,
        8: 4,
    }  # the transposition that a camera's orientation asks for
    stored = upright
    if orientation != 1:
        inverse = {0: 0, 1: 1, 3: 3, 5: 5, 6: 6, 2: 4, 4: 2}
        wanted = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}[orientation]
        stored = upright.transpose(Image.Transpose(inverse[wanted]))
    assert set(undo) == set(range(2, 9))
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo = read(encoded(stored, "PNG", exif=exif.tobytes()))
    np.testing.assert_array_equal(np.asarray(photo.image), np.asarray(upright))


@pytest.mark.parametrize(("orientation", "turned"), [(0, False), (1, False), (6, True), (9, False)])
def test_only_what_was_turned_is_said_to_be(orientation: int, turned: bool) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert bool(read(encoded(picture(), "JPEG", exif=exif)).notes) == turned


def test_malformed_exif_is_ignored() -> None:
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\x7f garbage")
    assert read(data).width == 80


def test_transparency_is_laid_onto_white() -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 0))
    photo = read(encoded(image))
    assert photo.image.getpixel((5, 5)) == (255, 255, 255)
    assert "white" in " ".join(photo.notes)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "1", "RGBA", "CMYK", "I;16", "YCbCr"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((64, 64), 32768, np.uint16))
    else:
        image = picture().convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    photo = read(encoded(image, kind))
    assert photo.image.mode == "RGB"
    if mode == "I;16":
        assert abs(int(np.asarray(photo.image).mean()) - 128) <= 1


def test_float_pictures_are_scaled() -> None:
    assert np.asarray(
        to_rgb(Image.fromarray(np.full((8, 8), 0.5, np.float32)))
    ).mean() == pytest.approx(128, abs=1)


def test_icc_profile_is_converted_and_a_broken_one_ignored() -> None:
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert read(encoded(picture(), icc_profile=lab)).image.mode == "RGB"
    photo = read(encoded(picture(), icc_profile=b"not a profile"))
    assert "ICC" in " ".join(photo.notes)


def test_shrink_keeps_what_a_square_crop_needs() -> None:
    assert shrink(picture(width=300, height=100), 64).size == (192, 64)


def test_fingerprints_of_a_resaved_copy_agree() -> None:
    original = picture(width=256, height=192)
    copy = Image.open(io.BytesIO(encoded(original.resize((128, 96)), "JPEG", quality=60)))
    one, other, different = (
        fingerprint(image.convert("RGB")) for image in (original, copy, picture(9))
    )
    assert (one.phash ^ other.phash).bit_count() <= 6
    assert (one.phash ^ different.phash).bit_count() > 6

"""The pipeline's functions in this process, with a stand-in base; Ray runs the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dreamfleet.config import RunConfig
from dreamfleet.data import subject_set
from dreamfleet.data.cache import Cache
from dreamfleet.data.crops import crop_square, gradient_energy
from dreamfleet.data.duplicates import duplicate_groups, weights
from dreamfleet.data.photos import UprightPhoto, fingerprint, read_photo
from dreamfleet.data.sources import PhotoSource
from dreamfleet.data.subject_set import PhotoSettings, PhotoStore, SubjectSet
from dreamfleet.data.subjects import requested_subjects
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.progress import SilentProgress
from tests.unit.data.helpers import StubVae, config_for, encoded, picture, write_photos

Prepare = Callable[[RunConfig], SubjectSet]


@pytest.fixture
def vae(monkeypatch: pytest.MonkeyPatch) -> StubVae:
    stub = StubVae()
    monkeypatch.setattr(subject_set, "load_for_encoding", lambda settings: stub)
    return stub


@pytest.fixture
def prepare(tmp_path: Path, vae: StubVae) -> Prepare:
    def run(config: RunConfig) -> SubjectSet:
        (request,) = requested_subjects(config)
        assert request.found is not None
        settings = PhotoSettings(
            64, config.data.crop, config.data.max_pixels, "embedded", "vae-hash"
        )
        store = PhotoStore(Cache(tmp_path / "cache", 2**30), settings)
        store.prepare([request.found], None, SilentProgress())
        return store.assemble(request)

    return run


def test_photos_become_a_subject_set(tmp_path: Path, prepare: Prepare) -> None:
    subject = prepare(config_for(write_photos(tmp_path / "Rex")))
    assert subject.latent_mean.shape == (3, 3, 16, 16)
    assert subject.prompts == ("a photo of sks dog",) * 3
    assert [photo.weight for photo in subject.photos] == [1.0, 1.0, 1.0]
    np.testing.assert_allclose(subject.flipped_mean, subject.latent_mean[..., ::-1], atol=1e-6)


def test_second_time_comes_from_the_cache_and_is_equal(
    tmp_path: Path, prepare: Prepare, vae: StubVae
) -> None:
    folder = write_photos(tmp_path / "Rex")
    first = prepare(config_for(folder))
    encoded_before = vae.encoded
    second = prepare(config_for(folder))
    assert vae.encoded == encoded_before
    np.testing.assert_array_equal(first.latent_mean, second.latent_mean)
    assert first.content_key == second.content_key
    (folder / "0.png").write_bytes(encoded(picture(77)))
    third = prepare(config_for(folder))
    assert vae.encoded == encoded_before + 2  # the changed photo and its mirror image
    assert third.content_key != first.content_key


def test_bad_photos_are_listed_and_good_ones_used(tmp_path: Path, prepare: Prepare) -> None:
    folder = write_photos(tmp_path / "Rex", 1)
    (folder / "html.jpg").write_bytes(b"<html>404</html>")
    (folder / "cut.jpg").write_bytes(encoded(picture(4), "JPEG")[:-300])
    subject = prepare(config_for(folder))
    assert len(subject.photos) == 1
    assert {item.name: item.reason.split()[0] for item in subject.skipped} == {
        "html.jpg": "a",
        "cut.jpg": "truncated",
    }
    assert any("html.jpg" in line for line in subject.summary())


def test_no_usable_photo_is_an_error_with_every_reason(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "html.jpg").write_bytes(b"<html>404</html>")
    with pytest.raises(SubjectSetError, match=r"html.jpg: a web page"):
        prepare(config_for(tmp_path))


def test_copies_are_weighted_once(tmp_path: Path, prepare: Prepare) -> None:
    folder = write_photos(tmp_path / "Rex", 2)
    original = picture(0, 160, 128)
    (folder / "a.png").write_bytes(encoded(original))
    (folder / "b.png").write_bytes(encoded(original))
    (folder / "c.jpg").write_bytes(encoded(original.resize((320, 256)), "JPEG", quality=70))
    subject = prepare(config_for(folder))
    weight = {photo.name: photo.weight for photo in subject.photos}
    assert weight["1.png"] == 1.0
    assert sum(weight[name] for name in ("0.png", "a.png", "b.png", "c.jpg")) == pytest.approx(1.0)
    assert subject.duplicates == (("0.png", "a.png", "b.png", "c.jpg"),)


def test_caption_without_the_token_is_warned_of(tmp_path: Path, prepare: Prepare) -> None:
    folder = write_photos(tmp_path / "Rex", 2)
    (folder / "0.txt").write_text("a dog on grass")
    (folder / "1.txt").write_text("a {token} {class} on grass")
    subject = prepare(config_for(folder))
    assert subject.prompts == ("a dog on grass", "a sks dog on grass")
    assert len(subject.warnings) == 1 and "lacks the token" in subject.warnings[0]


def test_what_befell_the_reading_is_not_kept(
    tmp_path: Path, prepare: Prepare, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A photo that could not be read, or changed meanwhile, is as good as new the next time."""
    folder = write_photos(tmp_path / "Rex", 4)
    kept: Callable[[PhotoSource], bytes] = PhotoSource.read
    reads: dict[str, int] = {}

    def second_time(source: PhotoSource) -> bytes:  # the first is for the file's hash
        reads[source.name] = reads.get(source.name, 0) + 1
        if reads[source.name] > 1 and source.name == "0.png":
            raise SubjectSetError("cannot be read (Connection reset by peer)")
        changed = reads[source.name] > 1 and source.name == "1.png"
        return encoded(picture(50)) if changed else kept(source)

    def scarce(data: bytes, **limits: int) -> UprightPhoto:
        if data == (folder / "2.png").read_bytes():
            raise MemoryError
        return read_photo(data, **limits)

    with monkeypatch.context() as patch:
        patch.setattr(PhotoSource, "read", second_time)
        patch.setattr(subject_set, "read_photo", scarce)
        subject = prepare(config_for(folder))
    assert [photo.name for photo in subject.photos] == ["3.png"]
    reasons = {item.name: item.reason for item in subject.skipped}
    assert "reset by peer" in reasons["0.png"]
    assert "changed while it was read" in reasons["1.png"]
    assert "memory" in reasons["2.png"]
    assert len(prepare(config_for(folder)).photos) == 4


def test_small_photos_are_enlarged_and_noted(tmp_path: Path, prepare: Prepare) -> None:
    (tmp_path / "small.png").write_bytes(encoded(picture(width=40, height=40)))
    subject = prepare(config_for(tmp_path))
    assert "enlarged" in subject.photos[0].notes[0]


def test_crop_finds_the_busy_side() -> None:
    image = picture(width=192, height=64)
    flat = image.copy()
    flat.paste((128, 128, 128), (60, 0, 192, 64))  # detail only on the left
    left = np.asarray(crop_square(flat, 64, gradient_energy))
    np.testing.assert_array_equal(left, np.asarray(flat.crop((0, 0, 64, 64))))
    middle = np.asarray(crop_square(flat, 64))
    np.testing.assert_array_equal(middle, np.asarray(flat.crop((64, 0, 128, 64))))


def test_different_pictures_are_no_duplicates() -> None:
    prints = [fingerprint(picture(seed)) for seed in range(20)]
    groups = duplicate_groups([str(seed) for seed in range(20)], prints)
    assert groups == list(range(20))
    assert weights([0, 0, 2, 0]) == [pytest.approx(1 / 3)] * 2 + [1.0, pytest.approx(1 / 3)]

"""Prior sets: keyed by all they depend on, made once, also when two runs ask at the same time."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dreamfleet.data import prior_set, subject_set
from dreamfleet.data.cache import Cache
from dreamfleet.data.photos import to_png
from dreamfleet.data.preparation import Preparation
from dreamfleet.data.prior_set import PriorRequest, generated_prior_set, own_prior_set
from dreamfleet.data.subject_set import PhotoSettings, PhotoStore
from dreamfleet.data.subjects import SubjectRequest
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.progress import SilentProgress
from tests.unit.data.helpers import StubVae, config_for, encoded, picture, write_photos

PATIENCE_S = 60.0
REQUEST = PriorRequest("embedded", "hash", "a photo of dog", 5, 2, 3.0, 64, 0, 2, "cpu")


class StubMaker:
    """Counts what it makes, and begins once it may."""

    made: list[int] = []
    may_begin = threading.Event()

    def __init__(self, request: PriorRequest) -> None:
        self.request = request

    def make(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        assert self.may_begin.wait(PATIENCE_S)
        self.made.extend(indices)
        moments = np.full((4, 8, 8), float(indices[0]), np.float32).tobytes()
        names = ("mean", "std", "flipped_mean", "flipped_std")
        rest = {name: moments for name in names} | {"shape": "4 8 8", "png": to_png(picture())}
        return [{"index": index, **rest} for index in indices]


class Lines(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture(autouse=True)
def stub_maker(monkeypatch: pytest.MonkeyPatch) -> None:
    StubMaker.made = []
    StubMaker.may_begin.set()
    monkeypatch.setattr(prior_set, "PriorMaker", StubMaker)


def test_a_set_is_known_by_its_key_before_it_is_made(tmp_path: Path) -> None:
    prior = {"with_prior_preservation": True, "num_class_images": 2, "num_inference_steps": 2}
    config = config_for(tmp_path, prior={**prior, "guidance_scale": 3.0})
    base = SimpleNamespace(hash="hash", vae_hash="vae", resolution=64)
    preparation = Preparation(
        base=cast(Any, base),
        base_model="embedded",
        config=config,
        cache=Cache(tmp_path, 2**30),
        device="cpu",
        session=None,
        progress=SilentProgress(),
    )
    request = SubjectRequest("rex", "Rex", config, None)
    key = preparation.prior_key(request)
    assert not StubMaker.made
    found = preparation.prior_set(request)
    assert found and found.key == key and StubMaker.made
    others = [config_for(tmp_path, class_word=word, prior=config.prior) for word in ("cat", "cow")]
    cats, cows = (SubjectRequest(own.subject.class_word, "", own, None) for own in others)
    assert preparation.prepare_priors([cats, cows]) == [cats, cows]
    assert preparation.prior_set(cats) is not None
    preparation.cache.clear()
    with pytest.raises(SubjectSetError, match="a photo of cow.: gone from the cache"):
        preparation.prior_set(cows)
    without = SubjectRequest("rex", "Rex", config_for(tmp_path), None)
    assert preparation.prior_key(without) == ""


def test_made_once_then_read(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2**30)
    first = generated_prior_set(REQUEST, cache, None, SilentProgress())
    second = generated_prior_set(REQUEST, cache, None, SilentProgress())
    assert StubMaker.made == list(range(5))
    assert first.prompts == ("a photo of dog",) * 5
    np.testing.assert_array_equal(first.latent_mean, second.latent_mean)


def test_two_that_ask_at_once_share_one(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2**30)
    StubMaker.may_begin.clear()

    class Told(Lines):
        def info(self, text: str) -> None:
            super().info(text)
            if "another run is making it" in text:
                StubMaker.may_begin.set()

    def ask() -> None:
        generated_prior_set(REQUEST, cache, None, progress)

    progress = Told()
    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    assert sorted(StubMaker.made) == list(range(5))
    assert StubMaker.may_begin.is_set(), "one of them has said that it waits"


@pytest.mark.parametrize(
    "change",
    [
        {"base_hash": "other"},
        {"prompt": "a photo of cat"},
        {"count": 6},
        {"num_inference_steps": 3},
        {"guidance_scale": 1.0},
        {"resolution": 128},
        {"seed": 1},
    ],
)
def test_key_depends_on_what_the_pictures_depend_on(change: dict[str, Any]) -> None:
    assert replace(REQUEST, **change).key != REQUEST.key
    assert replace(REQUEST, batch_size=7, device="cuda").key == REQUEST.key


def test_own_class_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject_set, "load_for_encoding", lambda settings: StubVae())
    folder = write_photos(tmp_path / "class", 3)
    (folder / "0.txt").write_text("a brown {class}")
    (folder / "bad.jpg").write_bytes(encoded(picture(), "JPEG")[:-300])
    store = PhotoStore(
        Cache(tmp_path / "cache", 2**30), PhotoSettings(64, "center", 10**6, "embedded", "vae")
    )
    config = config_for("x", prior={"class_data_dir": str(folder)})
    progress = Lines()
    own = own_prior_set(config, store, None, progress)
    assert own.prompts == ("a brown dog", "a photo of dog", "a photo of dog")
    assert any("bad.jpg" in line for line in progress.lines)
    fewer = config_for("x", prior={"class_data_dir": str(folder), "num_class_images": 3})
    own_prior_set(fewer, store, None, progress)
    assert any("more than 3 photos (prior.num_class_images)" in line for line in progress.lines)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(SubjectSetError, match="it is empty"):
        own_prior_set(config_for("x", prior={"class_data_dir": str(empty)}), store, None, progress)

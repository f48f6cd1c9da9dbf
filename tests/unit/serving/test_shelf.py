"""Pictures by address: bounded in bytes and in time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from dreamfleet.serving import shelf as shelving
from dreamfleet.serving.shelf import KEPT_S, Shelf


def test_what_is_too_much_or_too_old_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelving, "PRUNE_EVERY_S", 0.0)
    shelf = Shelf(tmp_path / "pictures", max_bytes=25)
    names = []
    for age_s in (30, 20, 10):
        names.append(shelf.put(b"x" * 10, "png"))
        then = time.time() - age_s
        os.utime(shelf.folder / names[-1], (then, then))
    last = shelf.put(b"y" * 10, "webp")
    assert [shelf.get(name) is not None for name in (*names, last)] == [False, True, True, True]
    then = time.time() - KEPT_S - 1
    os.utime(shelf.folder / last, (then, then))
    assert shelf.get(last) is None and (shelf.folder / last).exists()
    shelf.put(b"z", "png")
    assert not (shelf.folder / last).exists()


def test_it_does_not_look_through_all_of_them_for_every_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    shelf = Shelf(tmp_path / "pictures")
    monkeypatch.setattr(shelf, "prune", lambda: looks.append(1))
    monkeypatch.setattr(shelving, "PRUNE_EVERY_S", 3600.0)
    for _ in range(3):
        shelf.put(b"x", "png")
    assert looks == [1]

"""The cache: whole entries or none, bounded, least recently used first out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dreamfleet.data.cache import Cache, cache_key
from dreamfleet.errors import DreamfleetError


def test_round_trip_and_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2**20)
    cache.put("photos", "k", [{"a": 1, "b": b"xyz"}])
    assert cache.get("photos", "k") == [{"a": 1, "b": b"xyz"}]
    assert cache.get("photos", "other") is None


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "photos").write_text("a file, where the folder would be")
    with pytest.raises(DreamfleetError, match=f"cache {tmp_path}: .* --cache-path or DREAMFLEET"):
        Cache(tmp_path, 2**20).put("photos", "k", [{"a": 1}])


def test_damaged_entry_is_a_miss(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 2**20)
    cache.put("photos", "k", [{"b": os.urandom(5000)}])
    path = tmp_path / "photos" / "k.parquet"
    data = bytearray(path.read_bytes())
    data[1000] ^= 0xFF
    path.write_bytes(bytes(data))
    assert cache.get("photos", "k") is None
    path.write_bytes(bytes(data[:100]))
    assert cache.get("photos", "k") is None


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 25_000)
    for index in range(3):
        cache.put("photos", f"k{index}", [{"b": os.urandom(10_000)}])
        os.utime(tmp_path / "photos" / f"k{index}.parquet", (index, index))
    cache.get("photos", "k0")  # used now
    assert cache.prune() == 1
    assert [cache.has("photos", f"k{index}") for index in range(3)] == [True, False, True]
    prediction = cache.teacher_folder / "ab" / "cd.safetensors"
    prediction.parent.mkdir(parents=True)
    prediction.write_bytes(bytes(77))
    uses = {use.kind: use.entries for use in cache.info()}
    assert uses == {"photos": 2, "prior_sets": 0, "teacher": 1}
    before = sum(use.bytes for use in cache.info())
    assert cache.clear() == before > 77
    assert not prediction.exists() and not any(use.entries for use in cache.info())
    assert cache.get("photos", "k0") is None


def test_keys_depend_on_every_part() -> None:
    assert cache_key(a=1, b="x") == cache_key(b="x", a=1)
    assert len({cache_key(a=1), cache_key(a=1.5), cache_key(a="1"), cache_key(b=1)}) == 4

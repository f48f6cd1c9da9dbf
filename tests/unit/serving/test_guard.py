"""The guard in front of the application: what it lets through without a key."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.serving.guard import PUBLIC, Guard
from dreamfleet.serving.keys import KeyFile


def asked(
    keys: KeyFile | None, path: str, *, root: str = "", key: str = "", host: str = "localhost:8000"
) -> tuple[int, Any]:
    """The status, and the caller that the application behind saw."""
    callers: list[Any] = []
    sent: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        callers.append(scope["state"]["caller"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    headers = [(b"host", host.encode())]
    if key:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {"type": "http", "path": path, "root_path": root, "headers": headers}
    asyncio.run(Guard(behind, keys)(scope, receive, send))
    return sent[0]["status"], callers[0] if callers else None


@pytest.mark.parametrize("root", ["", "/images"])
@pytest.mark.parametrize(
    "path",
    ["/v1/models", "/v1/admin/refresh", "//v1/models", "/new", "/docs/", "/v1", "/studio.py"],
)
def test_what_is_not_public_needs_a_key(tmp_path: Path, root: str, path: str) -> None:
    keys = KeyFile(tmp_path / "keys.json")
    key, entry = keys.create()
    assert asked(keys, root + path, root=root) == (401, None)
    assert asked(keys, root + path, root=root, key="df-wrong") == (401, None)
    status, caller = asked(keys, root + path, root=root, key=key)
    assert status == 200 and caller.id == entry.id and not caller.may("admin")


def test_public_pages_give_no_right(tmp_path: Path) -> None:
    for path in (*PUBLIC, "/pictures/x.png"):
        status, caller = asked(KeyFile(tmp_path / "keys.json"), path)
        assert status == 200 and not caller.may("generate") and not caller.may("admin")


def test_who_has_no_key_holds_no_place_with_a_body_that_does_not_come(tmp_path: Path) -> None:
    bodies: list[Any] = []

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        bodies.append((await receive())["body"])

    async def never(*message: Any) -> Any:
        raise AssertionError("it was waited for")

    scope = {"type": "http", "path": PUBLIC[0], "headers": [(b"content-length", b"10")]}
    asyncio.run(Guard(behind, KeyFile(tmp_path / "keys.json"))(scope, never, never))
    assert bodies == [b""]


def test_without_keys_everybody_may(tmp_path: Path) -> None:
    status, caller = asked(None, "/v1/admin/refresh")
    assert status == 200 and caller.may("admin")


def test_without_keys_only_this_machines_own_names_are_answered(tmp_path: Path) -> None:
    """A page whose name was made to point at 127.0.0.1 would be of the same origin."""
    for host in ("127.0.0.1:8000", "LOCALHOST", "[::1]:8000", "[::1]"):
        assert asked(None, "/v1/models", host=host)[0] == 200
    for host in ("evil.example:8000", "127.0.0.1.evil.example", "", "localhost:8000.evil"):
        assert asked(None, "/", host=host) == (403, None)
    key = KeyFile(tmp_path / "keys.json").create()[0]
    status, _ = asked(KeyFile(tmp_path / "keys.json"), "/v1/models", key=key, host="example.org")
    assert status == 200, "keys decide there"


def test_a_damaged_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    for content in ("{", '{"keys": [{"id": "a"}]}'):
        path.write_text(content, encoding="utf-8")
        assert asked(KeyFile(path), "/v1/models", key="df-any") == (500, None)
        assert asked(KeyFile(path), "/healthz")[0] == 200

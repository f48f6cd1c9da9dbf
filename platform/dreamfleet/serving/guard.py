"""In front of everything: keys, before a body is read, and a bound on the body."""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette._utils import get_route_path

from dreamfleet.errors import first_line
from dreamfleet.serving.keys import KeyFile, Scope
from dreamfleet.serving.problems import ApiProblem, broken, no_key
from dreamfleet.serving.settings import LOOPBACK

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

log = logging.getLogger("dreamfleet.serving")

# What needs no key: pages, health, figures, and pictures, whose names are keys. All else does.
PUBLIC = ("/", "/healthz", "/metrics", "/docs", "/openapi.json", "/studio.css", "/studio.js")
PUBLIC_BELOW = "/pictures/"
MAX_BODY_BYTES = 64 * 2**10
BODY_WITHIN_S = 30.0


@dataclass(frozen=True)
class Caller:
    """Who asks; `id` is the key's, which is not secret."""

    id: str
    scope: str

    def may(self, scope: Scope) -> bool:
        """Whether the key's scope covers this."""
        return self.scope in (scope, "admin")


ANYBODY = Caller("anybody", "admin")
NOBODY = Caller("nobody", "")  # without a key, where none is needed


class Guard:
    """An ASGI application in front of another.

    Args:
        app: behind it.
        keys: None: everybody on this machine may do everything.
    """

    def __init__(self, app: App, keys: KeyFile | None) -> None:
        self.app, self._keys = app, keys

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Pass a request on, with its caller in `scope["state"]`, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            caller = self._caller(scope)
            # Public paths take none; whoever has no key holds no place while one does not come.
            body = b"" if caller is NOBODY else await _body(scope, receive)
        except ApiProblem as problem:
            await _answer(problem, send)
            return
        state = {**scope.get("state", {}), "caller": caller}
        await self.app({**scope, "state": state}, _replayed(body, receive), send)

    def _caller(self, scope: Any) -> Caller:
        if self._keys is None:
            # A page of another name that was made to point at this machine has no business here.
            if _host(scope) not in LOOPBACK:
                raise ApiProblem(
                    403,
                    "without keys only requests to 127.0.0.1 or localhost are answered",
                    "wrong_host",
                    kind="permission_error",
                )
            return ANYBODY
        path = get_route_path(scope)  # as the routes see it: without a prefix that Serve adds
        if path in PUBLIC or path.startswith(PUBLIC_BELOW):
            return NOBODY
        given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
        kind, _, key = given.partition(" ")
        try:
            found = self._keys.find(key.strip()) if kind.lower() == "bearer" else None
        except Exception as error:  # a damaged file lets nobody in
            log.error("keys cannot be read: %s", first_line(error))
            raise broken("the keys cannot be read") from error
        if found is None:
            raise no_key()
        return Caller(found.id, found.scope)


def _host(scope: Any) -> str:
    """The name that a request was sent to, without its port."""
    given = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
    return re.sub(r":\d*$", "", given).strip("[]").lower()


async def _body(scope: Any, receive: Receive) -> bytes:
    """The whole body: small, and there in time."""
    length = dict(scope["headers"]).get(b"content-length", b"0")
    if length.isdigit() and int(length[:20]) > MAX_BODY_BYTES:
        raise _too_large()
    try:
        return await asyncio.wait_for(_read(receive), BODY_WITHIN_S)
    except TimeoutError as error:
        raise ApiProblem(408, "the body did not come in time", "timeout") from error


async def _read(receive: Receive) -> bytes:
    parts, total = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ApiProblem(400, "the client went away", "disconnected")
        part = message.get("body", b"")
        total += len(part)
        if total > MAX_BODY_BYTES:
            raise _too_large()
        parts.append(part)
        if not message.get("more_body"):
            return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message; then whatever comes, a disconnect above all."""
    sent = False

    async def again() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _too_large() -> ApiProblem:
    return ApiProblem(
        413, f"the body is larger than {MAX_BODY_BYTES} bytes; send less", "body_too_large"
    )


async def _answer(problem: ApiProblem, send: Send) -> None:
    content = json.dumps(problem.body()).encode()
    headers = {
        "Content-Type": "application/json",
        "Content-Length": str(len(content)),
        **problem.headers(),
    }
    encoded = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content})

"""`dreamfleet query`: ask a running service for pictures."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any

from dreamfleet.config import environment
from dreamfleet.errors import BadInputError, DreamfleetError, first_line
from dreamfleet.runtime.progress import Progress

KEY_VARIABLE = "DREAMFLEET_API_KEY"
TIMEOUT_S = 600.0
COMPLETED = "image_generation.completed"
PROGRESS = "image_generation.progress"


def query(
    address: str, wish: Mapping[str, Any], *, key: str | None = None, progress: Progress
) -> list[tuple[int, bytes]]:
    """Seeds and encoded pictures, in the order of their seeds.

    Args:
        address: of the service, e.g. http://127.0.0.1:8000.
        wish: fields of `POST /v1/images/generations`.
        key: default: DREAMFLEET_API_KEY.

    Raises:
        BadInputError: the service refused the request.
        DreamfleetError: it cannot be reached, is busy, or failed.
    """
    found: dict[int, tuple[int, bytes]] = {}
    steps = {index: 0 for index in range(int(wish.get("n", 1)))}
    with progress.stage("pictures", None) as stage:
        for event in _events(address, {**wish, "stream": True}, key or environment(KEY_VARIABLE)):
            if event.get("type") == PROGRESS:
                steps[event["index"]] = event["step"]
                stage.update(sum(steps.values()), "steps")
            elif event.get("type") == COMPLETED:
                found[event["index"]] = (event["seed"], base64.b64decode(event["b64_json"]))
    if len(found) < len(steps):
        raise DreamfleetError(f"{address}: the answer broke off; ask again")
    return [found[index] for index in sorted(found)]


def _events(address: str, body: Mapping[str, Any], key: str | None) -> Iterator[dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    url = f"{address.rstrip('/')}/v1/images/generations"
    if not url.startswith(("http://", "https://")):
        raise BadInputError(f"--url {address}: expected e.g. http://127.0.0.1:8000")
    with _opened(urllib.request.Request(url, json.dumps(body).encode(), headers), address) as lines:
        try:
            for line in lines:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        raise DreamfleetError(str(event["error"]["message"]))
                    yield event
        except (OSError, http.client.HTTPException) as error:  # e.g. the service was ended
            raise DreamfleetError(
                f"{address}: the answer broke off ({error!r}); ask again"
            ) from error


def _opened(request: urllib.request.Request, address: str) -> Any:
    """The answer, if it is one."""
    try:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        with error:
            raise _refusal(error.code, error.read()) from error
    except http.client.InvalidURL as error:
        raise BadInputError(
            f"--url {address}: {first_line(error)}; expected e.g. http://127.0.0.1:8000"
        ) from error
    except (OSError, http.client.HTTPException) as error:
        raise DreamfleetError(
            f"{address} cannot be reached ({error}); is `dreamfleet serve` running there?"
        ) from error


def _refusal(status: int, content: bytes) -> DreamfleetError:
    try:
        text = str(json.loads(content)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        text = f"HTTP {status}"
    if status == 401:
        text = f"{text}; give it as {KEY_VARIABLE}"
    retryable = status == 429 or status >= 500
    return DreamfleetError(text) if retryable else BadInputError(text)

"""A service in this process: a real engine and the real application, without Ray."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dreamfleet.serving.admission import FairQueue
from dreamfleet.serving.api import build_api
from dreamfleet.serving.backend import LocalBackend
from dreamfleet.serving.catalogue import Catalogue, FolderSource
from dreamfleet.serving.figures import Figures
from dreamfleet.serving.guard import Guard
from dreamfleet.serving.keys import KeyFile
from dreamfleet.serving.recording import recorded
from dreamfleet.serving.replica import EngineReplica
from dreamfleet.serving.service import ImageService
from dreamfleet.serving.settings import ServeSettings
from dreamfleet.serving.shelf import Shelf

STARTED_WITHIN_S = 300.0


def local_application(
    engine: EngineReplica,
    adapters: Path,
    keys: KeyFile | None,
    shelf: Path,
    *,
    room: int = 4,
    settings: ServeSettings | None = None,
) -> tuple[Guard, ImageService]:
    """The application, and the service behind it; `room` pictures at once, as many wait.

    Args:
        settings: say where it records itself (default: nowhere), and its public address.
    """
    service = ImageService(
        LocalBackend(engine),
        lambda base_hash: Catalogue(FolderSource(adapters), base_hash),
        FairQueue(capacity=room, max_waiting=room, max_per_key=2 * room),
        Figures("test"),
        refresh_s=3600,
        pictures_per_replica=room,
    )
    own = settings or ServeSettings(adapters=str(adapters))
    around = recorded(service, own)
    return build_api(service, keys, Shelf(shelf), around, own.public_url), service


@contextlib.contextmanager
def listening(app: Any) -> Iterator[str]:
    """An application on a free port of this machine, ready; gives its address."""
    import urllib.request

    import uvicorn

    taken = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
    thread = threading.Thread(target=server.run, args=([taken],), daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{taken.getsockname()[1]}"
    deadline = time.monotonic() + STARTED_WITHIN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{address}/healthz", timeout=5).close()
            break
        time.sleep(0.05)
    else:
        raise AssertionError("the service did not start")
    try:
        yield address
    finally:
        server.should_exit = True
        thread.join(STARTED_WITHIN_S)

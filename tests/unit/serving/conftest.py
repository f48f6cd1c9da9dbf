"""A service in this process: a tiny base, three adapters, a real engine, no Ray."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_adapters import write_adapters
from tests.tiny_bases import make_tiny_sd1

READY_WITHIN_S = 300.0
NAMES = ("ada", "bo", "cy")


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("bases") / "tiny")


@pytest.fixture(scope="session")
def adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared: tests that change it make a copy."""
    return write_adapters(tiny_base, tmp_path_factory.mktemp("served") / "adapters", NAMES)


@pytest.fixture(scope="session")
def engine(tiny_base: Path) -> Any:
    """One engine for all services."""
    from dreamfleet.runtime.engine_actor import EngineSource
    from dreamfleet.serving.replica import EngineReplica

    return EngineReplica(EngineSource(str(tiny_base), "cpu"), max_slots=4, num_threads=1)


@pytest.fixture
def client(engine: Any, adapters: Path, tmp_path: Path) -> Iterator[Any]:
    """An HTTP client of the application, with a key of scope admin in `client.headers`."""
    import shutil

    from starlette.testclient import TestClient

    from dreamfleet.serving.keys import KeyFile
    from tests.local_service import local_application

    own = shutil.copytree(adapters, tmp_path / "adapters")
    keys = KeyFile(tmp_path / "keys.json")
    app, service = local_application(engine, own, keys, tmp_path / "shelf")
    opened: Any = TestClient(app)
    with opened as client:
        wait_until_ready(client)
        client.headers["Authorization"] = f"Bearer {keys.create('admin')[0]}"
        client.service, client.keys, client.folder = service, keys, own
        yield client


def wait_until_ready(client: Any) -> None:
    """Until the base is loaded."""
    deadline = time.monotonic() + READY_WITHIN_S
    while client.get("/healthz").status_code != 200 and time.monotonic() < deadline:
        time.sleep(0.02)

"""One Ray and one tiny base for the whole session; every command in these tests joins this Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamfleet.config import ClusterConfig
from dreamfleet.runtime.session import RaySession, ray_session
from tests.tiny_bases import make_tiny_sd1


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of several pytest processes one runs all tests that share the session's Ray."""
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.path).parents:
            item.add_marker(pytest.mark.integration)
            shared = "ray_running" in getattr(item, "fixturenames", ())
            item.add_marker(pytest.mark.xdist_group("ray" if shared else item.path.stem))


@pytest.fixture(scope="session")
def ray_running() -> Iterator[RaySession]:
    """A private Ray with room for two workers."""
    with ray_session(ClusterConfig(num_workers=2)) as session:
        yield session


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random base of the sd1 family: its pictures are noise, its arithmetic is real."""
    return make_tiny_sd1(tmp_path_factory.mktemp("bases") / "tiny")

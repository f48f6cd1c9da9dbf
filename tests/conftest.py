"""Every test session has its own DREAMFLEET_HOME, no network and few threads.

The environment is set before any library is imported: thread pools are sized when they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HOME_PREFIX = "dreamfleet-tests-"

# With two threads beside other busy processes torch is slower than with one: it waits in spinning
# loops.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
os.environ["DREAMFLEET_HOME"] = tempfile.mkdtemp(prefix=HOME_PREFIX)
for _name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI"):
    os.environ.pop(_name, None)


def pytest_unconfigure() -> None:
    home = Path(os.environ.get("DREAMFLEET_HOME", ""))
    if home.name.startswith(HOME_PREFIX):
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture
def fleet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A DREAMFLEET_HOME for one test."""
    home = tmp_path / "home"
    monkeypatch.setenv("DREAMFLEET_HOME", str(home))
    yield home


@pytest.fixture(scope="session")
def embedded_base() -> Path:
    """The shipped base; tests that want it are skipped where it is not built yet."""
    from dreamfleet.bases import embedded_path
    from dreamfleet.errors import BaseModelError

    try:
        return embedded_path()
    except BaseModelError as error:
        pytest.skip(f"no embedded base: {error}")

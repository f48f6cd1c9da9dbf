"""Every test session has its own DREAMFLEET_HOME, no network and few threads.

The environment is set before any library is imported: thread pools are sized when they are.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
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
for _name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL"):
    os.environ.pop(_name, None)
# For the local S3 server; set before Ray starts, so that its workers have them too.
os.environ.update(
    AWS_ACCESS_KEY_ID="testing",
    AWS_SECRET_ACCESS_KEY="testing",
    AWS_DEFAULT_REGION="us-east-1",
    AWS_EC2_METADATA_DISABLED="true",
)


def pytest_configure() -> None:
    """Hypothesis draws the same examples every time, and stops none for the time that it takes."""
    from hypothesis import settings

    settings.load_profile("ci")


def pytest_unconfigure() -> None:
    home = Path(os.environ.get("DREAMFLEET_HOME", ""))
    if home.name.startswith(HOME_PREFIX):
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return ROOT


@pytest.fixture(scope="session")
def s3_bucket() -> Iterator[Callable[[str], str]]:
    """A bucket on a local S3 server; gives the URI of a folder in it."""
    import logging
    import urllib.request

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    request = urllib.request.Request(f"http://{host}:{port}/fleet", method="PUT")
    urllib.request.urlopen(request, timeout=300).close()
    yield lambda name: f"s3://fleet/{name}?endpoint_override={host}:{port}&scheme=http"
    server.stop()


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

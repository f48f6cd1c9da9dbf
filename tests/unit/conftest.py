"""A random tiny base, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bases import FAMILIES, make_tiny_sd1


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epsilon-prediction base; read only."""
    return make_tiny_sd1(tmp_path_factory.mktemp("tiny_epsilon"))


@pytest.fixture(scope="session")
def tiny_v_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-prediction base with zero terminal SNR; read only."""
    folder = tmp_path_factory.mktemp("tiny_v")
    return make_tiny_sd1(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.fixture(scope="session", params=list(FAMILIES))
def family_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of every family in turn; read only."""
    return FAMILIES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="session")
def tiny_sdxl_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SDXL-shaped base; read only."""
    return FAMILIES["sdxl"](tmp_path_factory.mktemp("tiny_sdxl"))


@pytest.fixture
def own_tiny_base(tmp_path: Path) -> Callable[[], Path]:
    """Makes a base that the test may damage."""
    return lambda: make_tiny_sd1(tmp_path / "base")

"""A random tiny base, written once per session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_bases import make_tiny_sd1


@pytest.fixture(scope="session")
def tiny_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An epsilon-prediction base; read only."""
    return make_tiny_sd1(tmp_path_factory.mktemp("tiny_epsilon"))


@pytest.fixture(scope="session")
def tiny_v_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A v-prediction base with zero terminal SNR; read only."""
    folder = tmp_path_factory.mktemp("tiny_v")
    return make_tiny_sd1(folder, prediction_type="v_prediction", rescale_betas_zero_snr=True)


@pytest.fixture
def own_tiny_base(tmp_path: Path) -> Callable[[], Path]:
    """Makes a base that the test may damage."""
    return lambda: make_tiny_sd1(tmp_path / "base")

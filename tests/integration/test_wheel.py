"""The wheel alone, installed outside the checkout, can draw."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
PIP = ("-m", "pip", "--quiet", "--disable-pip-version-check")
pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built with the hatchling that is installed for development: no network is needed."""
    folder = tmp_path_factory.mktemp("wheel")
    flags = ["--no-deps", "--no-build-isolation", "--wheel-dir", str(folder)]
    _run([sys.executable, *PIP, "wheel", *flags, str(ROOT)], cwd=folder)
    (built,) = folder.glob("dreamfleet-*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a fresh environment that holds the wheel and borrows our libraries.

    A .pth file appends this environment's site-packages to the path; its own .pth files, and with
    them the editable install of the checkout, are not read from there.
    """
    folder = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(folder, with_pip=False)  # putting pip into it would take longer than all the rest
    python = folder / "bin" / "python"
    into = ["--python", str(python), "install", "--no-deps", "--no-index"]
    _run([sys.executable, *PIP, *into, str(wheel)], cwd=folder)
    (own,) = (folder / "lib").glob("python*/site-packages")
    (own / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def test_carries_its_data_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "dreamfleet/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"dreamfleet"}
    assert any(name.endswith("licenses/LICENSE") for name in names)
    package = ROOT / "platform" / "dreamfleet"
    kept = [
        path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts
    ]
    assert {f"dreamfleet/{path.relative_to(package).as_posix()}" for path in kept} <= set(names)


def test_is_not_the_checkout(installed: Path, tmp_path: Path) -> None:
    shown = _run(
        [str(installed), "-c", "import dreamfleet; print(dreamfleet.__file__)"], cwd=tmp_path
    )
    assert Path(shown.strip()).is_relative_to(installed.parent.parent)


def test_draws_one_picture(installed: Path, embedded_base: Path, tmp_path: Path) -> None:
    program = installed.parent / "dreamfleet"
    flags = ["--num-images", "1", "--num-inference-steps", "4", "--seed", "3"]
    prompt = ["--prompt", "a photo of a dog", "--output-dir", "pictures"]
    _run([str(program), "generate", *prompt, *flags], cwd=tmp_path)
    with Image.open(tmp_path / "pictures" / "image_0.png") as picture:
        assert picture.size == (64, 64)
        assert len(set(picture.convert("RGB").getdata())) > 50


def _run(command: list[str], cwd: Path) -> str:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    ended = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout

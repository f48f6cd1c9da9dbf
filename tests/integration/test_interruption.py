"""Ctrl-C on the command line: a checkpoint, exit code 130, and how to go on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder
from tests.integration.recipes import prepared, recipe


@pytest.fixture
def command(tmp_path: Path, tiny_base: Path) -> Iterator[subprocess.Popen[str]]:
    """A run of its own Ray that would take much too long, as a terminal starts it."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        pytest.skip("these tests run in the background, where nobody hears Ctrl-C")
    prepared(recipe(tmp_path, tiny_base), tmp_path / "home", None)  # so that it need not
    arguments = [
        *("personalize", str(tmp_path / "Rex"), "--class-word", "dog"),
        *("--base-model", str(tiny_base), "--output-dir", str(tmp_path / "out")),
        *("--max-train-steps", "100000", "--checkpointing-steps", "100000"),
        *("--num-validation-images", "0", "--no-tracking"),
    ]
    environment = {**os.environ, "DREAMFLEET_HOME": str(tmp_path / "home")}
    process = subprocess.Popen(
        [sys.executable, "-m", "dreamfleet", *arguments],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def test_ctrl_c_leaves_a_resumable_run(tmp_path: Path, command: subprocess.Popen[str]) -> None:
    assert command.stderr is not None
    lines = []
    for line in command.stderr:
        lines.append(line)
        if "training: " in line and "loss" in line:
            break
    os.killpg(command.pid, signal.SIGINT)  # what a terminal does: to the whole group
    _, rest = command.communicate(timeout=900)
    said = "".join(lines) + rest
    assert command.returncode == 130, said
    assert "--resume" in rest
    assert "Traceback" not in said
    checkpoint = CheckpointFolder(Folder(str(tmp_path / "out" / "checkpoints"))).newest()
    assert checkpoint is not None and 0 < checkpoint.step < 100_000, said

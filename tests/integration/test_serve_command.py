"""`dreamfleet serve` and `dreamfleet launch` as programs: ready, asked, ended, nothing left."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from dreamfleet.runtime.ports import free_port
from tests.tiny_adapters import write_adapters

READY_S = 900.0
END_S = 300.0
ANSWER_S = 300.0
ROOT = Path(__file__).resolve().parents[2]


def started(arguments: list[str], home: Path) -> tuple[subprocess.Popen[str], str]:
    """The program, and the address at which it will listen."""
    port = free_port("127.0.0.1")
    command = [sys.executable, "-m", "dreamfleet", *arguments, "--port", str(port)]
    environment = {**os.environ, "DREAMFLEET_HOME": str(home)}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return process, f"http://127.0.0.1:{port}"


def wait_until_ready(process: subprocess.Popen[str], address: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=5).close()
            return
        except OSError:
            time.sleep(0.3)
    raise AssertionError("not ready")


def runs(process: psutil.Process) -> bool:
    """Whether it does; one that has ended and that nobody has asked about yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(process: subprocess.Popen[str]) -> None:
    """End a program with all that it started, if it still runs."""
    with contextlib.suppress(psutil.Error):
        parent = psutil.Process(process.pid)
        for own in [*parent.children(recursive=True), parent]:
            with contextlib.suppress(psutil.Error):
                own.kill()


def asked(address: str, key: str, body: dict[str, Any]) -> Any:
    """The open answer."""
    request = urllib.request.Request(
        f"{address}/v1/images/generations",
        json.dumps(body).encode(),
        {"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    return urllib.request.urlopen(request, timeout=ANSWER_S)


def test_serve_until_sigterm(tiny_base: Path, tmp_path: Path) -> None:
    adapters = write_adapters(tiny_base, tmp_path / "adapters", ["ada", "bo"])
    process, address = started(["serve", "--adapters", str(adapters)], tmp_path / "home")
    try:
        wait_until_ready(process, address)
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4
        key = subprocess.run(
            [sys.executable, "-m", "dreamfleet", "keys", "create"],
            env={**os.environ, "DREAMFLEET_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        body = {"model": "ada", "prompt": "a {class}", "num_inference_steps": 2}
        with asked(address, key, body) as answer:
            found: dict[str, Any] = json.load(answer)
        assert found["data"][0]["b64_json"] and found["model"] == "ada@ada"
        long = {**body, "num_inference_steps": 150, "n": 10, "stream": True}
        with asked(address, key, long) as stream:
            assert stream.readline()
            process.send_signal(signal.SIGTERM)
            output, _ = process.communicate(timeout=END_S)
    finally:
        end(process)
    assert process.returncode == 0, output
    assert "ready: http://" in output and key not in output
    deadline = time.monotonic() + END_S
    while (left := [child for child in children if runs(child)]) and time.monotonic() < deadline:
        time.sleep(0.3)  # those that were killed
    assert left == []


STUDY = ("--num-samples", "2", "--num-rungs", "1", "--images-at-end", "4", "--final-images", "4")


@pytest.mark.slow
@pytest.mark.parametrize("study", [False, True], ids=["trained", "tuned"])
def test_launch_once(tmp_path: Path, study: bool) -> None:
    photos = ROOT / "examples" / "subjects" / "dog-biscuit"
    out = tmp_path / "biscuit"
    adapter = out / "champion" if study else out
    process, _ = started(
        [
            *("launch", str(photos), "--class-word", "dog", "--output-dir", str(out)),
            *("--max-train-steps", "2", "--num-validation-images", "1", "--once", "--no-open"),
            *("--validation-prompt", "a dog", "--num-class-images", "2"),
            *(STUDY if study else ()),
        ],
        tmp_path / "home",
    )
    try:
        output, _ = process.communicate(timeout=1800)
    finally:
        end(process)
    assert process.returncode == 0, output
    assert (adapter / "served.png").is_file() and str(adapter / "served.png") in output
    assert ("alias champion" in output) == study, "served out of the registry"
    assert f"adapters: {'dog-biscuit' if study else 'biscuit'}" in output

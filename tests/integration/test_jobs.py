"""Jobs on a local head with two logical GPUs, by the lines that the README gives.

The head of the first HOME is cluster/local/up.sh, with MLflow beside it; there a demo has been run,
so there is a token already. The second HOME is a fresh one.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from dreamfleet.runtime.ports import free_port
from dreamfleet.runtime.storage import Folder
from dreamfleet.training.checkpoints import CheckpointFolder

ROOT = Path(__file__).resolve().parents[2]
WAIT_S = 1200
SMALL = (
    *("--max-train-steps", "3", "--no-with-prior-preservation", "--num-validation-images", "0"),
    *("--resources-per-worker", "CPU=1,GPU=1"),
)


def readme_lines() -> tuple[str, str]:
    """The README's line that makes a token, and the one that submits the example."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    token = re.search(r"^\(umask 077; ray get-auth-token .*?\)", text, re.MULTILINE)
    job = re.search(r"^ray job submit .*$", text, re.MULTILINE)
    assert token is not None and job is not None
    return token.group(), job.group()


TOKEN_LINE, JOB_LINE = readme_lines()


def free_ports(count: int) -> list[int]:
    found: set[int] = set()
    while len(found) < count:
        found.add(free_port("127.0.0.1"))
    return list(found)


@dataclass
class Shell:
    """A user's terminal: a HOME of its own, and the environment's programs first in PATH."""

    home: Path
    temporary: Path
    ports: list[int] = field(default_factory=lambda: free_ports(4))

    def environment(self) -> dict[str, str]:
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("RAY_", "DREAMFLEET_", "MLFLOW_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.ports[1]}",
            "RAY_PORT": str(self.ports[0]),
            "RAY_DASHBOARD_PORT": str(self.ports[1]),
            "MLFLOW_PORT": str(self.ports[2]),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_worker_niceness": "0",  # else jobs starve beside other tests
        }

    def head_options(self) -> list[str]:
        return [
            *("--num-cpus", "3", "--num-gpus", "2", "--object-store-memory", "100000000"),
            *("--temp-dir", str(self.temporary), "--dashboard-agent-listen-port"),
            str(self.ports[3]),
        ]

    def run(self, line: str) -> tuple[int, str]:
        """Exit code and everything that a command line says."""
        ended = subprocess.run(
            ["bash", "-c", line],
            cwd=ROOT,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=WAIT_S,
        )
        return ended.returncode, ended.stdout

    def job_log(self, submission_id: str) -> str:
        path = self.temporary / "session_latest" / "logs" / f"job-driver-{submission_id}.log"
        return path.read_text(encoding="utf-8") if path.is_file() else ""


@pytest.fixture
def shells(tmp_path: Path) -> Iterator[Callable[[str], Shell]]:
    """Terminals; what was started from one has ended when the test has."""
    opened: list[Shell] = []

    def shell(name: str) -> Shell:
        home = tmp_path / name
        home.mkdir()
        # Not below tmp_path: the paths of Ray's sockets must be short.
        opened.append(Shell(home, Path(tempfile.mkdtemp(prefix="df-"))))
        return opened[-1]

    yield shell
    for item in opened:
        for process in psutil.process_iter(["cmdline"]):
            if str(item.temporary) in " ".join(process.info["cmdline"] or ()):
                with contextlib.suppress(psutil.Error):
                    process.kill()
        shutil.rmtree(item.temporary, ignore_errors=True)


@contextlib.contextmanager
def running(shell: Shell, arguments: list[str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=shell.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(timeout=300)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited {WAIT_S} s for {what}"
        time.sleep(0.5)


def answers(url: str) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5) as reply:
        return bool(reply.status == 200)
    return False


def test_jobs_where_a_demo_has_run(shells: Callable[[str], Shell], embedded_base: Path) -> None:
    shell = shells("demo")
    code = "from dreamfleet.runtime.auth import token_environment; token_environment()"
    subprocess.run([sys.executable, "-c", code], env=shell.environment(), check=True)
    token = (shell.home / ".ray" / "auth_token").read_text()
    with running(shell, ["bash", "cluster/local/up.sh", *shell.head_options()]) as head:
        assert head.stdout is not None
        said = ""
        for line in head.stdout:
            said += line
            if line.startswith("Ctrl-C"):
                break
        assert "ready: Ray at" in said, said
        assert (shell.home / ".ray" / "auth_token").read_text() == token

        # prepare: photos into the cache of this HOME
        prepare = JOB_LINE.replace("train_adapter.py", "prepare_subjects.py").partition(" --output")
        code_, text = shell.run(f"{prepare[0]} --no-with-prior-preservation")
        assert code_ == 0, text
        assert "dog-biscuit: 4 photos" in text, text
        assert len(list((shell.home / ".dreamfleet/cache/photos").glob("*.parquet"))) == 4

        # train, by the README's own line; progress in the log, the run at the MLflow server
        code_, text = shell.run(f"{JOB_LINE} {' '.join(SMALL)}")
        assert code_ == 0, text
        assert "training: 3/3" in text
        out = shell.home / "biscuit"
        assert (out / "pytorch_lora_weights.safetensors").is_file()
        assert (out / "report.html").is_file()
        recorded = f"http://127.0.0.1:{shell.ports[2]}/api/2.0/mlflow/registered-models/get"
        with urllib.request.urlopen(f"{recorded}?name=dog-biscuit", timeout=300) as reply:
            assert json.load(reply)["registered_model"]["latest_versions"]


def test_jobs_from_a_fresh_home(shells: Callable[[str], Shell], embedded_base: Path) -> None:
    shell = shells("fresh")
    code, text = shell.run(TOKEN_LINE)
    assert code == 0, text
    token = shell.home / ".ray" / "auth_token"
    assert token.stat().st_mode & 0o077 == 0
    ports = ["--port", str(shell.ports[0]), "--dashboard-port", str(shell.ports[1])]
    start = ["ray", "start", "--head", "--dashboard-host", "127.0.0.1", "--block", *ports]
    with running(shell, [*start, *shell.head_options()]):
        dashboard = f"http://127.0.0.1:{shell.ports[1]}"
        wait_for(lambda: answers(f"{dashboard}/api/gcs_healthz"), "the head")
        relative = JOB_LINE.replace('"$HOME/biscuit"', "runs/biscuit")
        code, text = shell.run(relative)
        assert code == 1, text
        assert "give an absolute --output-dir" in text
        assert "exit code 2" in text

        # stop: a checkpoint is written first, so --resume goes on
        submit = "dreamfleet submit --no-wait --submission-id long personalize"
        long = f'{submit} --config examples/recipes/dog.yaml --output-dir "$HOME/long"'
        long += " --no-with-prior-preservation --max-train-steps 99999 --checkpointing-steps 99999"
        code, text = shell.run(f"{long} --num-validation-images 0 --no-tracking")
        assert code == 0, text
        wait_for(lambda: re.search(r"training: [1-9]", shell.job_log("long")), "the first steps")
        code, text = shell.run("ray job stop long")
        assert code == 0, text
        log = shell.job_log("long")
        checkpoint = CheckpointFolder(Folder(str(shell.home / "long/checkpoints"))).newest()
        assert checkpoint is not None and 0 < checkpoint.step < 99999, log
        assert f"step {checkpoint.step} is kept" in log
        assert "--resume" in log

        # the token is asked for, and what the command returned comes back through `submit`
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(f"{dashboard}/api/jobs/", timeout=300)
        draw = 'generate --adapter /no --prompt x --output-dir "$HOME/pictures"'
        code, text = shell.run(f"unset RAY_AUTH_MODE; dreamfleet submit {draw}")
        assert code == 2, text
        assert "adapter /no: does not exist" in text

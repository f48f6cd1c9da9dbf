"""Ray's environment and token, storage, locks and progress: no Ray is started here."""

from __future__ import annotations

import io
import multiprocessing
import os
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from pyarrow.fs import _MockFileSystem
from pydantic import ValidationError
from rich.console import Console

from dreamfleet.config import ClusterConfig, RunConfig
from dreamfleet.errors import BadInputError
from dreamfleet.runtime import auth, devices, room, storage
from dreamfleet.runtime.locks import exclusive_run, shared_work
from dreamfleet.runtime.progress import ConsoleProgress
from dreamfleet.runtime.session import RaySession, added_environment, ray_address
from dreamfleet.runtime.storage import Folder

PATIENCE_S = 300.0
AUTH = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in AUTH:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_silence_is_broken_once_and_not_after_the_first_event(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    patient, impatient, heard = (room.Silence(lambda: said.append("waits")) for _ in range(3))
    patient.note(False)
    monkeypatch.setattr(room, "TELL_AFTER_S", 0.0)
    heard.note(True)
    for _ in range(2):
        impatient.note(False)
        heard.note(False)
    assert said == ["waits"]


def test_token_file_is_made_private() -> None:
    assert auth.token_environment() == {"RAY_AUTH_MODE": "token"}
    path = auth.default_token_path()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    token = path.read_text()
    assert len(token) == 64
    auth.token_environment()
    assert path.read_text() == token


def test_of_two_that_make_a_token_at_once_the_first_ones_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = auth.default_token_path()

    def another_was_quicker(partial: Path, place: Path) -> None:
        place.write_text("theirs")
        raise FileExistsError(place)

    monkeypatch.setattr(os, "link", another_was_quicker)
    assert auth.token_environment() == {"RAY_AUTH_MODE": "token"}
    assert path.read_text() == "theirs"
    assert list(path.parent.iterdir()) == [path]


def test_an_empty_token_file_is_replaced() -> None:
    path = auth.default_token_path()
    path.parent.mkdir(parents=True)
    path.touch()
    auth.token_environment()
    assert len(path.read_text()) == 64


def test_a_copy_never_leaves_its_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "files", lambda self: ["adapter.json", "../../evil.txt"])
    with pytest.raises(BadInputError, match="leads out of its folder"):
        with storage.local_copy("s3://bucket/runs/x"):
            pass


def test_unwritable_home_gets_a_token_for_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    variables = auth.token_environment()
    assert variables["RAY_AUTH_MODE"] == "token"
    assert len(variables["RAY_AUTH_TOKEN"]) == 64


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RAY_AUTH_MODE", "disabled", {}),
        ("RAY_AUTH_TOKEN", "abc", {"RAY_AUTH_MODE": "token"}),
        ("RAY_AUTH_TOKEN_PATH", "/x", {"RAY_AUTH_MODE": "token"}),
    ],
)
def test_the_users_choice_is_obeyed(
    name: str, value: str, expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert auth.token_environment() == expected
    assert not auth.default_token_path().exists()


def test_added_environment_never_overrides_and_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    with added_environment({"RAY_DEDUP_LOGS": "1", "DREAMFLEET_TEST": "x"}):
        assert (os.environ["RAY_DEDUP_LOGS"], os.environ["DREAMFLEET_TEST"]) == ("0", "x")
    assert "DREAMFLEET_TEST" not in os.environ


def test_address_comes_from_the_flag_then_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ray_address(ClusterConfig()) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert ray_address(ClusterConfig()) == "10.0.0.1:6379"
    assert ray_address(ClusterConfig(ray_address="auto")) == "auto"


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_folder_round_trip(tmp_path: Path, scheme: str) -> None:
    folder = Folder(f"{scheme}{tmp_path}/run")
    assert folder.names() == []
    folder.write("a/b.bin", b"123")
    assert folder.read("a/b.bin") == b"123"
    assert folder.names() == ["a"] and folder.exists("a/b.bin")
    folder.child("a").delete("b.bin")
    assert not folder.exists("a/b.bin")
    folder.delete_folder("a")
    assert folder.names() == []
    with pytest.raises(FileNotFoundError):
        folder.read("nothing")


def test_folder_in_memory_storage_by_uri() -> None:
    with pytest.raises(BadInputError, match="not a usable URI"):
        Folder("nosuchscheme://bucket/x").names()


@pytest.mark.parametrize(
    ("address", "usable", "settings", "expected", "warned"),
    [
        (None, True, {}, "cuda", False),
        (None, False, {}, "cpu", True),  # Ray counts what the driver names, whatever torch can use
        ("head:6379", True, {}, "cuda", False),
        ("head:6379", False, {}, "cpu", True),
        ("head:6379", False, {"device": "cuda"}, "cuda", False),
        ("head:6379", True, {"device": "cpu"}, "cpu", False),
        ("head:6379", True, {"cluster": {"use_gpu": False}}, "cpu", False),
    ],
)
def test_announced_gpus_must_be_usable(
    address: str | None,
    usable: bool,
    settings: dict[str, Any],
    expected: str,
    warned: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(devices, "_workers_see_cuda", lambda session: usable)
    text = io.StringIO()
    progress = ConsoleProgress(Console(file=text, force_terminal=False))
    config = RunConfig.model_validate(settings)
    device = devices.choose_device(config, RaySession(address, 4.0, 2.0), progress)
    assert (device, "announces 2 GPUs" in text.getvalue()) == (expected, warned)


def test_a_private_ray_is_not_asked_for_what_it_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray would wait for it without end."""
    monkeypatch.setitem(sys.modules, "ray", None)  # other tests' may run
    config = RunConfig.model_validate({"cluster": {"resources_per_worker": {"CPU": 1, "gpu": 0.5}}})
    with pytest.raises(BadInputError, match="no 'gpu'; expected CPU or GPU"):
        devices.check_local_device(config)
    gpu = RunConfig.model_validate({"cluster": {"resources_per_worker": {"GPU": 0.5}}})
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(BadInputError, match="resources_per_worker = {'GPU': 0.5}: torch sees no"):
        devices.check_local_device(gpu)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    devices.check_local_device(config)
    devices.check_local_device(gpu)
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        RunConfig.model_validate({"cluster": {"resources_per_worker": {"CPU": -1}}})


@pytest.mark.parametrize(
    ("address", "settings", "said"),
    [("head:6379", {}, True), (None, {}, False), ("head:6379", {"device": "cpu"}, False)],
)
def test_a_cluster_whose_gpus_are_still_to_come_is_told(
    address: str | None, settings: dict[str, Any], said: bool
) -> None:
    text = io.StringIO()
    progress = ConsoleProgress(Console(file=text, force_terminal=False, width=200))
    config = RunConfig.model_validate(settings)
    assert devices.choose_device(config, RaySession(address, 4.0, 0.0), progress) == "cpu"
    assert ("has no GPU now: computing on CPUs" in text.getvalue()) is said


def test_lost_requests_are_repeated_and_real_refusals_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(storage, "RETRY_AFTER_S", (0.0, 0.0))
    answers = [OSError("AWS Error NETWORK_CONNECTION: curlCode: 28, Timeout was reached")] * 2

    def sometimes() -> str:
        if answers:
            raise answers.pop()
        return "done"

    assert storage._patiently(sometimes) == "done"
    calls: list[int] = []

    def never() -> None:
        calls.append(1)
        raise OSError("AWS Error ACCESS_DENIED during PutObject operation")

    with pytest.raises(OSError, match="ACCESS_DENIED"):
        storage._patiently(never)
    assert len(calls) == 1


def test_storage_that_is_busy_still_deletes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "RETRY_AFTER_S", (0.0,))
    lost = {"get_file_info", "delete_file", "delete_dir"}

    class Busy:
        """A store that carries out every first request and loses the answer."""

        type_name = "s3"

        def __init__(self) -> None:
            self.filesystem, self.lost = _MockFileSystem(), set(lost)

        def __getattr__(self, name: str) -> Any:
            def ask(*arguments: Any) -> Any:
                answer = getattr(self.filesystem, name)(*arguments)
                if name in self.lost:
                    self.lost.discard(name)
                    raise OSError("AWS Error SLOW_DOWN: HTTP status 503")
                return answer

            return ask

    busy = Busy()
    busy.filesystem.create_dir("run/a")
    busy.filesystem.open_output_stream("run/b.bin").close()
    folder = Folder("mock://run")
    object.__setattr__(folder, "_remote", (busy, "run"))
    assert folder.exists("b.bin")
    folder.delete("b.bin")
    folder.delete_folder("a")
    assert folder.names() == [] and not busy.lost


def _hold(
    folder: str, ready: multiprocessing.synchronize.Event, end: multiprocessing.synchronize.Event
) -> None:
    with exclusive_run(Path(folder)):
        ready.set()
        end.wait(PATIENCE_S)


def test_two_runs_in_one_folder_are_refused(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready, end = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(str(tmp_path), ready, end))
    other.start()
    try:
        assert ready.wait(PATIENCE_S)
        with pytest.raises(BadInputError, match="another run is writing"), exclusive_run(tmp_path):
            pass
    finally:
        end.set()
        other.join(PATIENCE_S)
    with exclusive_run(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInputError, match="cannot be made"), exclusive_run(tmp_path / "file/x"):
        pass


def test_a_folder_that_cannot_be_locked_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()
    with pytest.raises(BadInputError, match="cannot be written and locked"):
        exclusive_run(tmp_path).__enter__()


def test_shared_work_says_that_it_waits_only_when_it_does(tmp_path: Path) -> None:
    said: list[str] = []
    with shared_work(tmp_path / "locks" / "k.lock", lambda: said.append("waiting")):
        pass
    assert said == []


def test_progress_into_a_log_is_plain_lines() -> None:
    text = io.StringIO()
    progress = ConsoleProgress(Console(file=text, force_terminal=False), log_every_s=0.0)
    with progress.stage("photos", 2) as stage:
        stage.update(1)
        stage.update(2, "loss 0.1")
    progress.warn("look [here]")
    assert "photos: 1/2" in text.getvalue()
    assert "loss 0.1" in text.getvalue()
    assert "warning: look [here]" in text.getvalue()

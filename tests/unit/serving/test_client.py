"""`dreamfleet query` and `dreamfleet launch` against a real service in this process."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from dreamfleet import launch as launching
from dreamfleet.cli import cli
from dreamfleet.config import load_config
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.personalization import PersonalizeResult
from dreamfleet.personalization.results import SubjectResult
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.serving.keys import KeyFile
from dreamfleet.tuning.results import SubjectTuned, TuneResult
from tests.local_service import listening, local_application

pytestmark = pytest.mark.heavy


@pytest.fixture
def service(engine: Any, adapters: Path, fleet_home: Path, tmp_path: Path) -> Iterator[str]:
    """Listening, with the keys of this test's home."""
    app, _ = local_application(engine, adapters, KeyFile(), tmp_path / "shelf")
    with listening(app) as address:
        yield address


def ask(*flags: str) -> Any:
    return CliRunner().invoke(cli, ["query", *flags])


def test_query(service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wish = ["--url", service, "--model", "ada", "--prompt", "a {class}", "--seed", "3"]
    quick = ["--num-inference-steps", "2", "--num-images", "2", "--output-dir", str(tmp_path)]
    refused = ask(*wish, *quick)
    assert isinstance(refused.exception, BadInputError)
    assert "DREAMFLEET_API_KEY" in str(refused.exception)
    monkeypatch.setenv("DREAMFLEET_API_KEY", KeyFile().create()[0])
    ended = ask(*wish, *quick)
    paths = ended.stdout.split()
    assert [Path(path).name for path in paths] == ["ada_3.png", "ada_4.png"]
    assert all(Image.open(path).size == (64, 64) for path in paths)
    for flags, kind, message in (
        (["--url", service, "--model", "nobody"], BadInputError, "nobody"),
        (["--url", "http://127.0.0.1:9", "--model", "ada"], DreamfleetError, "dreamfleet serve"),
        (["--url", "nowhere", "--model", "ada"], BadInputError, "--url"),
    ):
        error = ask(*flags, "--prompt", "x", "--output-dir", str(tmp_path)).exception
        assert isinstance(error, kind) and message in str(error)


def test_an_answer_that_breaks_off(tmp_path: Path) -> None:
    """As when the service is ended meanwhile."""
    cut = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        connection, _ = cut.accept()
        asked = b""
        while not asked.endswith(b"}"):  # all of it: else the kernel would reset the connection
            asked += connection.recv(2**16)
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\ndata: ")
        connection.close()

    threading.Thread(target=answer, daemon=True).start()
    flags = ["--model", "ada", "--prompt", "x", "--output-dir", str(tmp_path)]
    error = ask("--url", f"http://127.0.0.1:{cut.getsockname()[1]}", *flags).exception
    assert isinstance(error, DreamfleetError) and "broke off" in str(error)
    error = ask("--url", "http://127.0.0.1:abc", *flags).exception
    assert isinstance(error, BadInputError) and "--url" in str(error)


def test_launch_draws_the_first_picture_as_a_client(
    service: str, adapters: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Training and Serve have their own tests; here they are what is already there."""
    adapter = shutil.copytree(adapters / "ada", tmp_path / "ada")
    subject = SubjectResult("ada", "Ada", "finished", adapter)
    result = PersonalizeResult([subject], 1)
    monkeypatch.setattr("dreamfleet.personalization.personalize", lambda *given, **more: result)
    served: dict[str, Any] = {}

    def serve(
        settings: Any, *, host: str, port: int, on_ready: Any, done: Any, **more: Any
    ) -> None:
        served.update(settings=settings, ends=[begin(None) for begin in on_ready[:1]])
        while not done():
            time.sleep(0.01)

    monkeypatch.setattr("dreamfleet.serving.server.serve_foreground", serve)
    monkeypatch.setattr("dreamfleet.serving.server.check_port", lambda *given: None)
    subjects = [SimpleNamespace(id="ada")]
    monkeypatch.setattr("dreamfleet.data.subjects.requested_subjects", lambda config: subjects)
    said: list[str] = []
    host, _, port = service.removeprefix("http://").partition(":")
    settings = launching.LaunchSettings(host=host, port=int(port), show=False, once=True)
    config = load_config(None, {"tracking.enabled": False})
    assert launching.launch(config, settings, say=said.append).failures == 0
    assert Image.open(adapter / "served.png").size == (64, 64)
    assert served["settings"].adapters == str(adapter)
    assert any(str(adapter / "served.png") in line for line in said)
    assert KeyFile().keys() == [], "its key ended with it"
    monkeypatch.setattr(launching, "_serve_settings", _refused)
    with pytest.raises(BadInputError, match="such settings"):
        launching.launch(config, settings, say=said.append)
    assert KeyFile().keys() == [], "nor is one left of a service that never began"


def _refused(*given: Any) -> Any:
    raise BadInputError("such settings")


def test_launch_refuses_results_at_a_uri_before_it_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreamfleet.personalization.personalize", _refused)
    config = load_config(None, {"output_dir": "s3://bucket/runs/ada"})
    with pytest.raises(BadInputError, match="local --output-dir"):
        launching.make_adapters(
            config, launching.LaunchSettings(), lambda line: None, SilentProgress()
        )


@pytest.mark.parametrize("screen", [True, False])
def test_the_first_picture_is_opened_where_there_is_a_screen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, screen: bool
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    if screen:
        monkeypatch.setenv("DISPLAY", ":0")
    launching._open(tmp_path / "served.png")
    assert opened == [(tmp_path / "served.png").as_uri()] * screen


class TestStudies:
    """What `launch` makes of a recipe that is searched; the search has its own tests."""

    @pytest.fixture
    def made(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
        def make(aliases: dict[str, str], **overrides: Any) -> launching.Made:
            subjects = [
                SubjectTuned(
                    name,
                    name.title(),
                    "failed" if alias == "failed" else "finished",
                    tmp_path / name,
                    model_version="3" if alias else None,
                    alias=alias,
                )
                for name, alias in aliases.items()
            ]
            result = TuneResult(subjects, 1.0)
            monkeypatch.setattr("dreamfleet.tuning.command.tune", lambda *given, **more: result)
            config = load_config(None, overrides or {"tune.num_samples": 3})
            settings = launching.LaunchSettings()
            return launching.make_adapters(config, settings, lambda line: None, SilentProgress())

        return make

    def test_registered_champions_are_served_from_there(self, made: Any, tmp_path: Path) -> None:
        found = made({"ada": "failed", "bo": "candidate", "cy": "champion"})
        assert found.model == "bo@candidate" and found.failures == 1
        assert found.source["registry"] and found.source["registry_models"] == ["bo", "cy"]
        assert found.folder == tmp_path / "bo" / "champion"

    def test_without_a_registry_the_folder(self, made: Any, tmp_path: Path) -> None:
        found = made({"ada": ""}, **{"space.sude_weight": [0.2]})
        folder = tmp_path / "ada" / "champion"
        assert found == launching.Made("champion", folder, {"adapters": str(folder)})
        with pytest.raises(DreamfleetError, match="not registered"):
            made({"ada": "", "bo": "champion"})
        with pytest.raises(DreamfleetError, match="no study has a champion"):
            made({"ada": "failed"})

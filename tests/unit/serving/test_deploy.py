"""Serve files and the commands around them: strict where Serve is not."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from dreamfleet.cli import cli
from dreamfleet.config import ClusterConfig
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError
from dreamfleet.runtime.ports import free_port
from dreamfleet.runtime.session import RaySession
from dreamfleet.serving import server
from dreamfleet.serving.command import settings_from_flags
from dreamfleet.serving.deploy import (
    IMPORT_PATH,
    application_settings,
    checked_serve_config,
    deploy,
    read_serve_file,
    serve_file,
)
from dreamfleet.serving.server import _check_keys_asked, check_address
from dreamfleet.serving.settings import ServeSettings, serve_settings


def built(tmp_path: Path, *flags: str) -> Path:
    path = tmp_path / "service.yaml"
    ended = CliRunner().invoke(cli, ["serve", "build", *flags, "--output", str(path)])
    assert ended.exit_code == 0, ended.exception
    return path


class TestFiles:
    def test_what_build_writes_deploy_takes(self, tmp_path: Path) -> None:
        flags = ["--registry", "--tracking-uri", "http://mlflow:5000", "--num-replicas", "2"]
        content = read_serve_file(built(tmp_path, *flags, "--max-replicas", "4"))
        (app,) = content["applications"]
        assert app["args"]["registry"] == "http://mlflow:5000" == app["args"]["tracking_uri"]
        settings = serve_settings(app["args"])
        assert (settings.num_replicas, settings.max_replicas) == (2, 4)
        assert settings.auth

    def test_serve_itself_takes_it_too(self, tmp_path: Path) -> None:
        from ray.serve.schema import ServeDeploySchema

        content = read_serve_file(built(tmp_path, "--adapters", str(tmp_path)))
        schema = ServeDeploySchema.model_validate(content)
        assert schema.applications[0].name == "dreamfleet"

    def test_a_typing_error_is_found(self, tmp_path: Path) -> None:
        text = built(tmp_path, "--adapters", str(tmp_path)).read_text(encoding="utf-8")
        for wrong, right, message in (
            ("max_waitings: 3", None, "max_waitings"),
            (None, ("import_path", "import_paths"), "import_path"),
            (None, ("http_options", "http_option"), "http_option"),
        ):
            broken = yaml.safe_load(text.replace(*right) if right else text)
            if wrong:
                broken["applications"][0]["args"].update(yaml.safe_load(wrong))
            path = tmp_path / "broken.yaml"
            path.write_text(yaml.safe_dump(broken), encoding="utf-8")
            with pytest.raises(ConfigError, match=message):
                read_serve_file(path)

    @pytest.mark.parametrize("content", ["", "[]", "applications: 3", "a: [", "applications: []"])
    def test_what_is_no_such_file(self, tmp_path: Path, content: str) -> None:
        path = tmp_path / "other.yaml"
        path.write_text(content, encoding="utf-8")
        with pytest.raises(ConfigError, match="other.yaml"):
            read_serve_file(path)

    @pytest.mark.parametrize(
        ("key", "value"), [("name", "other"), ("route_prefix", "/images"), ("auth", False)]
    )
    def test_what_would_leave_it_open_is_refused(
        self, tmp_path: Path, key: str, value: object
    ) -> None:
        content = read_serve_file(built(tmp_path, "--adapters", str(tmp_path)))
        (app,) = content["applications"]
        (app["args"] if key == "auth" else app)[key] = value
        with pytest.raises(ConfigError, match=key):
            checked_serve_config(content, "service.yaml")

    def test_without_keys_nothing_is_deployed(self) -> None:
        with pytest.raises(BadInputError, match="no-auth"):
            serve_file(ServeSettings(adapters="x", auth=False))


class TestSettings:
    def test_one_source_of_adapters(self, tmp_path: Path) -> None:
        for given in ({}, {"registry": True, "adapters": str(tmp_path)}):
            with pytest.raises(BadInputError, match="one of the two"):
                settings_from_flags(given)
        with pytest.raises(BadInputError, match="no such folder"):
            settings_from_flags({"adapters": str(tmp_path / "gone")})
        assert settings_from_flags({"adapters": str(tmp_path)}).base_model == "embedded"

    def test_wrong_values_are_named(self) -> None:
        for given, message in (
            ({"adapters": "x", "num_replicas": 0}, "num_replicas"),
            ({"adapters": "x", "num_replicas": 3, "max_replicas": 2}, "max_replicas"),
            ({"adapters": "x", "max_wating": 3}, "max_wating"),
        ):
            with pytest.raises(ConfigError, match=message):
                serve_settings(given)

    def test_without_keys_on_loopback_only(self, tmp_path: Path) -> None:
        open_to_all = ServeSettings(adapters=str(tmp_path), auth=False)
        with pytest.raises(BadInputError, match="this machine only"):
            check_address(open_to_all, "0.0.0.0", 8000, ClusterConfig())

    def test_without_keys_on_no_cluster(self) -> None:
        open_to_all = ServeSettings(adapters="x", auth=False)
        _check_keys_asked(open_to_all, local=True)
        with pytest.raises(BadInputError, match="--no-auth"):
            _check_keys_asked(open_to_all, local=False)

    def test_a_taken_port_is_refused(self, tmp_path: Path) -> None:
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            place = (ServeSettings(adapters=str(tmp_path)), "127.0.0.1", taken.getsockname()[1])
            with pytest.raises(BadInputError, match="another --port"):
                check_address(*place, ClusterConfig())
            check_address(*place, ClusterConfig(ray_address="head:6379"))  # it is that of the head


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [("--device", "cuda", "no GPU"), ("--base-model", "./gone", "gone")],
)
def test_what_this_machine_has_not_is_refused_before_ray_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, value: str, message: str
) -> None:
    def started(*given: Any, **more: Any) -> None:
        raise AssertionError("Ray was to be started")

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # others' tests may have begun one
    monkeypatch.setattr(server, "ray_session", started)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    own = ["serve", "--adapters", str(tmp_path), "--no-tracking", "--port"]
    ended = CliRunner().invoke(cli, [*own, str(free_port("127.0.0.1")), flag, value])
    assert isinstance(ended.exception, BadInputError) and message in str(ended.exception)


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What runs on a Ray that is joined, its head on this machine: nothing."""
    found = SimpleNamespace(applications={}, serve=None, head="10.0.0.5")
    heads = [
        {"Alive": alive, "Resources": {server.HEAD: 1.0}, "NodeManagerAddress": address}
        for alive, address in ((False, "10.0.0.4"), (True, "10.0.0.5"))
    ]
    monkeypatch.setattr("ray.serve.status", lambda: found)
    monkeypatch.setattr("ray.serve.context._get_global_client", lambda **given: found.serve)
    monkeypatch.setattr("ray.nodes", lambda: [{**heads[1], "Resources": {}}, *heads])
    monkeypatch.setattr("ray.util.get_node_ip_address", lambda: found.head)
    session = nullcontext(RaySession("host:6379", 4.0, 0.0))
    monkeypatch.setattr(server, "ray_session", lambda *given, **more: session)
    return found


def test_a_service_that_runs_on_a_cluster_is_left_alone(
    tmp_path: Path, there: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    there.applications["dreamfleet"] = None
    monkeypatch.setattr("ray.serve.run", lambda *given, **more: done.append("run"))
    monkeypatch.setattr("ray.serve.delete", lambda *given, **more: done.append("delete"))
    settings = ServeSettings(adapters=str(tmp_path), device="cuda")
    given: dict[str, Any] = {
        "port": free_port("127.0.0.1"),
        "cluster": ClusterConfig(ray_address="host:6379"),
        "progress": SimpleNamespace(info=print, warn=print),
    }
    with pytest.raises(BadInputError, match="already"):
        server.serve_foreground(settings, **given)
    there.applications.clear()
    with pytest.raises(BadInputError, match="no GPU"):  # refused before it began anything
        server.serve_foreground(settings, **given)
    assert done == []


def test_a_cluster_serves_where_it_does_and_that_is_what_is_said(there: Any) -> None:
    """Serve passes another host or port over; the head's loopback is no other machine's."""
    cluster = ClusterConfig(ray_address="host:6379")
    server.check_place("0.0.0.0", 8000, cluster)
    server.check_place("127.0.0.1", 8000, cluster)
    there.serve = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0", port=9000))
    for host, port in (("0.0.0.0", 8000), ("127.0.0.1", 9000)):
        with pytest.raises(BadInputError, match=r"give --host 0\.0\.0\.0 --port 9000"):
            server.check_place(host, port, cluster)
    server.check_place("0.0.0.0", 9000, cluster)
    there.serve, there.head = None, "10.0.0.9"
    with pytest.raises(BadInputError, match=r"head of this Ray, 10\.0\.0\.5"):
        server.check_place("127.0.0.1", 8000, cluster)
    told = [server.address_of(host, 8000) for host in ("0.0.0.0", "::", "::1", "fleet.example")]
    head = "http://10.0.0.5:8000"
    assert told == [head, head, "http://[::1]:8000", "http://fleet.example:8000"]


def test_engines_share_the_cores_of_this_machine_and_no_other_s(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "visible_cpus", lambda: 8)
    monkeypatch.setattr("ray.available_resources", lambda: {"CPU": 64.0})
    progress: Any = SimpleNamespace(warn=print)

    def threads(address: str | None, **given: int) -> int | None:
        settings = ServeSettings.model_validate({"adapters": "x", "device": "cpu", **given})
        return server._with_device(settings, RaySession(address, 8.0, 0.0), progress).num_threads

    assert [threads(None), threads(None, num_replicas=2), threads(None, max_replicas=4)] == [
        8,
        4,
        2,
    ]
    assert threads(None, num_threads=3) == 3 == threads("host:6379", num_threads=3)
    assert threads("host:6379", num_replicas=2) is None


@pytest.mark.parametrize("flags", [["--device", "cuda"], ["--no-auth"], ["--registry"]])
def test_options_before_a_command_that_does_not_see_them_are_refused(
    tmp_path: Path, flags: list[str]
) -> None:
    build = ["build", "--adapters", str(tmp_path)]
    ended = CliRunner().invoke(cli, ["serve", *flags, *build])
    assert ended.exit_code == 2 and f"{flags[0]} stands before 'build'" in ended.output
    assert CliRunner().invoke(cli, ["serve", "--debug", *build]).exit_code == 0


def test_a_public_address_is_written_and_checked(tmp_path: Path) -> None:
    flags = ["--adapters", str(tmp_path), "--public-url", "https://images.example/fleet/"]
    (app,) = read_serve_file(built(tmp_path, *flags))["applications"]
    assert app["args"]["public_url"] == "https://images.example/fleet/"
    for wrong in ("images.example", "ftp://x", "https://", "https://x?a", "https://me:pw@x", ""):
        with pytest.raises(ConfigError, match="public_url"):
            serve_settings({"adapters": "x", "public_url": wrong})


def test_others_settings_in_the_file_are_not_ours() -> None:
    other = {"name": "other", "import_path": "other:app", "args": ["hunter2"]}
    own = {"name": "dreamfleet", "import_path": IMPORT_PATH, "args": {"registry": "sqlite:///x"}}
    assert application_settings({"applications": [other, own]}) == {"registry": "sqlite:///x"}


def test_engines_that_have_no_place_are_refused_or_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve would wait for them without a word."""
    import ray

    said: list[str] = []
    progress: Any = SimpleNamespace(warn=said.append)
    here, cluster = RaySession(None, 4.0, 2.0), RaySession("host:6379", 4.0, 2.0)
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0, "GPU": 1.0})
    for count, gpus, fits in ((2, 1.0, True), (3, 1.0, False), (2, 0.6, True), (3, 0.6, False)):
        settings = ServeSettings(adapters="x", num_replicas=count, gpus_per_replica=gpus)
        with nullcontext() if fits else pytest.raises(BadInputError, match="2 GPUs"):
            server._check_room(settings, here, progress)
    assert said == []
    server._check_room(settings, cluster, progress)
    assert len(said) == 1 and "3 engines want 1 CPU, 0.6 GPU each, free in the" in said[0]


def test_the_end_waits_for_a_long_picture_no_longer_than_it_may(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a clock of its own: an ingress that answers late, with a picture under way for ever."""
    clock, waits = [0.0], []

    class Ingress:
        def __getattr__(self, name: str) -> Any:
            return self

        def remote(self) -> Any:
            return self

        def result(self, timeout_s: float) -> dict[str, int]:
            waits.append(timeout_s)
            clock[0] += min(timeout_s, 1.5)
            return {"under_way": 1}

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    own_time = SimpleNamespace(monotonic=lambda: clock[0], sleep=sleep)
    monkeypatch.setattr(server, "time", own_time)
    for drain_s in (8.0, 0.0):
        clock[0] = 0.0
        server._drain(Ingress(), drain_s)
        assert clock[0] <= max(drain_s, server.ANSWER_S) + server.POLL_S
    assert len(waits) > 4


class _Head(BaseHTTPRequestHandler):
    """Takes what is handed to it, or refuses all."""

    taken: list[Any]
    status: int

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.taken.append((self.path, self.headers, json.loads(body)))  # type: ignore[attr-defined]
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()
        if self.server.status == 400:  # type: ignore[attr-defined]
            self.wfile.write(b"1 validation error: proxy_location")

    def log_message(self, *told: Any) -> None:
        """Nothing."""


@pytest.fixture
def head() -> Iterator[Any]:
    server: Any = HTTPServer(("127.0.0.1", 0), _Head)
    server.taken, server.status = [], 200
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()


def test_deploy_hands_the_file_and_the_token_over(
    tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    content = read_serve_file(built(tmp_path, "--adapters", str(tmp_path)))
    address = f"http://127.0.0.1:{head.server_port}"
    assert deploy(content, address) == address
    ((path, headers, body),) = head.taken
    assert path == "/api/serve/applications/" and body == content
    assert headers["Authorization"] == "Bearer secret"
    head.status = 403
    with pytest.raises(DreamfleetError, match="token"):
        deploy(content, address)
    head.status = 400
    with pytest.raises(DreamfleetError, match="HTTP 400.: 1 validation error: proxy_location"):
        deploy(content, address)
    with pytest.raises(BadInputError, match="--ray-address"):
        deploy(content, "127.0.0.1:8265")


def test_what_was_taken_is_said_though_it_cannot_be_recorded(
    tmp_path: Path, head: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = "postgresql://me:secret@host/mlflow"

    def broken(*given: Any, **more: Any) -> None:
        raise BadInputError(f"{uri}: nothing is there")

    monkeypatch.setattr("dreamfleet.tracking.open_tracker", broken)
    path = built(tmp_path, "--adapters", str(tmp_path))
    flags = ["--ray-address", f"http://127.0.0.1:{head.server_port}", "--tracking-uri", uri]
    ended = CliRunner().invoke(cli, ["serve", "deploy", str(path), *flags])
    taken, warning = ended.output.splitlines()
    assert ended.exit_code == 0 and taken.startswith("taken by")
    assert warning.startswith("warning: ") and "not recorded" in warning
    assert "secret" not in ended.output

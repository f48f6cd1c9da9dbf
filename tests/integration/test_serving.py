"""The service on real Ray Serve, by real HTTP: OpenAI's client, replicas that die, bursts, clients
that go away.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import io
import json
import os
import signal
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from dreamfleet.config import TrackingConfig
from dreamfleet.runtime.ports import free_port
from dreamfleet.serving.keys import KeyFile
from dreamfleet.serving.settings import ServeSettings
from tests.tiny_adapters import write_adapters

NAMES = tuple(f"subject-{index}" for index in range(6))
PATH = "/v1/images/generations"
ASK: dict[str, Any] = {
    "model": NAMES[0],
    "prompt": "a photo of {token} {class}",
    "seed": 5,
    "num_inference_steps": 4,
}
LONG = {**ASK, "num_inference_steps": 150, "n": 2}  # the most steps that are taken
QUIET = {"log_level": "WARNING", "enable_access_log": False}
READY_S = 600.0
ANSWER_S = 600.0

pytestmark = pytest.mark.usefixtures("ray_running")


class Service:
    """A running service, and a way to talk to it."""

    def __init__(self, port: int, key: str, handle: Any, settings: ServeSettings) -> None:
        self.address, self.key, self.handle = f"http://127.0.0.1:{port}", key, handle
        self.settings = settings

    def ask(self, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any, Any]:
        """Status, body and headers."""
        request = urllib.request.Request(
            self.address + path,
            None if body is None else json.dumps(body).encode(),
            {"Authorization": f"Bearer {self.key}", "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
                return answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(), error.headers

    def draw(self, **fields: Any) -> np.ndarray:
        status, body, _ = self.ask(PATH, {**ASK, **fields})
        assert status == 200, body
        return pixels(json.loads(body)["data"][0]["b64_json"])

    def open(self, body: dict[str, Any]) -> socket.socket:
        """A request whose answer nobody has begun to read."""
        host, _, port = self.address.removeprefix("http://").partition(":")
        content = json.dumps(body).encode()
        connection = socket.create_connection((host, int(port)), timeout=ANSWER_S)
        connection.sendall(
            f"POST {PATH} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n".encode()
            + content
        )
        return connection

    def figures(self) -> dict[str, float]:
        found = self.handle.snapshot.remote().result(timeout_s=ANSWER_S)
        return dict(found)

    def wait_for(
        self, reached: Callable[[dict[str, float]], bool], within_s: float = ANSWER_S
    ) -> dict[str, float]:
        deadline = time.monotonic() + within_s
        while not reached(figures := self.figures()):
            assert time.monotonic() < deadline, figures
            time.sleep(0.2)
        return figures


def pixels(encoded: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded))), dtype=np.int16)


@pytest.fixture(scope="module")
def service(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two engines on the tiny base; both fit the session's two logical CPUs."""
    from ray import serve

    place = tmp_path_factory.mktemp("serving")
    keys = KeyFile(place / "keys.json")
    settings = ServeSettings(
        base_model=str(tiny_base),
        adapters=str(write_adapters(tiny_base, place / "adapters", NAMES)),
        keys_file=str(keys.path),
        num_replicas=2,
        cpus_per_replica=0,
        num_threads=1,
        pictures_per_replica=3,
        max_waiting=6,
        max_per_key=12,
        max_slots=2,
        cache_mib=2,
        refresh_s=1.0,
        drain_s=2.0,
        sample_images=100,
    )
    port = free_port("127.0.0.1")
    serve.start(
        proxy_location="HeadOnly",
        http_options={"host": "127.0.0.1", "port": port},
        logging_config=QUIET,
    )
    yield deployed(settings, port, keys.create("admin")[0])
    serve.shutdown()


def deployed(settings: ServeSettings, port: int, key: str) -> Service:
    """The application with these settings, ready."""
    from ray import serve

    from dreamfleet.serving.application import build_app

    app = build_app(settings.model_dump(mode="json"))
    handle = serve.run(app, name="dreamfleet", route_prefix="/", logging_config=QUIET)
    found = Service(port, key, handle, settings)
    deadline = time.monotonic() + READY_S
    while found.ask("/healthz")[0] != 200 and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def replicas(deployment: str) -> list[psutil.Process]:
    """Its processes."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if f"ServeReplica:dreamfleet:{deployment}" in command(process)
    ]


def command(process: psutil.Process) -> str:
    """Empty for a process that has ended meanwhile."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def test_an_adapter_is_loaded_by_one_engine(service: Service) -> None:
    """First in this file, while nothing is loaded. With engines taken at random two in three
    adapters would be loaded by both.
    """
    for _ in range(3):
        for name in NAMES:
            service.draw(model=name)
    assert service.figures()["engine_cache_misses_total"] <= len(NAMES) + 1


def test_openais_own_client(service: Service) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed (make install)")
    client = openai.OpenAI(base_url=f"{service.address}/v1", api_key=service.key, max_retries=0)
    assert [model.id for model in client.models.list()] == [*NAMES, "base"]
    answer = client.images.generate(
        model=NAMES[1],
        prompt="a photo of {token} {class}",
        n=2,
        size="64x64",
        response_format="b64_json",
        extra_body={"seed": 5, "num_inference_steps": 4},
    )
    first = pixels(answer.data[0].b64_json)
    assert len(answer.data) == 2 and first.shape == (64, 64, 3)
    assert np.abs(first - service.draw(model=NAMES[1])).max() <= 1
    stream = client.images.generate(
        model=NAMES[1],
        prompt="a photo of {token} {class}",
        stream=True,
        partial_images=1,
        extra_body={"seed": 5, "num_inference_steps": 4},
    )
    kinds = [event.type for event in stream]
    assert kinds.count("image_generation.progress") == 4
    assert kinds[-1] == "image_generation.completed"
    with pytest.raises(openai.NotFoundError, match="nobody"):
        client.images.generate(model="nobody", prompt="x")
    with pytest.raises(openai.BadRequestError, match="size"):
        client.images.generate(model=NAMES[1], prompt="x", size="9x9")
    stranger = openai.OpenAI(base_url=f"{service.address}/v1", api_key="df-no", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()


def test_load_changes_no_picture(service: Service) -> None:
    """Alone, and among others of all subjects, sizes and samplers: the same to one level of 255."""
    alone = {name: service.draw(model=name) for name in NAMES}
    others: list[dict[str, Any]] = [
        {"size": "128x64"},
        {"num_inference_steps": 9, "scheduler": "euler"},
        {"guidance_scale": 1.0, "seed": 8},
        {"model": "base", "prompt": "a cat"},
    ]
    with ThreadPoolExecutor(6) as pool:
        jobs = []
        for index, name in enumerate(NAMES * 2):
            jobs.append((name, pool.submit(service.draw, model=name)))
            pool.submit(service.draw, **{"model": name, **others[index % len(others)]})
        for name, job in jobs:
            assert np.abs(job.result() - alone[name]).max() <= 1, name
    pairs = [np.abs(alone[NAMES[0]] - alone[name]).max() for name in NAMES[1:]]
    assert min(pairs) > 1


def test_a_deployment_is_a_run_with_its_versions_and_figures(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dreamfleet.serving import recording
    from dreamfleet.serving.recording import Recorder, Remote
    from dreamfleet.tracking.store import MlflowStore

    monkeypatch.setattr(recording, "EVERY_S", 0.5)

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client = MlflowStore.connect(uri).client
    tracking = TrackingConfig(uri=uri)
    record = Recorder(Remote(service.handle), service.settings, tracking, print)
    run_id = record.run.wait_for_id(ANSWER_S)
    assert run_id is not None
    record.start()
    for _ in range(2):
        service.draw()
    deadline = time.monotonic() + ANSWER_S
    wanted = {"engine_sampling_step_s", "request_p50_s", "request_p95_s", "requests_success"}
    while not (
        wanted <= client.get_run(run_id).data.metrics.keys()
        and client.list_artifacts(run_id, "images")  # sampled ones
    ):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    record.end()
    run = client.get_run(run_id)
    assert run.data.tags["dreamfleet.serves.subject-1"] == "subject-1", "no registered version"
    assert run.data.params["num_replicas"] == "2" and run.data.metrics["pictures"] >= 2
    assert 0 < run.data.metrics["request_p50_s"] <= run.data.metrics["request_p95_s"]


def test_a_burst_is_refused_cleanly_and_passes(service: Service) -> None:
    """Ten times what is drawn at once. How many are refused is the scheduler's affair; queue and
    engines hold no more than they may meanwhile.
    """
    before = service.figures()
    watched: list[dict[str, float]] = []
    passed = threading.Event()

    def watch() -> None:
        while not passed.is_set():
            watched.append(service.figures())

    def one(index: int) -> tuple[int, Any, Any]:
        stream = {"stream": True} if index % 3 == 0 else {}
        wish = {**ASK, "num_inference_steps": 40, "model": NAMES[index % 6]}
        return service.ask(PATH, {**wish, **stream})

    watcher = threading.Thread(target=watch)
    watcher.start()
    with ThreadPoolExecutor(60) as pool:
        answers = list(pool.map(one, range(60)))
    passed.set()
    watcher.join(ANSWER_S)
    assert max(own["queue_running_pictures"] for own in watched) <= 6
    assert max(own["queue_waiting_pictures"] for own in watched) <= 6
    assert max(own.get("engine_drawing", 0) for own in watched) <= 6
    statuses = {status for status, _, _ in answers}
    assert statuses <= {200, 429} and 200 in statuses
    for status, body, headers in answers:
        if status == 429:
            assert json.loads(body)["error"]["code"] == "rate_limit_exceeded"
            assert int(headers["Retry-After"]) >= 1
        else:
            assert body, "no empty success"
    after = service.wait_for(lambda own: not own["requests_under_way"])
    succeeded = sum(status == 200 for status, _, _ in answers)
    assert after["requests_success"] - before.get("requests_success", 0) == succeeded
    assert after["queue_running_pictures"] == after["queue_waiting_pictures"] == 0
    assert after["engine_cache_bytes"] <= after["engine_cache_budget_bytes"]
    service.draw()


def test_clients_that_go_away_free_their_places(service: Service) -> None:
    """While they are drawn for, and while they wait, streams and plain requests: counted, and
    nothing is stuck for those who stay.
    """
    before = service.figures()

    def more(own: dict[str, float], outcome: str) -> float:
        name = f"requests_{outcome}"
        return own.get(name, 0) - before.get(name, 0)

    # Six pictures are drawn at once, and six wait.
    long = {**LONG, "size": "128x128"}
    gone = [service.open({**long, "stream": index < 2}) for index in range(3)]
    service.wait_for(lambda own: own["queue_running_pictures"] == 6)
    assert b" 200 " in gone[0].recv(200), "a stream that is drawn has begun its answer"
    waiting = [service.open({**long, "model": NAMES[3], "stream": index < 1}) for index in range(2)]
    service.wait_for(lambda own: own["queue_waiting_pictures"] == 4)
    with ThreadPoolExecutor(2) as pool:
        stay = [pool.submit(service.draw, model=name) for name in NAMES[4:]]
        for connection in waiting:
            connection.close()
        service.wait_for(
            lambda own: more(own, "cancelled") == 2 and own["queue_waiting_pictures"] <= 2
        )
        for connection in gone:
            connection.close()
        assert all(job.result().shape == (64, 64, 3) for job in stay)
    after = service.wait_for(lambda own: not own["requests_under_way"])
    assert (more(after, "cancelled"), more(after, "success"), more(after, "failed")) == (5, 2, 0)
    assert after["queue_running_pictures"] == after["queue_waiting_pictures"] == 0
    service.wait_for(lambda own: own["engine_drawing"] == 0 and own["engine_cache_in_use"] == 0)


def test_a_replica_killed_under_load_costs_nobody_a_picture(service: Service) -> None:
    expected = service.draw(model=NAMES[2])
    before = service.figures().get("requests_retried", 0)
    with ThreadPoolExecutor(6) as pool:
        jobs = [
            pool.submit(service.ask, PATH, {**LONG, "n": 1, "model": name, "stream": index < 3})
            for index, name in enumerate(NAMES)
        ]
        service.wait_for(lambda own: own["queue_running_pictures"] >= 4)
        engines = replicas("Engine")
        assert len(engines) == 2
        os.kill(engines[0].pid, signal.SIGKILL)
        answers = [job.result() for job in jobs]
    assert [status for status, _, _ in answers] == [200] * 6
    for _, body, _ in answers[:3]:
        kinds = [line for line in body.split(b"\n") if line.startswith(b"event: ")]
        assert kinds.count(b"event: image_generation.completed") == 1
        assert b"event: error" not in kinds and body.endswith(b"data: [DONE]\n\n")
    assert service.figures()["requests_retried"] > before
    assert np.abs(service.draw(model=NAMES[2]) - expected).max() <= 1


def test_an_ingress_killed_under_load_costs_one_retry(service: Service) -> None:
    """The only one: what it held is lost with it, and whoever asks once more is served."""

    def insists(name: str) -> bool:
        for _ in range(2):
            with contextlib.suppress(OSError, http.client.HTTPException):
                if service.ask(PATH, {**LONG, "n": 1, "model": name})[0] == 200:
                    return True
        return False

    # An engine that another test has killed must be back, or the four are never drawn at once.
    service.wait_for(lambda own: own["queue_capacity_pictures"] == 6)
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(insists, name) for name in NAMES[:4]]
        service.wait_for(lambda own: own["queue_running_pictures"] == 4)
        (ingress,) = replicas("Ingress")
        os.kill(ingress.pid, signal.SIGKILL)
        assert [job.result() for job in jobs] == [True] * 4
    assert replicas("Ingress")[0].pid != ingress.pid


@pytest.mark.slow
def test_engines_are_added_for_pictures_that_wait(service: Service) -> None:
    """Last in this file: it changes the application. One engine has no more to do than it can, and
    what waits here, where Serve does not see it, brings the second.
    """
    changes = {"num_replicas": 1, "max_replicas": 2, "upscale_delay_s": 0.0}
    scaled = service.settings.model_copy(update=changes)
    port = int(service.address.rpartition(":")[2])
    service = deployed(scaled, port, service.key)
    service.wait_for(lambda own: own["queue_capacity_pictures"] == 3)
    ended = threading.Event()

    def ask_on() -> None:
        while not ended.is_set():
            service.ask(PATH, {**LONG, "n": 3})

    clients = [threading.Thread(target=ask_on) for _ in range(3)]
    for client in clients:
        client.start()
    try:
        service.wait_for(lambda own: own["queue_capacity_pictures"] == 6, 3 * READY_S)
    finally:
        ended.set()
        for client in clients:
            client.join(ANSWER_S)

"""Tracking against real MLflow: SQLite, a server that is away, one that answers with errors."""

from __future__ import annotations

import http.server
import io
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file

from dreamfleet.assessment import compare
from dreamfleet.config import RunConfig, TrackingConfig
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.evaluation.cards import adapter_info, write_adapter_json
from dreamfleet.evaluation.report import Metric
from dreamfleet.runtime.ports import free_port
from dreamfleet.tracking import Contest, MlflowTracker, flush_spool, open_run, open_tracker
from dreamfleet.tracking.registry import fetch_version, registered_adapters
from dreamfleet.tracking.runs import compare_runs, list_runs, show_runs
from dreamfleet.tracking.store import MlflowStore
from tests.unit.evaluation.test_report import report_data

PATIENCE_S = 600.0  # a new database takes seconds, on a busy machine many
TAGS = {"dreamfleet.subject": "biscuit", "dreamfleet.method": "dreambooth"}


@pytest.fixture(scope="module")
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite store for all tests of this file: making one takes seconds."""
    folder = tmp_path_factory.mktemp("mlflow")
    MlflowStore.connect(f"sqlite:///{folder / 'mlflow.db'}")
    return folder


@pytest.fixture
def uri(store_folder: Path) -> str:
    return f"sqlite:///{store_folder / 'mlflow.db'}"


@pytest.fixture
def client(uri: str) -> Any:
    return MlflowStore.connect(uri).client


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An output folder as `personalize` leaves it."""
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "state.pt").write_bytes(b"not part of the adapter")
    weights = {"unet.conv_in.lora_A.weight": np.zeros((4, 8), np.float32)}
    save_file(weights, out / "pytorch_lora_weights.safetensors")
    (out / "adapter.json").write_text("{}")
    (out / "config.yaml").write_text("base_model: embedded\n")
    return out


def _tracker(
    uri: str, spool: Path, experiment: str, lines: list[str] | None = None
) -> MlflowTracker:
    said = lines if lines is not None else []
    return MlflowTracker(uri, experiment, spool, notify=said.append)


def test_a_run_with_all_its_records(
    uri: str, client: Any, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    lines: list[str] = []
    tracker = _tracker(uri, tmp_path / "spool", "all", lines)
    long = "x" * 10_000
    params = RunConfig().model_dump(mode="json")
    odd = os.fsdecode(b"\xff.jpg")  # a file's name can be any bytes
    given = {**params, "note": long, "photos": [odd]}
    run = tracker.start_run("biscuit", given, {**TAGS, "photo": odd}, key="biscuit-key")
    for step in range(1, 301):
        run.log_metrics({"loss": 1 / step, "rho": step / 300, "odd name (!)": 1.0}, step)
    run.log_grid([("a photo of sks dog", Image.new("RGB", (64, 64), "red"))] * 2, "samples", 100)
    run.log_artifact(adapter / "config.yaml")
    run.log_artifact(adapter, "whole")
    version = run.register_adapter(
        adapter, "biscuit", base_model=str(tmp_path), tags={"method": "x"}, timeout_s=PATIENCE_S
    )
    assert version == "1"
    assert run.finish(timeout_s=PATIENCE_S)
    tracker.close()
    assert lines == []

    assert run.run_id is not None
    recorded = client.get_run(run.run_id)
    assert recorded.info.status == "FINISHED" and recorded.info.run_name == "biscuit"
    assert recorded.data.params["train.mode"] == "lora"
    assert recorded.data.params["sude.weight"] == "0.0"
    assert 5_000 < len(recorded.data.params["note"]) <= 6_000
    assert recorded.data.tags["photo"] == "\\udcff.jpg"
    assert recorded.data.params["photos"] == '["\\udcff.jpg"]'
    assert recorded.data.metrics["loss"] == pytest.approx(1 / 300)
    history = client.get_metric_history(run.run_id, "rho")
    assert [metric.step for metric in history] == list(range(1, 301))
    names = {entry.path for entry in client.list_artifacts(run.run_id)}
    assert {"config.yaml", "images", "whole"} <= names
    assert recorded.outputs.model_outputs
    assert not (tmp_path / "mlruns").exists() and not (tmp_path / "mlflow.db").exists()
    assert not [entry for entry in (tmp_path / "spool").iterdir() if entry.is_dir()]

    _check_registered(client, uri, run.run_id, tmp_path)


def _check_registered(client: Any, uri: str, run_id: str, base: Path) -> None:
    found = client.get_model_version_by_alias("biscuit", "candidate")
    assert found.version == 1 or found.version == "1"
    assert found.run_id == run_id and found.tags["method"] == "x"
    import mlflow
    import mlflow.diffusers

    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.diffusers.load_model("models:/biscuit@candidate")
    finally:
        mlflow.set_tracking_uri(None)
    assert model.base_model == str(base)
    held = {path.name for path in Path(model.adapter_path).iterdir()}
    assert held == {"pytorch_lora_weights.safetensors", "adapter.json", "config.yaml"}


def test_the_same_key_goes_on_with_the_same_run(uri: str, client: Any, tmp_path: Path) -> None:
    ids = []
    for attempt, steps in enumerate((100, 200)):
        tracker = _tracker(uri, tmp_path / "spool", "resumed")
        run = tracker.start_run("biscuit", {"steps": steps, "rank": 4}, key="one-key")
        run.log_metrics({"loss": 1.0}, attempt)
        assert run.finish("KILLED" if attempt == 0 else "FINISHED", timeout_s=PATIENCE_S)
        tracker.close()
        ids.append(run.run_id)
    assert ids[0] == ids[1]
    recorded = client.get_run(ids[0])
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params == {"steps": "100", "rank": "4"}
    assert recorded.data.tags["changed.steps"] == "200"
    assert len(client.get_metric_history(ids[0], "loss")) == 2


def test_children_and_workers_find_the_run(uri: str, client: Any, tmp_path: Path) -> None:
    tracker = _tracker(uri, tmp_path / "spool", "family")
    parent = tracker.start_run("fleet")
    child = tracker.start_run("biscuit", parent=parent)
    worker = open_run(child.handle, tmp_path / "other spool")  # before it has an id
    worker.log_metrics({"loss": 0.25}, 7)
    assert child.wait_for_id(PATIENCE_S)
    assert worker.detach(PATIENCE_S)
    child.finish(timeout_s=PATIENCE_S)
    parent.finish(timeout_s=PATIENCE_S)
    tracker.close()
    recorded = client.get_run(child.run_id)
    assert recorded.data.tags["mlflow.parentRunId"] == parent.run_id
    assert recorded.data.metrics["loss"] == 0.25


def test_a_second_adapter_is_a_second_version_and_takes_the_alias(
    uri: str, client: Any, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "pytorch_lora_weights.safetensors").rename(adapter / "model_index.json")
    versions = []
    for _ in range(2):  # a whole pipeline: logged as it is, without a flavor
        tracker = _tracker(uri, tmp_path / "spool", "versions")
        run = tracker.start_run("teapot")
        versions.append(run.register_adapter(adapter, "teapot", timeout_s=PATIENCE_S))
        assert run.finish(timeout_s=PATIENCE_S)
        tracker.close()
    assert versions == ["1", "2"]
    assert str(client.get_model_version_by_alias("teapot", "candidate").version) == "2"


def test_only_what_is_not_worse_becomes_champion(
    uri: str, client: Any, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "pytorch_lora_weights.safetensors").rename(adapter / "model_index.json")
    tracker = _tracker(uri, tmp_path / "spool", "contests")
    run = tracker.start_run("rex")
    given = []
    for score, ruler, fidelity in (
        (0.5, "a", 0.5), (0.6, "a", 0.48), (0.55, "a", 0.5), (0.9, "a", 0.2),
        (0.9, "other pictures", 0.5),
    ):  # fmt: skip
        contest = Contest(score, ruler, fidelity, margin=0.03)
        version = run.register_adapter(adapter, "rex", contest=contest, timeout_s=PATIENCE_S)
        given.append(run.alias_of(version))
    assert given == ["champion", "champion", "candidate", "candidate", "candidate"]
    again = run.register_adapter(adapter, "rex", contest=contest, timeout_s=PATIENCE_S)
    assert again == version, "the same run with the same scores is not registered twice"
    aliases = client.get_registered_model("rex").aliases
    assert {name: int(version) for name, version in aliases.items()} == {
        "champion": 2, "previous": 1, "candidate": 5,
    }  # fmt: skip
    assert run.finish(timeout_s=PATIENCE_S)
    tracker.close()


def test_runs_are_listed_and_compared(uri: str, tmp_path: Path) -> None:
    tracker = _tracker(uri, tmp_path / "spool", "listed")
    for rank, score in ((4, 0.5), (16, 0.75)):
        run = tracker.start_run(f"r{rank}", {"train": {"rank": rank, "mode": "lora"}}, TAGS)
        run.log_metrics({"identity": score}, 1)
        assert run.finish(timeout_s=PATIENCE_S)
    tracker.close()
    rows = list_runs(uri, "listed")
    assert [row.metrics["identity"] for row in rows] == [0.75, 0.5]  # the newest first
    assert list_runs(uri, "no such experiment") == []
    assert len(list_runs(uri, "listed", limit=1)) == 1
    new, old = rows
    comparison = compare_runs(old.run_id, new.run_id[:12], uri, "listed")
    differences = {item.name: (item.first, item.second) for item in comparison.differences}
    assert differences == {"train.rank": ("4", "16"), "identity": ("0.5", "0.75")}
    buffer = io.StringIO()
    console = Console(file=buffer, width=120)
    show_runs([], tracking_uri=uri, experiment="listed", console=console)
    show_runs([old.run_id, new.run_id], tracking_uri=uri, experiment="listed", console=console)
    assert "biscuit" in buffer.getvalue() and "+0.25" in buffer.getvalue()
    with pytest.raises(BadInputError, match="no such run"):
        compare_runs("zzzz", new.run_id, uri, "listed")
    with pytest.raises(BadInputError, match="2 runs begin so"):
        compare_runs("", new.run_id, uri, "listed")


def test_recorded_adapters_are_compared_by_their_figures_and_judges(
    uri: str, tmp_path: Path
) -> None:
    """As the folders that were recorded are: losses are no figures of an adapter."""
    tracker, ids = _tracker(uri, tmp_path / "spool", "compared"), []
    for name, judge, identity in (("a", "CLIP", 0.8), ("b", "CLIP", 0.5), ("c", "DINO", 0.5)):
        (tmp_path / name).mkdir()
        metric = Metric("identity", "Identity", identity, 0.4, "alike", judge)
        data = report_data(base_hash="ab" * 32, metrics=[metric])
        run = tracker.start_run(name, {}, TAGS)
        run.log_metrics({"loss": identity, "identity": identity}, 1)
        run.log_artifact(write_adapter_json(tmp_path / name, adapter_info(data)))
        assert run.finish(timeout_s=PATIENCE_S)
        ids.append(str(run.run_id))
    unfinished = tracker.start_run("d", {}, TAGS)
    unfinished.log_metrics({"loss": 1.0}, 1)
    assert unfinished.finish(timeout_s=PATIENCE_S)
    tracker.close()
    where: Any = {"tracking_uri": uri, "experiment": "compared"}
    for one, other in ((ids[0], ids[1]), (ids[0], str(tmp_path / "b"))):
        (_, compared), (row,) = compare([one, other], **where)
        assert compared.name == "b" and row["figure"] == "identity"
        assert row["mean_difference"] == pytest.approx(0.3)
    with pytest.raises(BadInputError, match="not measured alike: judges identity CLIP"):
        compare([ids[0], ids[2]], **where)
    with pytest.raises(BadInputError, match=rf"run {unfinished.run_id}: neither summary\.json"):
        compare([ids[0], str(unfinished.run_id)], **where)


def test_processes_that_make_one_database_at_once_all_succeed(tmp_path: Path) -> None:
    """With MLflow alone one of two such processes crashes."""
    script = (
        "import sys; from pathlib import Path; from dreamfleet.tracking import MlflowTracker;"
        f"t = MlflowTracker('sqlite:///{tmp_path}/new.db', spool=Path('{tmp_path}/spool'));"
        f"r = t.start_run('a'); ok = r.finish(timeout_s={PATIENCE_S}); t.close(); sys.exit(not ok)"
    )
    started = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(2)]
    assert [process.wait(timeout=600) for process in started] == [0, 0]
    assert len(list_runs(f"sqlite:///{tmp_path}/new.db")) == 2


def test_tracking_costs_the_training_thread_next_to_nothing(uri: str, tmp_path: Path) -> None:
    """Under 2 % of a step of 50 ms: under 1 ms, and in truth far less."""
    tracker = _tracker(uri, tmp_path / "spool", "cost")
    run = tracker.start_run("biscuit")
    run.wait_for_id(PATIENCE_S)
    figures = dict.fromkeys(("loss", "loss_subject", "rho", "hinge", "prior", "norm", "lr"), 0.1)
    steps = 500
    before = time.thread_time()
    for step in range(steps):
        run.log_metrics(figures, step)
    per_step = (time.thread_time() - before) / steps
    assert run.finish(timeout_s=PATIENCE_S)
    tracker.close()
    assert per_step < 1e-3


class _Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(500)

    do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def broken_server() -> Iterator[str]:
    """A server that answers everything with 500."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Broken)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_a_server_that_answers_500_keeps_everything_on_disk(
    broken_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fail_fast(monkeypatch)
    lines: list[str] = []
    tracker = _tracker(broken_server, tmp_path, "x", lines)
    run = tracker.start_run("biscuit")
    run.log_metrics({"loss": 1.0}, 1)
    assert run.wait_for_id(PATIENCE_S) is None
    assert run.finish(timeout_s=PATIENCE_S) is False
    tracker.close()
    assert len(lines) == 1 and "error 500" in lines[0], lines
    with pytest.raises(DreamfleetError, match="error 500"):
        list_runs(broken_server)


def _fail_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Explicit MLFLOW_* variables are obeyed."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")


def test_a_server_that_was_away_gets_everything_once_it_is_there(
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    _fail_fast(monkeypatch)
    port, spool, lines = free_port("127.0.0.1"), tmp_path / "spool", list[str]()
    uri = f"http://me:secret@127.0.0.1:{port}"
    tracker = open_tracker(TrackingConfig(uri=uri), spool, lines.append)
    run = tracker.start_run("biscuit", {"a": 1}, TAGS)
    run.log_metrics({"loss": 0.5}, 3)
    run.log_image(Image.new("RGB", (8, 8)), "samples/one", 3)
    assert run.register_adapter(adapter, "late", base_model=str(tmp_path)) is None
    assert run.finish() is False
    tracker.close()
    assert len(lines) == 1 and "connection refused" in lines[0]

    with _server(port, tmp_path / "server"):
        result = flush_spool(spool)
        assert (result.runs, result.waiting, result.problems) == (1, 0, ())
        client = MlflowStore.connect(uri).client
        (row,) = list_runs(uri)
        assert row.status == "FINISHED" and row.metrics == {"loss": 0.5}
        assert [entry.path for entry in client.list_artifacts(row.run_id)] == ["images"]
        assert client.get_model_version_by_alias("late", "candidate").run_id == row.run_id
        (late,) = registered_adapters(uri, ["late"])  # behind a server named nowhere else
        weights = fetch_version(uri, late.versions[0], tmp_path / "fetched")
        assert weights.read_bytes() == (adapter / weights.name).read_bytes()
    assert "secret" not in "".join((*lines, *capfd.readouterr()))


class _server:  # noqa: N801  used as a function
    """A real MLflow server on `port`, with its files below `folder`."""

    def __init__(self, port: int, folder: Path) -> None:
        folder.mkdir()
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        self._port = port
        self._process = subprocess.Popen(
            command,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def __enter__(self) -> None:
        import urllib.request

        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self._port}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.3)
        self.__exit__()
        raise TimeoutError("the MLflow server did not start")

    def __exit__(self, *error: object) -> None:
        import signal

        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(timeout=120)

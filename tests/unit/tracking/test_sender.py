"""A dead, slow or refusing MLflow never raises, never stalls, and says one line."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.config import RunConfig, TrackingConfig
from dreamfleet.tracking import MlflowTracker, NullTracker, flush_spool, open_run, open_tracker
from dreamfleet.tracking import sender as sender_module
from dreamfleet.tracking.journal import Journal, Record
from dreamfleet.tracking.store import Refused, Unreachable

URI = "http://mlflow.example:5000"
PATIENCE_S = 120.0


class FakeStore:
    """MLflow, as far as a test needs it."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.behaviour: Callable[[Record], None] = lambda record: None

    def send(self, journal: Journal, record: Record) -> None:
        self.behaviour(record)
        self.records.append(record)
        if record["op"] == "create":
            journal.set_run_id("id-1")
        if record["op"] == "model":
            journal.results[record["id"]] = "3"

    @property
    def kinds(self) -> list[str]:
        return [record["op"] for record in self.records]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeStore]:
    fake = FakeStore()
    monkeypatch.setattr(sender_module, "PERIOD_S", 0.01)
    monkeypatch.setattr(sender_module, "FIRST_RETRY_S", 0.05)
    monkeypatch.setattr(sender_module, "ASK_AGAIN_S", 0.0)
    monkeypatch.setattr(
        "dreamfleet.tracking.store.MlflowStore.connect",
        classmethod(lambda cls, uri, create=True: fake),
    )
    yield fake


def _dead(record: Record) -> None:
    raise Unreachable("connection refused")


def _tracker(spool: Path, lines: list[str]) -> MlflowTracker:
    return MlflowTracker(URI, spool=spool, notify=lines.append)


def test_everything_arrives_in_order(store: FakeStore, tmp_path: Path) -> None:
    lines: list[str] = []
    tracker = _tracker(tmp_path, lines)
    run = tracker.start_run("biscuit", params={"train": {"rank": 4}}, tags={"subject": 1})
    assert run.wait_for_id() == "id-1"
    for step in range(1, 6):
        run.log_metrics({"loss": 1 / step}, step)
    (tmp_path / "adapter.json").write_text("{}")
    run.log_artifact(tmp_path / "adapter.json", "config")
    assert run.register_adapter(tmp_path, "biscuit/1", base_model="/base") == "3"
    assert run.finish()
    tracker.close()
    assert store.kinds == ["create", "params", "metrics", "artifact", "model", "finish"]
    assert store.records[1]["params"] == {"train.rank": 4}
    assert [row[3] for row in store.records[2]["rows"]] == [1, 2, 3, 4, 5]
    assert store.records[3]["path"] == "config"
    assert store.records[4]["name"] == "biscuit_1"  # MLflow's names have no slash
    assert lines == []
    assert not [entry for entry in tmp_path.iterdir() if (entry / "run.json").exists()]


def test_a_dead_server_costs_nothing_says_one_line_and_gets_it_all_later(
    store: FakeStore, tmp_path: Path
) -> None:
    store.behaviour = _dead
    lines: list[str] = []
    tracker = _tracker(tmp_path, lines)
    run = tracker.start_run("biscuit")
    assert run.wait_for_id(timeout_s=10) is None
    for step in range(1000):
        run.log_metrics({"loss": 0.1, "rho": 0.2}, step)
    (tmp_path / "adapter.json").write_text("{}")
    assert run.register_adapter(tmp_path, "biscuit") is None
    assert run.finish(timeout_s=5) is False
    tracker.close()
    assert len(lines) == 1
    assert "connection refused" in lines[0] and "training goes on" in lines[0]
    assert str(tmp_path) in lines[0] and "dreamfleet runs --flush" in lines[0]

    still_dead = flush_spool(tmp_path)
    assert still_dead.waiting == 1 and still_dead.problems
    store.behaviour = lambda record: None
    result = flush_spool(tmp_path)
    assert (result.runs, result.waiting, result.problems) == (1, 0, ())
    assert store.kinds[0] == "create" and store.kinds[-1] == "finish"
    rows = [row for record in store.records if record["op"] == "metrics" for row in record["rows"]]
    assert len(rows) == 2000
    assert flush_spool(tmp_path).summary() == "nothing waits to be sent to MLflow"


def test_no_line_names_the_password(store: FakeStore, tmp_path: Path) -> None:
    store.behaviour = _dead
    lines: list[str] = []
    tracker = MlflowTracker("http://me:secret@mlflow:5000", spool=tmp_path, notify=lines.append)
    tracker.start_run("biscuit").finish(timeout_s=5)
    store.behaviour = lambda record: None
    deadline = time.monotonic() + PATIENCE_S
    while len(lines) < 2 and time.monotonic() < deadline:
        time.sleep(0.01)
    store.behaviour = _dead
    tracker.start_run("pretzel").finish(timeout_s=5)
    tracker.close()
    (problem,) = flush_spool(tmp_path).problems
    assert len(lines) == 3 and "answers again" in lines[1]
    for line in (*lines, problem):
        assert "http://me@mlflow:5000" in line and "secret" not in line


def test_a_server_that_does_not_answer_is_not_waited_for(store: FakeStore, tmp_path: Path) -> None:
    asked, answers = threading.Event(), threading.Event()

    def silent(record: Record) -> None:
        asked.set()
        answers.wait(PATIENCE_S)

    store.behaviour = silent
    lines: list[str] = []
    tracker = _tracker(tmp_path, lines)
    run = tracker.start_run("biscuit")
    assert asked.wait(PATIENCE_S)
    for step in range(1000):
        run.log_metrics({"loss": 0.1}, step)
    run.set_tags({"while": "silent"})
    assert run.finish(timeout_s=0.2) is False
    assert store.records == [], "all that while the first record was not answered"
    assert len(lines) == 1 and "in time" in lines[0]
    answers.set()
    tracker.close(PATIENCE_S)
    assert store.kinds[0] == "create" and store.kinds[-1] == "finish"


def test_a_server_that_dies_and_comes_back_mid_run_misses_nothing(
    store: FakeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not tried again until it is asked for: a try that fails meanwhile would end the waiting.
    monkeypatch.setattr(sender_module, "FIRST_RETRY_S", PATIENCE_S)
    lines: list[str] = []
    tracker = _tracker(tmp_path, lines)
    run = tracker.start_run("biscuit")
    run.wait_for_id()
    store.behaviour = _dead
    run.set_tags({"while": "down"})
    deadline = time.monotonic() + PATIENCE_S
    while not lines and time.monotonic() < deadline:
        time.sleep(0.01)
    store.behaviour = lambda record: None
    assert run.finish()
    tracker.close()
    assert store.kinds == ["create", "tags", "finish"]
    assert len(lines) == 2
    assert "answers again" in lines[1]


def test_a_refused_record_is_put_aside_and_the_rest_goes_on(
    store: FakeStore, tmp_path: Path
) -> None:
    def refuse_images(record: Record) -> None:
        if record["op"] == "image":
            raise Refused("bad key")

    store.behaviour = refuse_images
    lines: list[str] = []
    tracker = _tracker(tmp_path, lines)
    run = tracker.start_run("biscuit")
    run.log_image(b"png", "x")
    run.log_image(b"png", "y")
    assert run.finish()
    tracker.close()
    assert store.kinds == ["create", "finish"]
    assert len(lines) == 1 and "bad key" in lines[0]
    assert len(list(tmp_path.glob("*/rejected.jsonl"))) == 1


def test_runs_nobody_finished_are_ended_as_killed(store: FakeStore, tmp_path: Path) -> None:
    tracker = _tracker(tmp_path, [])
    tracker.start_run("biscuit")
    tracker.close()
    assert store.records[-1]["status"] == "KILLED"


def test_another_process_goes_on_by_handle_and_leaves_the_run_open(
    store: FakeStore, tmp_path: Path
) -> None:
    tracker = _tracker(tmp_path, [])
    run = tracker.start_run("biscuit", key="biscuit 1")
    run.wait_for_id()
    worker = open_run(run.handle, tmp_path)
    worker.log_metrics({"loss": 0.5}, 1)
    assert worker.detach()
    assert store.kinds == ["create", "metrics"]
    assert run.handle.key == "biscuit_1"
    run.finish()
    tracker.close()


def test_a_child_names_its_parent_before_mlflow_has_an_id_for_it(
    store: FakeStore, tmp_path: Path
) -> None:
    store.behaviour = _dead
    tracker = _tracker(tmp_path, [])
    parent = tracker.start_run("fleet", key="fleet-1")
    child = tracker.start_run("biscuit", parent=parent)
    store.behaviour = lambda record: None
    child.finish()
    parent.finish()
    tracker.close()
    creations = {record["name"]: record for record in store.records if record["op"] == "create"}
    assert creations["biscuit"]["parent"]["key"] == "fleet-1"


def test_the_next_run_sends_what_the_last_one_could_not(store: FakeStore, tmp_path: Path) -> None:
    store.behaviour = _dead
    first = _tracker(tmp_path, [])
    first.start_run("old").finish(timeout_s=1)
    first.close()
    store.behaviour = lambda record: None
    second = _tracker(tmp_path, [])
    deadline = time.monotonic() + PATIENCE_S
    while "finish" not in store.kinds and time.monotonic() < deadline:
        time.sleep(0.01)
    second.close()
    assert store.kinds == ["create", "finish"]


def test_configuration_decides_the_tracker(
    fleet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(open_tracker(TrackingConfig(enabled=False)), NullTracker)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "from the environment")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://elsewhere:1")
    made: list[Any] = []
    monkeypatch.setattr(
        "dreamfleet.tracking.mlflow_tracker.MlflowTracker",
        lambda uri, experiment, spool, notify: made.append((uri, experiment)),
    )
    open_tracker(TrackingConfig())
    open_tracker(
        RunConfig.model_validate({"tracking": {"experiment": "mine", "uri": URI}}).tracking
    )
    assert made == [("http://elsewhere:1", "from the environment"), (URI, "mine")]

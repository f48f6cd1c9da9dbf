"""Where records go, what they are called, and what `dreamfleet runs` makes of them."""

from __future__ import annotations

import io
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from rich.console import Console

from dreamfleet.errors import DreamfleetError
from dreamfleet.tracking import NullTracker, RunHandle, flatten, resolve_uri, runs
from dreamfleet.tracking.base import sqlite_path, ui_command, without_password
from dreamfleet.tracking.images import grid, png_bytes
from dreamfleet.tracking.journal import Journal
from dreamfleet.tracking.runs import (
    Comparison,
    Difference,
    RunRow,
    comparison_table,
    key_metrics,
    list_runs,
    runs_table,
    show_runs,
)
from dreamfleet.tracking.store import MlflowStore, Unreachable, plain_reason

SECRET = "http://me:secret@host:5000"


def test_default_uri_is_sqlite_in_the_home(
    fleet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert resolve_uri() == f"sqlite:///{fleet_home / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert resolve_uri() == "http://host:5000"
    assert resolve_uri("https://given") == "https://given"


def test_relative_sqlite_paths_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("sqlite:///a/b.db") == f"sqlite:///{tmp_path / 'a' / 'b.db'}"
    assert sqlite_path("postgresql://u@h/db") is None
    assert sqlite_path("/some/folder") is None


def test_ui_command_works_without_activating_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    program = Path(ui_command("sqlite:////x/mlflow.db").split()[0])
    assert program.resolve() == Path(sys.executable).with_name("mlflow").resolve()


def test_ui_command_names_the_store() -> None:
    assert ui_command("sqlite:////x/mlflow.db").endswith(
        "--backend-store-uri sqlite:////x/mlflow.db"
    )
    assert ui_command("http://host:5000") == "http://host:5000"


def test_passwords_are_not_shown() -> None:
    shown = ui_command("postgresql+psycopg2://me:se:cr@et@host:5432/mlflow?ssl=1")
    assert shown.endswith("--backend-store-uri postgresql+psycopg2://me@host:5432/mlflow?ssl=1")
    assert ui_command("https://me:secret@host") == "https://me@host"
    for given, shown in (
        ("postgresql://me:a/b?c@host/x", "postgresql://me@host/x"),
        ("postgresql://host/x?password=secret&ssl=1", "postgresql://host/x?password=…&ssl=1"),
        ("sqlite:////a@b:c/d@e.db", "sqlite:////a@b:c/d@e.db"),
        ("http://host:5000/a@b", "http://host:5000/a@b"),
    ):
        assert without_password(given) == shown
    assert ui_command("http://host/a@b:c") == "http://host/a@b:c"


def test_flatten_gives_dotted_names() -> None:
    tree = {"a": {"b": 1, "c": {"d": None}}, "e": {}, "f": [1]}
    assert flatten(tree) == {"a.b": 1, "a.c.d": None, "e": {}, "f": [1]}


def test_null_tracker_does_nothing(tmp_path: Path) -> None:
    run = NullTracker().start_run("x", {"a": 1})
    run.log_metrics({"loss": 1.0}, 1)
    run.log_grid([], "g")
    assert run.register_adapter(tmp_path, "x") is None
    assert run.finish()


def test_grid_has_a_row_per_prompt_and_keeps_pixels_sharp() -> None:
    red, blue = Image.new("RGB", (64, 64), "red"), Image.new("RGB", (64, 64), "blue")
    sheet = grid([("a", red), ("b", blue), ("a", png_bytes(blue)), ("long " * 60, red)])
    assert sheet.width == 6 + 2 * (128 + 6)
    assert sheet.height == 6 + 3 * (20 + 128 + 6)
    assert sheet.getpixel((10, 40)) == (255, 0, 0)
    assert sheet.getpixel((10 + 134, 40)) == (0, 0, 255)
    colours = {colour for _, colour in sheet.crop((6, 26, 134, 154)).getcolors() or []}
    assert colours == {(255, 0, 0)}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError("HTTPConnectionPool: Max retries ... [Errno 111] Connection refused"), "refused"),
        (OSError("Read timed out. (read timeout=20)"), "no answer in time"),
        (OSError("... (Caused by ResponseError('too many 500 error responses'))"), "error 500"),
        (ValueError("line one\nline two"), "line one"),
        (ValueError("x" * 500), "..."),
    ],
)
def test_reasons_are_short(error: Exception, words: str) -> None:
    reason = plain_reason(error, "sqlite:////x.db")
    assert words in reason
    assert len(reason) <= 160 and "\n" not in reason


def test_no_error_names_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MLflow's own texts name the whole address; a cut must not leave half of the password."""

    def down(*given: object) -> None:
        raise OSError(f"API request to {SECRET}/api failed with {'exception ' * 20}")

    assert "secr" not in plain_reason(OSError("x" * 133 + SECRET), SECRET + "/")
    broken = MlflowStore(SimpleNamespace(get_experiment_by_name=down), SECRET)  # type: ignore[arg-type]
    journal = Journal.begin(tmp_path, RunHandle(SECRET, "dreamfleet", "biscuit"))
    with pytest.raises(Unreachable, match="me@host") as unsent:
        broken.send(journal, {"op": "create", "tags": {}})
    monkeypatch.setattr(MlflowStore, "connect", lambda uri: broken)
    with pytest.raises(DreamfleetError, match="MLflow at http://me@host:5000: API") as unread:
        list_runs(SECRET)
    monkeypatch.undo()
    monkeypatch.setattr("dreamfleet.tracking.store._client", lambda uri, create: down())
    with pytest.raises(Unreachable, match="me@host") as unopened:
        MlflowStore.connect(SECRET)
    assert not any("secret" in str(error.value) for error in (unsent, unread, unopened))


def test_an_empty_list_names_the_place_without_its_password(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = SimpleNamespace(get_experiment_by_name=lambda name: None)
    monkeypatch.setattr(MlflowStore, "connect", lambda uri: SimpleNamespace(client=client))
    buffer = io.StringIO()
    show_runs([], tracking_uri=SECRET, console=Console(file=buffer, width=200))
    assert "no runs in experiment 'dreamfleet' at http://me@host:5000" in buffer.getvalue()


def _row(run_id: str, **metrics: float) -> RunRow:
    params = {"method": "dreambooth", "train.mode": "lora", "sude.weight": "0.4"}
    params["train.max_train_steps"] = "300"
    tags = {"dreamfleet.subject": "[bold]biscuit"}
    return RunRow(run_id, "n", "FINISHED", datetime(2026, 1, 2), 75.0, params, metrics, tags)


def _text(table: object, width: int = 120) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=width, color_system=None).print(table)
    return buffer.getvalue()


def test_table_shows_subject_method_steps_metrics_and_status() -> None:
    text = _text(runs_table([_row("0123456789", identity=0.83, loss=0.1, lr=1e-3, other=1.0)]))
    for expected in ("01234567", "[bold]biscuit", "dreambooth lora SuDe 0.4", "300", "0.83"):
        assert expected in text
    assert "finished" in text and "1:15" in text


def test_key_metrics_come_first() -> None:
    rows = [_row("a", lr=1.0, loss=1.0), _row("b", identity=0.5, lr=1.0)]
    assert key_metrics(rows) == ["identity", "loss", "lr"]


def test_comparison_shows_the_change() -> None:
    differences = (
        Difference("train.rank", "4", "16", "param"),
        Difference("identity", "0.5", "0.75", "metric"),
        Difference("method", "a", "b", "param"),
    )
    text = _text(comparison_table(Comparison(_row("aaaaaaaaaa"), _row("bbbbbbbbbb"), differences)))
    assert "+12" in text and "+0.25" in text and "aaaaaaaa" in text
    assert "no difference" in _text(comparison_table(Comparison(_row("a"), _row("b"), ())))


def test_without_a_database_there_are_no_runs_and_none_is_made(
    fleet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert list_runs() == []
    buffer = io.StringIO()
    show_runs([], console=Console(file=buffer, width=200))
    assert "no runs in experiment 'dreamfleet'" in buffer.getvalue()
    assert not (fleet_home / "mlflow.db").exists()


def test_a_narrow_terminal_shows_fewer_figures_and_whole_names() -> None:
    rows = [_row("0123456789", identity=0.83, loss=0.1, lr=1e-3)]
    narrow, wide = (_text(runs_table(rows, width), width) for width in (80, 160))
    assert "started" in wide and "started" not in narrow
    assert narrow.count("0.") < wide.count("0.")
    assert "[bold]biscuit" in narrow and "dreambooth lora SuDe 0.4" in wide


def test_a_study_is_listed_with_its_champions_settings() -> None:
    info = SimpleNamespace(
        run_id="ab", run_name="biscuit", status="FINISHED", start_time=1000, end_time=3000
    )
    data = SimpleNamespace(
        params={"sude.weight": "0.4", "train.max_train_steps": "300", "method": "dreambooth"},
        metrics={"identity": 0.5},
        tags={"champion.sude.weight": "1.25", "champion.train.max_train_steps": "150"},
    )
    row = runs._row(SimpleNamespace(info=info, data=data))
    assert row.method == "dreambooth SuDe 1.25" and row.steps == "150" and row.seconds == 2

"""`dreamfleet benchmark` and `evaluate` on a real Ray and a real MLflow, with random networks."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dreamfleet import cli
from dreamfleet.runtime.session import RaySession
from dreamfleet.tracking.runs import list_runs
from tests.tiny_evaluators import make_tiny_evaluators

pytestmark = pytest.mark.usefixtures("fleet_home")

QUICK = (
    "--max-train-steps", "2", "--rank", "2", "--num-inference-steps", "1",
    "--guidance-scale", "1", "--images-per-prompt", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_evaluators(tmp_path_factory.mktemp("evaluators"))


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_worldbench_then_again_then_evaluate_and_compare(
    ray_running: RaySession,
    tiny_base: Path,
    evaluators: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "bench"
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    arguments = (
        "benchmark", "worldbench", "--base-model", str(tiny_base), "--subjects", "2",
        "--evaluators", str(evaluators), "--output-dir", str(output), "--tracking-uri", uri, *QUICK,
    )  # fmt: skip
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    assert "Identity fidelity" in out and str(output / "report.html") in out
    rows = pq.read_table(output / "results.parquet").to_pylist()
    # Two arms of two subjects: itself, 7 states, 9 scenes, and 8 pictures of the class.
    assert len(rows) == 2 * 2 * (1 + 7 + 9 + 8)
    noise = {
        host: [row["noise_seed"] for row in rows if row["host"] == host]
        for host in ("base", "defaults")
    }
    assert noise["base"] == noise["defaults"]
    assert all((output / row["picture"]).is_file() for row in rows)
    summary = json.loads((output / "summary.json").read_text())
    assert [entry["host"] for entry in summary["table"]] == ["base", "defaults"]
    assert summary["subjects"] == ["D00-dog", "D01-teapot"]
    assert len(set(summary["individuals"].values())) == 2  # by what they are, not by name
    assert "<h1>WorldBench, split D</h1>" in (output / "report.html").read_text()
    found = {entry.name: entry for entry in list_runs(uri)}
    recorded = found["benchmark worldbench defaults"]
    assert "alignment" in recorded.metrics and "base.alignment" in recorded.metrics

    picture = output / rows[0]["picture"]
    before = picture.stat().st_mtime_ns
    code, _, err = run(capsys, *arguments)
    assert code == 0, err
    assert "72 of 72 prompts" in err  # nothing is drawn twice
    assert picture.stat().st_mtime_ns == before

    adapters = sorted((output / "adapters" / "seed-0").glob("*/adapter.json"))
    assert len(adapters) == 2
    evaluated = tmp_path / "evaluated"
    code, out, err = run(
        capsys, "evaluate", "--adapter", str(adapters[0].parent), "--protocol", "dreambench",
        "--images-per-prompt", "1", "--output-dir", str(evaluated), "--num-inference-steps", "1",
        "--clip", str(evaluators / "clip"), "--dino", "", "--blip", "", "--no-tracking",
    )  # fmt: skip
    assert code == 0, err
    assert "DINO is left out" in err  # no DINO was named
    rows = pq.read_table(evaluated / "results.parquet").to_pylist()
    assert len(rows) == 2 * (25 + 8)
    assert "clip_t[clip]" in rows[0]

    # The same figures of somebody else are no pair to them.
    other = tmp_path / "other"
    other.mkdir()
    summary_text = (evaluated / "summary.json").read_text()
    (subject,) = {row["subject"] for row in rows}
    assert f'"{subject}"' in summary_text
    renamed = summary_text.replace(f'"{subject}"', '"somebody"')
    (other / "summary.json").write_text(renamed)
    code, _, err = run(capsys, "compare", str(evaluated), str(other))
    assert code == 2 and "same subjects" in err
    code, out, _ = run(capsys, "compare", str(output), recorded.run_id, "--tracking-uri", uri)
    assert code == 0 and "+0.000" in out  # the run holds the folder's own figures


def test_what_cannot_be_scored_is_refused_before_training(
    tiny_base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ("--base-model", str(tiny_base), "--output-dir", str(tmp_path / "out"))
    empty = str(tmp_path)
    code, _, err = run(capsys, "benchmark", "worldbench", *base, "--evaluators", empty)
    assert code == 2 and "model.safetensors" in err
    code, _, err = run(capsys, "benchmark", "dreambench", *base)
    assert code == 2 and "--data-dir" in err
    assert not (tmp_path / "out" / "adapters").exists()

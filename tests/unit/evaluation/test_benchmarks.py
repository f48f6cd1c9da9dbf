"""The benchmarks run, with counts too small to mean anything, and record what they are asked to."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.benchmarks.random_base import SHAPES, unet_of, write_random_base
from dreamfleet.evaluation.benchmarks.record import MEANINGS, Figure, record
from dreamfleet.evaluation.benchmarks.run import run_benchmarks, run_gpu_benchmarks
from dreamfleet.evaluation.benchmarks.settings import BenchSettings

pytestmark = pytest.mark.heavy

SMALLEST = BenchSettings(
    rank=2, jobs=2, rounds=1, steps=1, inference_steps=1, registered_adapters=4
)
IN_PROCESS = (
    "single_job",
    "packed_training",
    "sude_overhead_alone",
    "sude_overhead_packed",
    "packed_sude_sweep",
    "mixed_batch",
    "swap_serving",
    "adapter_switch",
    "many_registered",
)

SERVED = {
    "serve_mixed": "serve_mixed_ratio",
    "serve_vs_swap": "serve_vs_swap_speedup",
    "serve_many_adapters": "serve_1000_adapters_ratio",
}


@pytest.fixture(autouse=True)
def own_cores() -> Iterator[None]:
    threads, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    yield
    torch.set_num_threads(threads)
    os.sched_setaffinity(0, cores)


def test_every_measure_in_this_process_gives_its_figures(
    tiny_base_folder: Path, tmp_path: Path
) -> None:
    settings = BenchSettings(**{**SMALLEST.__dict__, "base_model": str(tiny_base_folder)})
    lines: list[str] = []
    figures = run_benchmarks(settings, tmp_path, quick=False, only=IN_PROCESS, say=lines.append)
    apart = {"packed_vs_processes_speedup", "packed_memory_fraction", "help_ms", *SERVED.values()}
    apart |= {key for key in MEANINGS if key.startswith("sweep_")}
    apart |= {"packed_tflops", "packed_mfu", "packed_memory_gib"}  # of a GPU
    assert set(figures) == set(MEANINGS) - apart
    assert len(lines) == len(figures)
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    for key, figure in figures.items():
        own = written[key]
        assert own["value"] == pytest.approx(figure.value, abs=1e-4)
        assert own["unit"] in ("ratio", "fraction", "ms") and own["samples"]
        assert {"date", "hardware", "settings", "versions"} <= set(own)
        assert f"`{key}`" in (tmp_path / "benchmarks.md").read_text()


def test_the_table_for_gpus_can_be_made(tmp_path: Path) -> None:
    """On a CPU and a tiny base of Stable Diffusion's kind, in half precision as on a GPU."""
    base = write_random_base(tmp_path / "random-tiny", SHAPES["tiny"])
    settings = replace(SMALLEST, base_model=str(base), packed_batch=1, dtype="bfloat16")
    only = [name for name in IN_PROCESS if name != "many_registered"]
    figures = run_benchmarks(
        settings, tmp_path, quick=False, gpu=True, only=[*only, "utilisation"], say=lambda _: None
    )
    expected = {"packed_training_speedup", "packed_sude_sweep_speedup", "packed_tflops"}
    assert expected <= set(figures) and figures["packed_tflops"].value > 0
    page = (tmp_path / "benchmarks_gpu.md").read_text()
    assert "`packed_tflops`" in page and "base random-tiny, LoRA" in page
    assert not (tmp_path / "benchmarks.md").exists()


def test_a_random_base_has_the_shape_of_stable_diffusion() -> None:
    """859.5 million weights in the UNet of Stable Diffusion 1.5; nothing is drawn here."""
    with torch.device("meta"):
        unet = unet_of(SHAPES["sd15"])
    assert sum(weight.numel() for weight in unet.parameters()) == 859_520_964


@pytest.mark.slow
@pytest.mark.parametrize("measure", SERVED)
def test_services_are_measured(tiny_base_folder: Path, tmp_path: Path, measure: str) -> None:
    """Adapters of half a MiB, twelve of them: the smallest cache cannot hold them all."""
    more = {"base_model": str(tiny_base_folder), "rank": 64, "rounds": 3, "registered_adapters": 12}
    settings = BenchSettings(**{**SMALLEST.__dict__, **more})
    figures = run_benchmarks(settings, tmp_path, quick=False, only=[measure])
    assert set(figures) == {SERVED[measure]} and figures[SERVED[measure]].value > 0


@pytest.mark.slow
def test_processes_race(tiny_base_folder: Path, tmp_path: Path) -> None:
    settings = BenchSettings(**{**SMALLEST.__dict__, "base_model": str(tiny_base_folder)})
    only = ("packed_against_processes", "help_time")
    figures = run_benchmarks(settings, tmp_path, quick=False, only=only, say=lambda line: None)
    assert 0 < figures["packed_memory_fraction"].value < 1.5


def test_a_measure_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="--only single_jb: expected some of single_job, "):
        run_benchmarks(SMALLEST, tmp_path, quick=True, only=["single_job", "single_jb"])
    with pytest.raises(BadInputError, match="--only serve_mixed: "):  # not among the quick ones
        run_benchmarks(SMALLEST, tmp_path, quick=True, only=["serve_mixed"])
    with pytest.raises(BadInputError, match="--only help_time: .*utilisation"):
        run_gpu_benchmarks(SMALLEST, tmp_path, "sd15", only=["help_time"])
    assert not list(tmp_path.iterdir())


def test_a_run_replaces_only_what_it_measured(tmp_path: Path) -> None:
    first = {
        "single_job_speedup": Figure(1.5, "ratio", [1.4, 1.6]),
        "help_ms": Figure(9, "ms", [9]),
    }
    record(tmp_path, first, SMALLEST)
    record(tmp_path, {"help_ms": Figure(7, "ms", [7])}, BenchSettings())
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written["help_ms"]["value"] == 7
    assert written["single_job_speedup"]["samples"] == [1.4, 1.6]
    page = (tmp_path / "benchmarks.md").read_text()
    assert "| 1.5 | 1.4 to 1.6 |" in page and page.count("\n- ") == 2


def test_services_have_all_cores_and_their_engines_as_many_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def serve(settings: BenchSettings) -> dict[str, Figure]:
        seen.append((os.sched_getaffinity(0), settings.num_threads))
        return {}

    cores = os.sched_getaffinity(0)
    monkeypatch.setattr("dreamfleet.evaluation.benchmarks.measures.SERVICES", (serve,))
    run_benchmarks(SMALLEST, tmp_path, quick=False, only=["serve"])
    assert seen == [(cores, len(cores))]


def test_measures_of_many_processes_have_all_cores(tmp_path: Path) -> None:
    seen = []

    def sweep(settings: BenchSettings) -> dict[str, Figure]:
        seen.append(os.sched_getaffinity(0))
        return {}

    cores = os.sched_getaffinity(0)
    run_benchmarks(SMALLEST, tmp_path, quick=False, only=["sweep"], further=[sweep])
    assert seen == [cores]

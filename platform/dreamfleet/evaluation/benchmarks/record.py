"""docs/benchmarks.json and docs/benchmarks.md; a run replaces only what it measured."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dreamfleet.evaluation.benchmarks.settings import BenchSettings

PACKAGES = ("torch", "diffusers", "peft", "transformers")


@dataclass(frozen=True)
class Figure:
    """A measured value with its samples; unit: ratio, fraction, ms, TFLOP/s or GiB."""

    value: float
    unit: str
    samples: list[float]


# key -> (what it is, what it should reach)
MEANINGS: dict[str, tuple[str, str]] = {
    "single_job_speedup": ("one job, batch 1, against the diffusers-style loop, steps/s", "≥ 1.3"),
    "packed_training_speedup": (
        "jobs of batch 2 (on a GPU: 1) packed, against one after another in our own loop, "
        "samples/s",
        "≥ 1.6 (16 jobs on a GPU: ≥ 5)",
    ),
    "packed_vs_diffusers_speedup": ("the same against the diffusers-style loop", "≥ 2.2"),
    "packed_vs_processes_speedup": (
        "the same against as many diffusers-style processes on the same cores",
        "≥ 2",
    ),
    "packed_memory_fraction": ("memory (PSS) of the packed process over theirs together", "≤ 0.25"),
    "packed_tflops": ("arithmetic of a packed step over its time", ""),
    "packed_mfu": ("that over the device's peak in bf16", ""),
    "packed_memory_gib": ("GPU memory of a packed step at its highest", ""),
    "sude_overhead_alone": ("SuDe on, one job, batch 1 + 1 prior: time over SuDe off", "≤ 0.35"),
    "sude_overhead_packed": (
        "the same per trial, trials of one subject packed, shared teacher",
        "≤ 0.10",
    ),
    "packed_sude_sweep_speedup": (
        "SuDe trials of one subject, 2 samples, packed against one after another without a "
        "shared cache",
        "≥ 2.5",
    ),
    "mixed_batch_ratio": (
        "images/s of a batch of different subjects over one of a single",
        "≥ 0.80",
    ),
    "swap_serving_speedup": (
        "the same batch over diffusers with `load_lora_weights` per request",
        "≥ 1.7",
    ),
    "adapter_switch_ms": ("putting an adapter from host memory into a slot", "≤ 5"),
    "registered_adapters_ratio": (
        "images/s with every request another of many registered adapters, over always the same",
        "",
    ),
    "serve_mixed_ratio": (
        "`dreamfleet serve`: images/s of concurrent clients on different subjects over the same "
        "clients on one",
        "≥ 0.80",
    ),
    "serve_vs_swap_speedup": (
        "the same clients over a Serve deployment of diffusers with `load_lora_weights` per "
        "request (one service after the other, theirs with one thread or all, whichever is faster)",
        "≥ 1.7",
    ),
    "serve_1000_adapters_ratio": (
        "clients on random ones of 1,000 adapters, half of which fit the cache, over one adapter",
        "≥ 0.90",
    ),
    "sweep_cost_in_runs": (
        "a study of 16 pruned trials: engine time over that of one SuDe run with prior, alone",
        "≤ 4",
    ),
    "sweep_training_in_runs": ("of that, training", ""),
    "sweep_finals_in_runs": (
        "its finals: the best two on two new seeds, the same; 5/7 of the finals' time, the rest is "
        "the host's",
        "≤ 4",
    ),
    "sweep_finals_training_in_runs": ("of that, training", ""),
    "sweep_wall_over_engine": (
        "its time from the first to the last engine step over the engine's working time",
        "≤ 1.1",
    ),
    "help_ms": ("`dreamfleet --help`", "≤ 500"),
}


def record(
    folder: Path,
    figures: Mapping[str, Figure],
    settings: BenchSettings,
    name: str = "benchmarks",
) -> None:
    """Put `figures` into `name`.json in `folder` and write the page anew."""
    path = folder / f"{name}.json"
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    about = {
        "date": datetime.now(UTC).date().isoformat(),
        "hardware": hardware(settings.device),
        "settings": settings.text(),
        "versions": {name: version(name) for name in PACKAGES},
    }
    for key, figure in figures.items():
        known[key] = {
            "value": round(figure.value, 4),
            "unit": figure.unit,
            "samples": [round(sample, 4) for sample in figure.samples],
            **about,
        }
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(page(known), encoding="utf-8")


def page(known: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        "# Benchmarks",
        "",
        "Measured by `make bench` and `make bench-quick`, which write this page. The contestants",
        "of a line take turns in one run, and a ratio is that of their medians. The",
        "diffusers-style loop is our own re-creation of what diffusers'",
        "`train_dreambooth_lora.py` documents: diffusers' and PEFT's real layers, AdamW, same",
        "batch, layers and rank, VAE and text encoder in the loop, no caches.",
        "",
        "| key | what | reach | measured | range of the rounds | date |",
        "|---|---|---|---|---|---|",
    ]
    for key, (what, reach) in MEANINGS.items():
        if key in known:
            own = known[key]
            low, high = min(own["samples"]), max(own["samples"])
            unit = f" {own['unit']}" if own["unit"] not in ("ratio", "fraction") else ""
            lines.append(
                f"| `{key}` | {what} | {reach} | {own['value']:.3g}{unit} "
                f"| {low:.3g} to {high:.3g} | {own['date']} |"
            )
    circumstances = {
        (own["hardware"], own["settings"], json.dumps(own["versions"], sort_keys=True))
        for own in known.values()
    }
    lines += ["", "Circumstances:", ""]
    for place, settings, versions in sorted(circumstances):
        shown = ", ".join(f"{name} {number}" for name, number in json.loads(versions).items())
        lines.append(f"- {place}; {settings}; {shown}")
    return "\n".join(lines) + "\n"


def hardware(device: str = "cpu") -> str:
    """Processor and cores that this process may use, and the GPU if that is the device."""
    if device.startswith("cuda"):
        import torch

        return f"{torch.cuda.get_device_name(device)}; {hardware()}"
    name = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    except OSError:
        pass
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} core{'s' if cores != 1 else ''}"

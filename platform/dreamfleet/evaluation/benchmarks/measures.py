"""The figures. Contestants take turns in one run; a ratio is that of their median times."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

from dreamfleet.engine.engine import Engine
from dreamfleet.engine.packed_sampling import ImageRequest
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.engine.teacher import BLOCK_ROWS
from dreamfleet.evaluation.benchmarks.baseline import DiffusersStyleServing, DiffusersStyleTraining
from dreamfleet.evaluation.benchmarks.contestants import (
    LEARNING_RATE,
    PROMPT,
    OneAfterAnother,
    Packed,
    adapter,
    loaded,
    photos,
    write_adapter,
)
from dreamfleet.evaluation.benchmarks.processes import race
from dreamfleet.evaluation.benchmarks.record import Figure
from dreamfleet.evaluation.benchmarks.serving import (
    serve_many_adapters,
    serve_mixed,
    serve_vs_swap,
)
from dreamfleet.evaluation.benchmarks.settings import BenchSettings

Measure = Callable[[BenchSettings], dict[str, Figure]]
GUIDANCE = 3.0
SWITCHES = 50
# Dense bf16 peaks out of the makers' data sheets, by a part of the name that CUDA gives.
PEAK_TFLOPS = {"H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "L4": 121.0}


def diffusers_job(settings: BenchSettings, subject: int, batch_size: int) -> DiffusersStyleTraining:
    """The baseline on the photos that our jobs have."""
    base = loaded(settings)
    return DiffusersStyleTraining(
        base,
        photos(base, subject),
        PROMPT,
        batch_size=batch_size,
        rank=settings.rank,
        layers=settings.layers,
        learning_rate=LEARNING_RATE,
    )


def packed_jobs(settings: BenchSettings) -> Packed:
    """Different subjects, a few samples each."""
    return Packed(settings, _packed_specs(settings))


def _packed_specs(settings: BenchSettings) -> list[dict[str, int]]:
    batch_size = settings.packed_batch
    return [{"subject": index, "batch_size": batch_size} for index in range(settings.jobs)]


def single_job(settings: BenchSettings) -> dict[str, Figure]:
    """One job, batch 1, SuDe off, against the diffusers-style loop."""
    ours = Packed(settings, [{"subject": 0, "batch_size": 1}])
    theirs = diffusers_job(settings, 0, batch_size=1)
    times = _take_turns(settings, {"ours": ours.run, "theirs": _repeated(theirs.step)})
    return {"single_job_speedup": _ratio(times["theirs"], times["ours"])}


def packed_training(settings: BenchSettings) -> dict[str, Figure]:
    """Jobs packed, one after another in our loop, and in the diffusers-style loop."""
    packed = packed_jobs(settings)
    alone = Packed(settings, _packed_specs(settings)[:1])
    theirs = diffusers_job(settings, 0, settings.packed_batch)
    times = _take_turns(
        settings,
        {
            "packed": packed.run,
            # One job's time, taken as often as there are jobs: they are alike, and memory for
            # eight bases would only cost them cache.
            "alone": lambda steps: alone.run(steps * settings.jobs),
            "theirs": lambda steps: _repeated(theirs.step)(steps * settings.jobs),
        },
    )
    return {
        "packed_training_speedup": _ratio(times["alone"], times["packed"]),
        "packed_vs_diffusers_speedup": _ratio(times["theirs"], times["packed"]),
    }


def packed_against_processes(settings: BenchSettings) -> dict[str, Figure]:
    """The same jobs as so many processes on the same cores; and the memory of both."""
    rounds = min(settings.rounds, 3)
    theirs, their_bytes = race(settings, "diffusers", settings.jobs, settings.steps, rounds)
    ours, our_bytes = race(settings, "packed", 1, settings.steps, rounds)
    fraction = our_bytes / their_bytes
    return {
        "packed_vs_processes_speedup": _ratio(theirs, ours),
        "packed_memory_fraction": Figure(fraction, "fraction", [fraction]),
    }


def sude_overhead_alone(settings: BenchSettings) -> dict[str, Figure]:
    """SuDe on against off: one job, one subject and one prior sample."""
    own = {"subject": 0, "batch_size": 1, "prior__with_prior_preservation": True}
    off, on = Packed(settings, [own]), Packed(settings, [{**own, "sude__weight": 0.4}])
    settings = replace(settings, steps=_whole_blocks(settings.steps, rows=2))
    times = _take_turns(settings, {"off": off.run, "on": on.run})
    return {"sude_overhead_alone": _overhead(times["on"], times["off"])}


def sude_overhead_packed(settings: BenchSettings) -> dict[str, Figure]:
    """The same for packed trials of one subject, which share the teacher's answers."""
    own = {"subject": 0, "batch_size": 1, "prior__with_prior_preservation": True}
    weights = [0.1 * (index + 1) for index in range(settings.jobs)]
    off = Packed(settings, [own] * settings.jobs)
    on = Packed(settings, [{**own, "sude__weight": weight} for weight in weights])
    settings = replace(settings, steps=_whole_blocks(settings.steps, rows=2))
    times = _take_turns(settings, {"off": off.run, "on": on.run})
    return {"sude_overhead_packed": _overhead(times["on"], times["off"])}


def packed_sude_sweep(settings: BenchSettings) -> dict[str, Figure]:
    """SuDe trials of one subject, two samples and no prior: packed, and one after another."""
    weights = [0.1 * (index + 1) for index in range(settings.jobs)]
    trials = [{"subject": 0, "batch_size": 2, "sude__weight": weight} for weight in weights]
    packed, alone = Packed(settings, trials), OneAfterAnother(settings, trials)
    settings = replace(settings, steps=_whole_blocks(settings.steps, rows=4))
    times = _take_turns(settings, {"packed": packed.run, "alone": alone.run})
    return {"packed_sude_sweep_speedup": _ratio(times["alone"], times["packed"])}


def mixed_batch(settings: BenchSettings) -> dict[str, Figure]:
    """A batch of different subjects against one of a single subject."""
    engine = _serving(settings, settings.jobs)
    several = [str(index) for index in range(settings.jobs)]
    times = _take_turns(
        replace(settings, steps=settings.inference_steps),
        {
            "mixed": lambda steps: _draw(engine, several, steps),
            "one": lambda steps: _draw(engine, several[:1] * settings.jobs, steps),
        },
    )
    return {"mixed_batch_ratio": _ratio(times["one"], times["mixed"])}


def swap_serving(settings: BenchSettings) -> dict[str, Figure]:
    """A batch of different subjects against `load_lora_weights` before each picture."""
    engine = _serving(settings, settings.jobs)
    names = [str(index) for index in range(settings.jobs)]
    base = loaded(settings)
    theirs = DiffusersStyleServing(loaded(settings))
    with tempfile.TemporaryDirectory() as folder:
        files = [
            write_adapter(base, settings, index, Path(folder) / name)
            for index, name in enumerate(names)
        ]
        times = _take_turns(
            replace(settings, steps=settings.inference_steps, rounds=min(settings.rounds, 3)),
            {
                "ours": lambda steps: _draw(engine, names, steps),
                "theirs": lambda steps: theirs.draw(files, PROMPT, steps, GUIDANCE),
            },
        )
    return {"swap_serving_speedup": _ratio(times["theirs"], times["ours"])}


def adapter_switch(settings: BenchSettings) -> dict[str, Figure]:
    """Putting an adapter from host memory into a slot."""
    from dreamfleet.adapters.bank import AdapterBank
    from dreamfleet.adapters.lora_slots import LoraShape, lora_sites

    base = loaded(settings)
    shape = LoraShape(settings.rank, float(settings.rank), settings.layers)
    bank = AdapterBank(lora_sites(base, shape), 1, base.device)
    slot, states = bank.claim(), [adapter(base, settings, subject) for subject in (0, 1)]
    samples = []
    for turn in range(SWITCHES + 2):
        started = time.perf_counter()
        bank.assign(slot, states[turn % 2])
        _wait_for_device()
        samples.append(1000 * (time.perf_counter() - started))
    bank.close()
    return {"adapter_switch_ms": Figure(median(samples[2:]), "ms", samples[2:])}


def many_registered(settings: BenchSettings) -> dict[str, Figure]:
    """Serving out of many registered adapters against out of as many as are drawn at once."""
    engine = _serving(settings, settings.registered_adapters)
    few = [str(index) for index in range(settings.jobs)]
    turn = iter(range(settings.registered_adapters))

    def strangers(steps: int) -> None:
        _draw(engine, [str(next(turn)) for _ in range(settings.jobs)], steps)

    times = _take_turns(
        replace(settings, steps=settings.inference_steps),
        {"many": strangers, "few": lambda steps: _draw(engine, few, steps)},
    )
    return {"registered_adapters_ratio": _ratio(times["few"], times["many"])}


def utilisation(settings: BenchSettings) -> dict[str, Figure]:
    """What a packed step makes of the device: its arithmetic (products and convolutions, forward
    and backward) over its time, and the memory that it takes.
    """
    packed = packed_jobs(settings)
    packed.run(2)
    with FlopCounterMode(display=False) as counted:
        packed.run(1)
    flops = counted.get_total_flops()
    cuda = torch.cuda.is_initialized()
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = _take_turns(settings, {"packed": packed.run})["packed"]
    rates = [flops * settings.steps / seconds / 1e12 for seconds in times]
    figures = {"packed_tflops": Figure(median(rates), "TFLOP/s", rates)}
    if cuda:
        gib = torch.cuda.max_memory_allocated() / 2**30
        figures["packed_memory_gib"] = Figure(gib, "GiB", [gib])
        name = torch.cuda.get_device_name()
        peak = next((rate for key, rate in PEAK_TFLOPS.items() if key in name), None)
        if peak is not None and settings.dtype == "bfloat16":
            shares = [rate / peak for rate in rates]
            figures["packed_mfu"] = Figure(median(shares), "fraction", shares)
    return figures


def help_time(settings: BenchSettings) -> dict[str, Figure]:
    """`dreamfleet --help`."""
    samples = []
    for _ in range(settings.rounds):
        started = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "dreamfleet", "--help"], check=True, capture_output=True
        )
        samples.append(1000 * (time.perf_counter() - started))
    return {"help_ms": Figure(median(samples), "ms", samples)}


QUICK: Sequence[Measure] = (
    single_job,
    packed_training,
    packed_against_processes,
    sude_overhead_alone,
    sude_overhead_packed,
    packed_sude_sweep,
    mixed_batch,
    swap_serving,
    adapter_switch,
)
GPU: Sequence[Measure] = (*QUICK, utilisation)
FULL: Sequence[Measure] = (
    *QUICK,
    many_registered,
    help_time,
)
# Of a service and its clients, which are many processes: they have all cores.
SERVICES: Sequence[Measure] = (serve_mixed, serve_vs_swap, serve_many_adapters)


def _take_turns(
    settings: BenchSettings, contestants: Mapping[str, Callable[[int], None]]
) -> dict[str, list[float]]:
    """Seconds of each contestant's rounds, after one short round to warm up."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for run in contestants.values():
        run(min(2, settings.steps))
        _wait_for_device()
    for _ in range(settings.rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            run(settings.steps)
            _wait_for_device()
            times[name].append(time.perf_counter() - started)
    return times


def _wait_for_device() -> None:
    """Until a GPU has done what it was asked: it works on while Python is further."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> Figure:
    samples = [one / two for one, two in zip(slow, fast, strict=True)]
    return Figure(median(slow) / median(fast), "ratio", samples)


def _overhead(on: Sequence[float], off: Sequence[float]) -> Figure:
    samples = [(one - two) / two for one, two in zip(on, off, strict=True)]
    return Figure(median(on) / median(off) - 1, "fraction", samples)


def _whole_blocks(steps: int, rows: int) -> int:
    """Steps after which the teacher's look-ahead has been paid for in full."""
    block = max(1, BLOCK_ROWS // rows)
    return max(1, round(steps / block)) * block


def _repeated(step: Callable[[], None]) -> Callable[[int], None]:
    def run(steps: int) -> None:
        for _ in range(steps):
            step()

    return run


def _serving(settings: BenchSettings, adapters: int) -> Engine:
    base = loaded(settings)
    bounds = EngineSettings(
        max_slots=settings.jobs, max_rows=2 * settings.jobs, max_host_adapters=adapters
    )
    engine = Engine(base, bounds)
    for index in range(adapters):
        engine.add_adapter(str(index), adapter(base, settings, index))
    return engine


def _draw(engine: Engine, names: Sequence[str], steps: int) -> None:
    for seed, name in enumerate(names):
        engine.submit(
            ImageRequest(
                PROMPT,
                seed,
                num_inference_steps=steps,
                guidance_scale=GUIDANCE,
                adapters=((name, 1.0),),
            )
        )
    while engine.step():
        pass

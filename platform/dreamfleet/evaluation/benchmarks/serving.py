"""The service under load. It runs as the user's command would, in processes of its own; the clients
are threads here.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import IO

from dreamfleet.bases import load_base
from dreamfleet.evaluation.benchmarks.contestants import PROMPT, write_adapter
from dreamfleet.evaluation.benchmarks.record import Figure
from dreamfleet.evaluation.benchmarks.settings import BenchSettings

GUIDANCE = 3.0
ASKED_EACH = 2  # pictures of one client in a round
ENGINE = "dreamfleet_engine_"
READY_WITHIN_S = 300.0
ANSWER_S = 600.0
END_S = 60.0
MIB = 2**20
GROWN_BYTES = 128 * MIB  # more than what an allocator keeps; a leak of pictures would be more
WEIGHTS = "pytorch_lora_weights.safetensors"
SWAP = "dreamfleet.evaluation.benchmarks.swap_service"


def serve_mixed(settings: BenchSettings) -> dict[str, Figure]:
    """Clients on as many subjects against the same clients on one subject."""
    with _adapters(settings, settings.jobs) as folder, _ours(settings, folder) as address:
        several = [str(index) for index in range(settings.jobs)] * ASKED_EACH
        contestants = {"mixed": several, "one": several[:1] * len(several)}
        _round(settings, address, several)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(settings.rounds):
            for name, models in contestants.items():
                times[name].append(_round(settings, address, models))
    return {"serve_mixed_ratio": _ratio(times["one"], times["mixed"])}


def serve_vs_swap(settings: BenchSettings) -> dict[str, Figure]:
    """Clients on different subjects, against a Serve deployment that loads an adapter for each
    request. One service after the other: two on the same cores would disturb each other. Theirs
    draws single pictures, for which many threads may be slower than one: the better counts.
    """
    names = [str(index) for index in range(settings.jobs)] * ASKED_EACH
    rounds = min(settings.rounds, 3)

    def times(address: str) -> list[float]:
        _round(settings, address, names)
        return [_round(settings, address, names) for _ in range(rounds)]

    with _adapters(settings, settings.jobs) as folder:
        with _ours(settings, folder) as address:
            ours = times(address)
        theirs = []
        for threads in sorted({1, settings.num_threads}):
            swap = [SWAP, settings.base_model, str(folder), str(threads)]
            with _running(swap) as address:
                theirs.append(times(address))
    return {"serve_vs_swap_speedup": _ratio(min(theirs, key=median), ours)}


def serve_many_adapters(settings: BenchSettings) -> dict[str, Figure]:
    """Every request a random one of many adapters, half of them in the cache, against one.

    Raises:
        RuntimeError: the cache held more than it may, or let nothing go, or the engine's memory
            grew on although the cache was full: then this says nothing.
    """
    count, asked = settings.registered_adapters, 2 * ASKED_EACH * settings.jobs  # some are missed
    choose = random.Random(0)
    times: dict[str, list[float]] = {"many": [], "one": []}
    with _adapters(settings, count) as folder:
        size = (folder / "0" / WEIGHTS).stat().st_size
        cache = max(1, count * size // 2 // MIB)
        with _ours(settings, folder, "--cache-mib", str(cache)) as address:
            # All of them once: from now on the cache is full, and every other stranger is missed.
            _round(replace(settings, inference_steps=1), address, [str(i) for i in range(count)])
            _round(settings, address, ["0"] * asked)
            before = _figures(address)
            for _ in range(settings.rounds):
                strangers = [str(choose.randrange(count)) for _ in range(asked)]
                times["many"].append(_round(settings, address, strangers))
                times["one"].append(_round(settings, address, ["0"] * asked))
            _check_cache(before, _figures(address), cache * MIB)
    return {"serve_1000_adapters_ratio": _ratio(times["one"], times["many"])}


def _check_cache(before: Mapping[str, float], after: Mapping[str, float], budget: int) -> None:
    evicted = after["cache_evictions_total"] - before["cache_evictions_total"]
    if not evicted or after["cache_bytes"] > budget:
        raise RuntimeError(
            f"{evicted:.0f} adapters were let go and {after['cache_bytes']:.0f} of {budget} bytes "
            "are taken: the cache was not what this figure is about"
        )
    grown = after["resident_bytes"] - before["resident_bytes"]
    if grown > GROWN_BYTES:
        raise RuntimeError(f"the engine's memory grew by {grown:.0f} bytes with a full cache")


def _figures(address: str) -> dict[str, float]:
    """The engine's, as Prometheus would read them."""
    with urllib.request.urlopen(f"{address}/metrics", timeout=ANSWER_S) as answer:
        lines = answer.read().decode().splitlines()
    parts = [line.replace("{", " ").split() for line in lines if line.startswith(ENGINE)]
    return {name.removeprefix(ENGINE): float(value) for name, *_, value in parts}


def _round(settings: BenchSettings, address: str, asked: Sequence[str]) -> float:
    """Seconds in which as many clients as there are jobs get these pictures, one each at a time."""
    started = time.perf_counter()
    with ThreadPoolExecutor(settings.jobs) as clients:
        list(clients.map(lambda model: _draw(settings, address, model), asked))
    return time.perf_counter() - started


def _draw(settings: BenchSettings, address: str, model: str) -> None:
    body = {
        "model": model,
        "prompt": PROMPT,
        "seed": 0,
        "num_inference_steps": settings.inference_steps,
        "guidance_scale": GUIDANCE,
    }
    request = urllib.request.Request(
        f"{address}/v1/images/generations",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=ANSWER_S) as answer:
        answer.read()


@contextlib.contextmanager
def _adapters(settings: BenchSettings, count: int) -> Iterator[Path]:
    """A folder of adapters, called 0, 1, …; beyond one for each client they are copies of those,
    files of their own, so that each is read from a place of its own.
    """
    base = load_base(settings.base_model)
    with tempfile.TemporaryDirectory(prefix="dreamfleet-bench-") as place:
        folder = Path(place)
        for index in range(min(count, settings.jobs)):
            write_adapter(base, settings, index, folder / str(index))
        for index in range(settings.jobs, count):
            (folder / str(index)).mkdir()
            shutil.copyfile(
                folder / str(index % settings.jobs) / WEIGHTS, folder / str(index) / WEIGHTS
            )
        yield folder


def _ours(
    settings: BenchSettings, folder: Path, *more: str
) -> contextlib.AbstractContextManager[str]:
    command = ["dreamfleet", "serve", "--adapters", str(folder), "--base-model"]
    quiet = ["--no-auth", "--no-tracking", "--max-slots", str(settings.jobs)]
    return _running([*command, settings.base_model, *quiet, *more])


@contextlib.contextmanager
def _running(command: Sequence[str]) -> Iterator[str]:
    """A service on a free port, as its own processes, until the block ends; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    whole = [sys.executable, "-m", *command, "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(whole, stdout=log, stderr=log)
        try:
            _wait_until_ready(process, address, log)
            yield address
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: IO[bytes]) -> None:
    deadline = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/healthz", timeout=10).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"the service did not start: {log.read()[-2000:]!r}")


def _ratio(slow: Sequence[float], fast: Sequence[float]) -> Figure:
    samples = [one / two for one, two in zip(slow, fast, strict=True)]
    return Figure(median(slow) / median(fast), "ratio", samples)

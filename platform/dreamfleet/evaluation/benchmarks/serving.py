"""The service under load. It runs as the user's command would, in processes of its own; the clients
are threads here.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import IO

from dreamfleet.bases import load_base
from dreamfleet.evaluation.benchmarks.contestants import PROMPT, write_adapter
from dreamfleet.evaluation.benchmarks.record import Figure
from dreamfleet.evaluation.benchmarks.settings import BenchSettings

GUIDANCE = 3.0
ASKED_EACH = 2  # pictures of one client in a round
READY_WITHIN_S = 300.0
ANSWER_S = 600.0
END_S = 60.0
MIB = 2**20
WEIGHTS = "pytorch_lora_weights.safetensors"
SWAP = "dreamfleet.evaluation.benchmarks.swap_service"


def serve_mixed(settings: BenchSettings) -> dict[str, Figure]:
    """Clients on as many subjects against the same clients on one subject."""
    with _adapters(settings, settings.jobs) as folder, _ours(settings, folder) as address:
        several = [str(index) for index in range(settings.jobs)]
        contestants = {"mixed": several, "one": several[:1] * settings.jobs}
        _round(settings, address, several)
        times: dict[str, list[float]] = {name: [] for name in contestants}
        for _ in range(settings.rounds):
            for name, models in contestants.items():
                times[name].append(_round(settings, address, models))
    return {"serve_mixed_ratio": _ratio(times["one"], times["mixed"])}


def serve_vs_swap(settings: BenchSettings) -> dict[str, Figure]:
    """Clients on different subjects, against a Serve deployment that loads an adapter for each
    request. One service after the other: two on the same cores would disturb each other.
    """
    names = [str(index) for index in range(settings.jobs)]
    times: dict[str, list[float]] = {}
    with _adapters(settings, settings.jobs) as folder:
        theirs = [SWAP, settings.base_model, str(folder), str(settings.num_threads)]
        for name, service in (("ours", _ours(settings, folder)), ("theirs", _running(theirs))):
            with service as address:
                _round(settings, address, names)
                times[name] = [
                    _round(settings, address, names) for _ in range(min(settings.rounds, 3))
                ]
    return {"serve_vs_swap_speedup": _ratio(times["theirs"], times["ours"])}


def serve_many_adapters(settings: BenchSettings) -> dict[str, Figure]:
    """Every request a random one of many adapters, half of those asked for in the cache, against
    one.
    """
    count, choose = settings.registered_adapters, random.Random(0)
    with _adapters(settings, count) as folder:
        size = (folder / "0" / WEIGHTS).stat().st_size
        asked = min(count, settings.rounds * settings.jobs)
        cache = max(1, asked * size // 2 // MIB)
        with _ours(settings, folder, "--cache-mib", str(cache)) as address:
            times: dict[str, list[float]] = {"many": [], "one": []}
            _round(settings, address, ["0"] * settings.jobs)
            for _ in range(settings.rounds):
                strangers = [str(choose.randrange(count)) for _ in range(settings.jobs)]
                times["many"].append(_round(settings, address, strangers))
                times["one"].append(_round(settings, address, ["0"] * settings.jobs))
    return {"serve_1000_adapters_ratio": _ratio(times["one"], times["many"])}


def _round(settings: BenchSettings, address: str, models: Sequence[str]) -> float:
    """Seconds in which every client gets its pictures, one after the other."""
    asked = [model for model in models for _ in range(ASKED_EACH)]
    started = time.perf_counter()
    with ThreadPoolExecutor(len(models)) as clients:
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
    """A folder of adapters, called 0, 1, …; beyond one for each client they are links to those."""
    base = load_base(settings.base_model)
    with tempfile.TemporaryDirectory(prefix="dreamfleet-bench-") as place:
        folder = Path(place)
        for index in range(min(count, settings.jobs)):
            write_adapter(base, settings, index, folder / str(index))
        for index in range(settings.jobs, count):
            (folder / str(index)).mkdir()
            os.link(folder / str(index % settings.jobs) / WEIGHTS, folder / str(index) / WEIGHTS)
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

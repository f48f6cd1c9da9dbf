"""What others serve with: a Serve deployment that calls diffusers, with `load_lora_weights` before
each picture. The contestant of `serve_vs_swap`; same body, same answer's shape.

    python -m dreamfleet.evaluation.benchmarks.swap_service BASE ADAPTERS THREADS --port PORT
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import threading
from pathlib import Path
from typing import Any

from dreamfleet.config import ClusterConfig
from dreamfleet.runtime.session import ray_session

MAX_ONGOING = 100


class SwapService:
    """One pipeline, one picture at a time."""

    def __init__(self, base_model: str, adapters: str, num_threads: int) -> None:
        import torch

        from dreamfleet.bases import load_base
        from dreamfleet.evaluation.benchmarks.baseline import DiffusersStyleServing

        torch.set_num_threads(num_threads)
        self._serving, self._adapters = DiffusersStyleServing(load_base(base_model)), Path(adapters)
        self._one_at_a_time = asyncio.Lock()

    async def __call__(self, request: Any) -> dict[str, Any]:
        """A picture for any POST; anything else says that it is ready."""
        if request.method != "POST":
            return {"status": "ready"}
        body = await request.json()
        async with self._one_at_a_time:
            await asyncio.to_thread(
                self._serving.draw,
                [self._adapters / str(body["model"])],
                body["prompt"],
                body["num_inference_steps"],
                body["guidance_scale"],
            )
        return {"data": [{}]}


def main() -> None:
    """Serve until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("base_model")
    parser.add_argument("adapters")
    parser.add_argument("num_threads", type=int)
    parser.add_argument("--port", type=int, required=True)
    given = parser.parse_args()
    ended = threading.Event()
    with (
        ray_session(ClusterConfig(num_workers=2), dashboard=False),
        contextlib.suppress(SystemExit),
    ):
        from ray import serve

        signal.signal(signal.SIGTERM, lambda number, frame: ended.set())
        serve.start(
            proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": given.port}
        )
        deployment = serve.deployment(SwapService).options(max_ongoing_requests=MAX_ONGOING)
        serve.run(deployment.bind(given.base_model, given.adapters, given.num_threads))
        ended.wait()


if __name__ == "__main__":
    main()

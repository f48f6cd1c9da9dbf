"""What is measured under which settings; importing this loads no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class BenchSettings:
    """Stated beside every figure.

    Attributes:
        base_model: as `bases.load_base` takes it.
        rank, layers: of every adapter; attention is what diffusers' script trains.
        jobs: that are packed, and images that are drawn together.
        rounds: contestants take turns this often; the figure is the ratio of their medians.
        steps: training steps of a contestant in a round (packed ones: of each job).
        inference_steps: denoising steps of a picture.
        num_threads: torch's threads, and the cores that all processes together may use.
        registered_adapters: adapters in host memory for the serving figure of the full run.
        packed_batch: samples of each job that is packed.
        device, dtype: where the base is, and the type of its frozen weights.
    """

    base_model: str = "embedded"
    rank: int = 16
    layers: Literal["attention", "attention_ff", "all"] = "attention"
    jobs: int = 8
    rounds: int = 5
    steps: int = 8
    inference_steps: int = 25
    num_threads: int = 1
    registered_adapters: int = 1000
    packed_batch: int = 2
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"

    def text(self) -> str:
        """For the table."""
        path = Path(self.base_model)
        base = path.name if path.is_absolute() else self.base_model
        threads = f"{self.num_threads} thread{'s' if self.num_threads > 1 else ''}"
        return (
            f"base {base}, LoRA rank {self.rank} on layers `{self.layers}`, "
            f"{self.jobs} jobs of batch {self.packed_batch}, "
            f"{self.rounds} rounds of {self.steps} steps, "
            f"{self.inference_steps} denoising steps, {threads}, {self.dtype} on {self.device}"
        )


ON_A_GPU = BenchSettings(jobs=16, packed_batch=1, device="cuda", dtype="bfloat16", num_threads=4)

"""The command of the README on tiny bases of every real family, read back by plain diffusers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.cli import main
from dreamfleet.personalization import personalize
from tests.integration.recipes import STEPS, recipe
from tests.tiny_bases import FAMILIES
from tests.unit.data.helpers import write_photos

pytestmark = pytest.mark.usefixtures("ray_running", "fleet_home")
# Relative, per tensor, of fp32 weights after 24 steps: two workers sum gradients in another order.
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=sorted(FAMILIES, reverse=True))
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("bases") / request.param)


def picture(folder: Path, lora: Path | None = None) -> np.ndarray:
    """Drawn by diffusers' own pipeline of the family."""
    xl = (folder / "text_encoder_2").is_dir()
    kind = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    with quiet_libraries():
        pipeline = kind.from_pretrained(folder)
        if lora is not None:
            pipeline.load_lora_weights(lora)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(3)
    drawn = pipeline("a photo of sks dog", num_inference_steps=3, generator=generator)
    return np.asarray(drawn.images[0]).astype(float)


def run(photos: Path, base: Path, out: Path, *more: str) -> None:
    command = ["personalize", str(photos), "--class-word", "dog", "--base-model", str(base)]
    command += ["--resolution", "64", "--max-train-steps", "4", "--mixed-precision", "bf16"]
    command += ["--learning-rate", "1e-2", "--num-validation-images", "1", "--no-tracking"]
    command += ["--num-inference-steps", "2", "--output-dir", str(out)]
    assert main([*command, *more]) == 0


def test_full_fine_tuning_on_two_workers_equals_one(tmp_path: Path, tiny_base: Path) -> None:
    """By DDP, and by FSDP in two parts: the second goes on from the sharded model's checkpoint."""
    settings: dict[str, Any] = {"mode": "full", "adam_epsilon": 1e-4, "use_ema": True}
    settings |= {"gradient_accumulation_steps": 2, "train_text_encoder": True}
    half = STEPS // 3 * 2
    runs = [
        ("one", 1, 2, "ddp", STEPS),
        ("ddp", 2, 1, "ddp", STEPS),
        ("fsdp", 2, 1, "fsdp", half),
        ("fsdp", 2, 1, "fsdp", STEPS),
    ]
    for name, workers, batch, strategy, steps in runs:
        config = recipe(
            tmp_path,
            tiny_base,
            name,
            train={
                **settings,
                "train_batch_size": batch,
                "use_ema": True,
                "max_train_steps": steps,
            },
            cluster={"num_workers": workers, "parallel_strategy": strategy},
        )
        personalize(config, resume=(tmp_path / name).exists())
    for part in ("unet/diffusion_pytorch_model", "text_encoder/model"):
        file = f"{part}.safetensors"
        one, *others = (load_file(tmp_path / name / file) for name in ("one", "ddp", "fsdp"))
        start = load_file(tiny_base / file)
        assert max(float((tensor - start[name]).norm()) for name, tensor in one.items()) > 0.01
        for other in others:
            assert start.keys() == one.keys() == other.keys()
            for name, tensor in one.items():
                gap = torch.linalg.norm(other[name] - tensor)
                size = torch.linalg.norm(tensor).clamp(min=1e-3)  # a key's bias has no gradient
                assert gap <= TOLERANCE * size, name


@pytest.mark.parametrize(
    "mode",
    [["lora", "--train-text-encoder"], ["full", "--gradient-checkpointing"]],
    ids=["lora", "full"],
)
def test_the_command_ends_with_an_adapter_that_diffusers_reads(
    tmp_path: Path, base: Path, mode: Sequence[str]
) -> None:
    out = tmp_path / "out"
    run(write_photos(tmp_path / "photos", 2), base, out, "--train-mode", *mode)
    bare = picture(base)
    drawn = picture(out) if mode[0] == "full" else picture(base, out)
    assert np.isfinite(drawn).all() and np.abs(drawn - bare).mean() > 0.5
    assert (out / "report.html").is_file() and list((out / "samples").glob("*.png"))

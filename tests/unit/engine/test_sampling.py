"""Pictures equal those of diffusers' own pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from PIL import Image

from dreamfleet.bases import Base, load_base
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import BadInputError, ConfigError

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
}


@pytest.fixture(scope="module")
def base(tiny_base_folder: Path) -> Base:
    return load_base(tiny_base_folder)


def gap(one: Image.Image, two: Image.Image) -> float:
    return float(np.abs(np.asarray(one).astype(float) - np.asarray(two).astype(float)).mean())


def diffusers_picture(
    folder: Path, scheduler: str, prompt: str, seed: int, **options: Any
) -> Image.Image:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = SCHEDULERS[scheduler].from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator("cpu").manual_seed(seed)
    image: Image.Image = pipeline(prompt, generator=generator, **options).images[0]
    return image


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
@pytest.mark.parametrize("velocity", [False, True])
def test_pictures_equal_diffusers(
    tiny_base_folder: Path, tiny_v_base_folder: Path, scheduler: str, velocity: bool
) -> None:
    folder = tiny_v_base_folder if velocity else tiny_base_folder
    options = {"num_inference_steps": 5, "guidance_scale": 4.0, "negative_prompt": "a cat"}
    prompts, seeds = ["a photo of sks dog", "a cat"], [7, 2**63 + 5]
    ours = sample_images(load_base(folder), prompts, seeds, scheduler=scheduler, **options)  # type: ignore[arg-type]
    theirs = diffusers_picture(folder, scheduler, prompts[0], seeds[0], **options)
    assert ours[0].size == (64, 64) and ours[0].mode == "RGB"
    assert gap(ours[0], theirs) < 1.0
    assert gap(ours[1], theirs) > 1.0


def test_without_guidance(tiny_base_folder: Path, base: Base) -> None:
    ours = sample_images(base, ["a dog"], [3], num_inference_steps=3, guidance_scale=1.0)
    theirs = diffusers_picture(
        tiny_base_folder, "ddim", "a dog", 3, num_inference_steps=3, guidance_scale=1.0
    )
    assert gap(ours[0], theirs) < 1.0


def test_a_picture_depends_on_its_own_prompt_and_seed_only(base: Base) -> None:
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 3.0}
    alone = sample_images(base, ["a dog"], [5], **options)[0]
    together = sample_images(base, ["a cat", "a dog", "a dog"], [1, 5, 6], **options)
    assert gap(alone, together[1]) < 0.05
    assert gap(alone, together[2]) > 1
    assert sample_images(base, [], []) == []


def test_negative_prompts_and_progress(base: Base) -> None:
    calls: list[tuple[int, int]] = []
    options: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 5.0}
    one, two = sample_images(
        base,
        ["a dog"] * 2,
        [1, 1],
        negative_prompt=["", "a cat, the dog"],
        on_step=lambda done, total: calls.append((done, total)),
        **options,
    )
    assert gap(one, two) > 0
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
        ({"num_inference_steps": 0}, "num_inference_steps = 0"),
        ({"num_inference_steps": 501}, "num_inference_steps = 501: expected 1 to 500"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"seeds": [-1]}, "seed = -1"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts"),
    ],
)
def test_bad_requests_are_refused(base: Base, options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        sample_images(base, ["a dog"], **{"seeds": [1], **options})


def test_unknown_schedulers_are_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="heun"):
        sample_images(base, ["a dog"], [1], scheduler="heun", num_inference_steps=1)

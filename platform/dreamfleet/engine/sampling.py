"""Pictures from a base (and the adapter in it): one denoising loop for a batch of prompts and
seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from dreamfleet.adapters.lora import adapter_strength as with_strength
from dreamfleet.bases import Base
from dreamfleet.config import MAX_INFERENCE_STEPS
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.diffusion.samplers import make_scheduler
from dreamfleet.errors import BadInputError

OnStep = Callable[[int, int], None]
SEED_LIMIT = 2**64


def sample_images(
    base: Base,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 25,
    guidance_scale: float | None = None,
    scheduler: str = "ddim",
    negative_prompt: str | Sequence[str] = "",
    adapter_strength: float = 1.0,
    on_step: OnStep | None = None,
) -> list[Image.Image]:
    """Draw one picture per (prompt, seed), as RGB at the base's resolution, all in one batch.

    A picture depends on its own prompt and seed only, and equals that of diffusers' pipeline for
    `torch.Generator("cpu").manual_seed(seed)` under the same scheduler.

    Args:
        prompts: B prompts.
        seeds: B seeds, each in [0, 2**64).
        num_inference_steps: denoising steps.
        guidance_scale: classifier-free guidance (on above 1); None: the base's default.
        scheduler: ddim, euler or dpm.
        negative_prompt: one for all, or one per picture; used only with guidance.
        adapter_strength: multiplies the adapter's change (1: as trained, 0: the bare base).
        on_step: called after each step with (steps done, steps in all).

    Raises:
        BadInputError: counts or values that do not fit; a strength where there is no LoRA.
    """
    scale = base.defaults.guidance_scale if guidance_scale is None else guidance_scale
    negatives = _checked(prompts, seeds, num_inference_steps, scale, negative_prompt)
    if not prompts:
        return []
    with base.evaluating(), with_strength(base, adapter_strength):
        conditioning = _conditioning(base, prompts, negatives, scale)
        latents = _denoise(
            base, conditioning, seeds, num_inference_steps, scale, scheduler, on_step
        )
        pixels = base.decode_latents(latents)
    images = [Image.fromarray(picture.numpy()) for picture in pixels]
    return images if base.safety_checker is None else base.safety_checker(images)


def initial_noise(base: Base, seeds: Sequence[int]) -> Tensor:
    """fp32 [B, C, h, w] on the base's device, each picture's from its own generator."""
    shape = (1, *base.latent_shape)
    rows = [
        torch.randn(shape, generator=torch.Generator("cpu").manual_seed(seed)) for seed in seeds
    ]
    return torch.cat(rows).to(base.device)


def _denoise(
    base: Base,
    conditioning: Conditioning,
    seeds: Sequence[int],
    num_inference_steps: int,
    scale: float,
    scheduler_name: str,
    on_step: OnStep | None,
) -> Tensor:
    scheduler = make_scheduler(base.scheduler_config, scheduler_name)
    scheduler.set_timesteps(num_inference_steps, device=base.device)
    latents = initial_noise(base, seeds) * scheduler.init_noise_sigma
    guided = len(conditioning) > len(seeds)
    for done, t in enumerate(scheduler.timesteps, start=1):
        doubled = torch.cat([latents, latents]) if guided else latents
        inputs = scheduler.scale_model_input(doubled, t)
        output = base.predict(inputs, t.expand(len(doubled)), conditioning).float()
        if guided:
            empty, prompted = output.chunk(2)
            output = empty + scale * (prompted - empty)
        latents = scheduler.step(output, t, latents, return_dict=False)[0]
        if on_step is not None:
            on_step(done, len(scheduler.timesteps))
    return latents


def _conditioning(
    base: Base, prompts: Sequence[str], negatives: list[str], scale: float
) -> Conditioning:
    if scale <= 1:
        return base.encode_prompts(prompts)
    return base.encode_prompts([*negatives, *prompts])


def _checked(
    prompts: Sequence[str],
    seeds: Sequence[int],
    num_inference_steps: int,
    scale: float,
    negative_prompt: str | Sequence[str],
) -> list[str]:
    """The negative prompts, one per picture."""
    if len(prompts) != len(seeds):
        raise BadInputError(
            f"{len(prompts)} prompts and {len(seeds)} seeds; expected one seed per prompt"
        )
    if not 1 <= num_inference_steps <= MAX_INFERENCE_STEPS:
        raise BadInputError(
            f"num_inference_steps = {num_inference_steps}: expected 1 to {MAX_INFERENCE_STEPS}"
        )
    if not 0 <= scale < float("inf"):
        raise BadInputError(f"guidance_scale = {scale}: expected a finite number, 0 or more")
    wrong = [seed for seed in seeds if not 0 <= seed < SEED_LIMIT]
    if wrong:
        raise BadInputError(f"seed = {wrong[0]}: expected 0 to 2**64 - 1")
    negatives = (
        [negative_prompt] * len(prompts)
        if isinstance(negative_prompt, str)
        else list(negative_prompt)
    )
    if len(negatives) != len(prompts):
        raise BadInputError(
            f"{len(negatives)} negative prompts for {len(prompts)} prompts; expected one each"
        )
    return negatives

"""A loaded base model: the frozen networks, the noise schedule and the operations that training
and sampling share.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dreamfleet.bases.defaults import BaseDefaults, defaults_for
from dreamfleet.bases.files import BaseFiles
from dreamfleet.bases.safety import SafetyChecker
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.diffusion.schedule import NoiseSchedule


@dataclass
class Base:
    """One base model on one device.

    Attributes:
        files: where it came from; hashes.
        unet, vae, text_encoder, tokenizer: diffusers' and transformers' own objects, frozen and in
            eval mode.
        text_encoder_2, tokenizer_2: SDXL's second ones, else None.
        scheduler_config: settings of the folder's scheduler, for
            `diffusion.samplers.make_scheduler`.
        schedule: the forward process.
        device: where the modules are.
        dtype: type of the frozen weights; trained parameters are fp32 whatever it is.
        training_unet: wrapper around `unet` that predictions with a gradient go through, e.g. data
            parallel; None: the UNet itself.
        safety_checker: the base's own, where it was asked for and there is one.
    """

    files: BaseFiles
    unet: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler_config: dict[str, Any]
    schedule: NoiseSchedule
    device: torch.device
    dtype: torch.dtype
    text_encoder_2: Any = None
    tokenizer_2: Any = None
    safety_checker: SafetyChecker | None = None
    training_unet: Any = None

    @property
    def name(self) -> str:
        """As the user gave it: embedded, a folder or a hub id."""
        return self.files.name

    @property
    def family(self) -> str:
        return self.files.family.name

    @property
    def resolution(self) -> int:
        """Side of the base's square pictures, pixels."""
        return self.files.resolution

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """C, h, w of one picture's latents at the base's resolution."""
        side = self.resolution // self.files.vae_factor
        return int(self.unet.config.in_channels), side, side

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders by the names of their folders."""
        return {name: getattr(self, name) for name in self.files.family.text_encoders}

    @property
    def defaults(self) -> BaseDefaults:
        """Settings that suit this base."""
        return defaults_for(self.files)

    @property
    def hash(self) -> str:
        """SHA-256 over all component files."""
        return self.files.hash

    @property
    def unet_hash(self) -> str:
        return self.files.unet_hash

    @property
    def vae_hash(self) -> str:
        return self.files.vae_hash

    @property
    def text_encoder_hash(self) -> str:
        return self.files.text_encoder_hash

    def token_ids(self, tokenizer: Any, prompts: Sequence[str]) -> Tensor:
        """[B, L] of B prompts, cut off at and padded to the tokenizer's context."""
        tokens = tokenizer(
            list(prompts),
            padding="max_length",
            max_length=tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        ids: Tensor = tokens.input_ids.to(self.device)
        return ids

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Conditioning of B prompts; equal prompts are encoded once.

        With gradient if the text encoder trains.
        """
        unique = list(dict.fromkeys(prompts))
        with self.autocast():
            encoded: Conditioning = self.files.family.encode_prompts(self, unique)
        if unique == list(prompts):
            return encoded
        return encoded.select([unique.index(prompt) for prompt in prompts])

    def encode_images(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's posterior, scaled as the UNet expects, fp32 [B,
        C, h, w].

        Args:
            pixels: [B, 3, H, W] in [-1, 1].
        """
        return encode_images(self.vae, pixels)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Pictures uint8 [B, H, W, 3] on the CPU, from scaled latents [B, C, h, w]."""
        scale, shift = latent_scale(self.vae)
        raw = (latents.to(self.device) / scale + shift).to(self.vae.dtype)
        pixels = self.vae.decode(raw).sample.float()
        unit = (pixels / 2 + 0.5).clamp(0, 1)
        return (unit.permute(0, 2, 3, 1) * 255).round().to(torch.uint8).cpu()

    def predict(self, x_t: Tensor, t: Tensor, conditioning: Conditioning) -> Tensor:
        """The model's output [B, C, h, w] for noisy latents x_t at timesteps t [B]."""
        wrapped = self.training_unet is not None and torch.is_grad_enabled()
        with self.autocast():
            output: Tensor = (self.training_unet if wrapped else self.unet)(
                x_t,
                t,
                encoder_hidden_states=conditioning.prompt_embeds,
                added_cond_kwargs=self._added_conditions(x_t, conditioning),
                return_dict=False,
            )[0]
        return output

    def _added_conditions(self, x_t: Tensor, conditioning: Conditioning) -> dict[str, Tensor]:
        """SDXL's further conditions: pooled embedding, and sizes and crop [B, 6].

        Unless given, a picture is what its latents say: of that size from the beginning, not
        cropped (as diffusers' pipeline draws).
        """
        if conditioning.pooled is None:
            return {}
        time_ids = conditioning.time_ids
        if time_ids is None:
            height, width = (side * self.files.vae_factor for side in x_t.shape[-2:])
            sizes = [height, width, 0, 0, height, width]
            time_ids = torch.tensor([sizes] * len(x_t), device=x_t.device, dtype=torch.float32)
        return {"text_embeds": conditioning.pooled, "time_ids": time_ids}

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Mixed precision: in effect when the frozen weights are half."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def pipeline(self) -> Any:
        """diffusers' pipeline of this family around the same modules."""
        return self.files.family.build_pipeline(self)

    def frozen_copy(self, *, text_encoder: bool) -> Base:
        """A base whose UNet (and text encoder, if asked) are frozen copies; everything else is
        shared.
        """
        encoders = self.text_encoders if text_encoder else {}
        copies = {name: frozen(copy.deepcopy(module)) for name, module in encoders.items()}
        return replace(self, unet=frozen(copy.deepcopy(self.unet)), training_unet=None, **copies)

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """No gradients, eval mode; the modes are put back afterwards."""
        modules = [self.unet, *self.text_encoders.values()]
        modes = [module.training for module in modules]
        try:
            for module in modules:
                module.eval()
            with torch.no_grad():
                yield
        finally:
            for module, mode in zip(modules, modes, strict=True):
                module.train(mode)


@torch.no_grad()
def encode_images(vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """As `Base.encode_images`, by a VAE alone."""
    posterior = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist
    scale, shift = latent_scale(vae)
    return (posterior.mean.float() - shift) * scale, posterior.std.float() * scale


def latent_scale(vae: Any) -> tuple[float, float]:
    """Factor and shift between a VAE's latents and the UNet's."""
    config = vae.config
    return float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0.0)


def frozen(module: Any) -> Any:
    """Eval mode, no gradients."""
    module.requires_grad_(False)
    return module.eval()

"""The loops that others run: our own re-creation of what diffusers' `train_dreambooth_lora.py`
documents, and of `load_lora_weights` before each picture.

diffusers' and PEFT's real layers, AdamW, VAE and text encoder in the loop, no caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from diffusers.optimization import get_scheduler
from diffusers.training_utils import cast_training_params
from torch import Tensor

from dreamfleet.adapters.lora import LoraLayers, lora_config, target_modules
from dreamfleet.bases import Base
from dreamfleet.bases.quiet import quiet_libraries


class DiffusersStyleTraining:
    """One subject, one process, one base.

    Args:
        base: freshly loaded; it is changed. Below fp32 its LoRA stays fp32, under autocast, as the
            script has it with `--mixed_precision`.
        pixels: [N, 3, H, W] photos in [-1, 1].
        prompt: of all photos.
        batch_size, rank, layers, learning_rate: as the contestants have them.
    """

    def __init__(
        self,
        base: Base,
        pixels: Tensor,
        prompt: str,
        *,
        batch_size: int,
        rank: int,
        layers: LoraLayers,
        learning_rate: float,
    ) -> None:
        self._base, self._device = base, base.device
        self._vae, self._unet, self._text_encoder = base.vae, base.unet, base.text_encoder
        self._pixels, self._batch_size, self._step = pixels.to(base.device), batch_size, 0
        self._scheduler: Any = DDPMScheduler.from_config(base.scheduler_config)
        tokens = base.tokenizer(
            [prompt] * batch_size,
            padding="max_length",
            max_length=base.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        self._token_ids: Tensor = tokens.input_ids.to(base.device)
        self._unet.add_adapter(lora_config(rank, float(rank), target_modules(base.family, layers)))
        self._unet.train()
        cast_training_params(self._unet, torch.float32)
        self._parameters = [p for p in self._unet.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=learning_rate)
        self._lr_scheduler = get_scheduler("constant", self._optimizer)

    def step(self) -> None:
        """One optimiser step, as the script has it."""
        first = self._step * self._batch_size
        rows = [(first + index) % len(self._pixels) for index in range(self._batch_size)]
        pixels = self._pixels[rows].to(self._vae.dtype)
        latents = self._vae.encode(pixels).latent_dist.sample()
        latents = latents * self._vae.config.scaling_factor  # [B, C, h, w]
        noise = torch.randn_like(latents)
        count = self._scheduler.config.num_train_timesteps
        t = torch.randint(0, count, (len(latents),), device=self._device)
        noisy = self._scheduler.add_noise(latents, noise, t)
        texts = self._text_encoder(self._token_ids, return_dict=False)[0]
        with self._base.autocast():
            output = self._unet(noisy, t, texts, return_dict=False)[0]
        velocity = self._scheduler.config.prediction_type == "v_prediction"
        target = self._scheduler.get_velocity(latents, noise, t) if velocity else noise
        loss = F.mse_loss(output.float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._lr_scheduler.step()
        self._optimizer.zero_grad()
        self._step += 1


class DiffusersStyleServing:
    """One pipeline; each request loads its adapter, draws, and takes it out."""

    def __init__(self, base: Base) -> None:
        with quiet_libraries():
            self._pipeline: StableDiffusionPipeline = base.pipeline()

    def draw(
        self, adapters: Sequence[Path], prompt: str, steps: int, guidance_scale: float
    ) -> None:
        """One picture per adapter, one after the other."""
        for seed, folder in enumerate(adapters):
            with quiet_libraries():
                self._pipeline.load_lora_weights(folder, adapter_name="request")
            self._pipeline(
                prompt,
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed),
            )
            self._pipeline.unload_lora_weights()

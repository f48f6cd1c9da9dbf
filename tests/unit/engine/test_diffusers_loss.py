"""One training batch gives the loss of diffusers' own training scripts, for every family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline
from diffusers.training_utils import compute_snr
from torch import Tensor

from dreamfleet.bases.quiet import quiet_libraries
from dreamfleet.methods import Batch
from tests.tiny_jobs import tiny_job

pytestmark = pytest.mark.heavy

TOLERANCE = 1e-5  # relative, fp32


def diffusers_loss(
    folder: Path, batch: Batch, *, prior_weight: float | None, snr_gamma: float | None
) -> Tensor:
    """As in examples/dreambooth/train_dreambooth_lora(_sdxl).py: instance and class samples in one
    forward, `chunk`, plain means; the embeddings by the pipeline's own encode_prompt.
    """
    with quiet_libraries():
        pipeline = DiffusionPipeline.from_pretrained(folder)
    scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
    rows = [batch.subject] if prior_weight is None else [batch.subject, batch.prior]
    latents = torch.cat([row.latents for row in rows])  # type: ignore[union-attr]
    noise = torch.cat([row.noise for row in rows])  # type: ignore[union-attr]
    t = torch.cat([row.t for row in rows])  # type: ignore[union-attr]
    prompts = [prompt for row in rows for prompt in row.prompts]  # type: ignore[union-attr]
    kwargs: dict[str, Any] = {}
    with torch.no_grad():
        encoded = pipeline.encode_prompt(
            prompts,
            device=torch.device("cpu"),
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
        )
        if hasattr(pipeline, "text_encoder_2"):
            time_ids = torch.tensor([[64, 64, 0, 0, 64, 64]] * len(prompts))
            kwargs["added_cond_kwargs"] = {"time_ids": time_ids, "text_embeds": encoded[2]}
        noisy = scheduler.add_noise(latents, noise, t)
        prediction = pipeline.unet(noisy, t, encoded[0], **kwargs).sample
    v_prediction = scheduler.config.prediction_type == "v_prediction"
    target = scheduler.get_velocity(latents, noise, t) if v_prediction else noise
    if snr_gamma is None:
        loss = F.mse_loss(prediction, target, reduction="none")
    else:
        snr = compute_snr(scheduler, t)
        weight = snr.clamp(max=snr_gamma) / (snr + 1 if v_prediction else snr)
        loss = weight[:, None, None, None] * F.mse_loss(prediction, target, reduction="none")
    if prior_weight is None:
        return loss.mean()
    instance, prior = loss.chunk(2)
    return instance.mean() + prior_weight * prior.mean()


@pytest.mark.parametrize("snr_gamma", [None, 5.0])
@pytest.mark.parametrize("prior_weight", [None, 0.7])
def test_a_batch_gives_diffusers_loss(
    family_folder: Path, snr_gamma: float | None, prior_weight: float | None
) -> None:
    job = tiny_job(
        family_folder,
        train__train_batch_size=3,
        train__snr_gamma=snr_gamma,
        prior__with_prior_preservation=prior_weight is not None,
        prior__weight=prior_weight or 0.0,
    )
    batch = job.batch(0)
    ours = float(job.method.losses(batch).total)
    theirs = diffusers_loss(family_folder, batch, prior_weight=prior_weight, snr_gamma=snr_gamma)
    assert ours == pytest.approx(float(theirs), rel=TOLERANCE)

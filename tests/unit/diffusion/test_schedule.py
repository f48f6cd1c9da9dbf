"""The forward process against diffusers' own."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMScheduler

from dreamfleet.config import MAX_INFERENCE_STEPS
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.diffusion.linear_steps import linear_steps
from dreamfleet.diffusion.losses.mse import mse_per_sample
from dreamfleet.diffusion.losses.prior_preservation import image_prior_loss, teacher_prior_loss
from dreamfleet.diffusion.samplers import make_scheduler
from dreamfleet.diffusion.schedule import NoiseSchedule
from dreamfleet.errors import BaseModelError, ConfigError

T = torch.tensor([0, 17, 500, 999])


def noise_scheduler(kind: str = "epsilon", **options: object) -> DDPMScheduler:
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        **options,
    )


def pictures(seed: int = 0) -> torch.Tensor:
    return torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(seed))


def test_noise_and_targets_equal_diffusers() -> None:
    x0, eps = pictures(0), pictures(1)
    for kind in ("epsilon", "v_prediction"):
        scheduler = noise_scheduler(kind)
        plan = NoiseSchedule.from_config(scheduler.config)
        torch.testing.assert_close(plan.add_noise(x0, eps, T), scheduler.add_noise(x0, eps, T))
        target = eps if kind == "epsilon" else scheduler.get_velocity(x0, eps, T)
        torch.testing.assert_close(plan.target(x0, eps, T), target)
        back = plan.to_epsilon(plan.target(x0, eps, T), plan.add_noise(x0, eps, T), T)
        torch.testing.assert_close(back, eps, rtol=1e-4, atol=1e-4)
        assert plan.num_train_timesteps == 1000


def test_min_snr_weights() -> None:
    bar = noise_scheduler().alphas_cumprod[T]
    snr = bar / (1 - bar)
    epsilon = NoiseSchedule.from_config(noise_scheduler().config)
    torch.testing.assert_close(epsilon.min_snr_weight(T, 5.0), (5.0 / snr).clamp(max=1.0))
    velocity = NoiseSchedule.from_config(noise_scheduler("v_prediction").config)
    torch.testing.assert_close(velocity.min_snr_weight(T, 5.0), snr.clamp(max=5.0) / (snr + 1))
    assert torch.equal(velocity.min_snr_weight(T, None), torch.ones(4))
    # Weighted v-MSE and weighted eps-MSE are the same loss: (SNR + 1) (1 - abar) = 1.
    torch.testing.assert_close(
        velocity.epsilon_weight(T, 5.0), epsilon.epsilon_weight(T, 5.0) * snr * (1 - bar) / bar
    )


def test_zero_terminal_snr_stays_finite() -> None:
    plan = NoiseSchedule.from_config(
        noise_scheduler("v_prediction", rescale_betas_zero_snr=True).config
    )
    t = torch.arange(1000)
    assert float(plan.alphas_cumprod[-1]) == 0.0
    for gamma in (None, 5.0):
        assert torch.isfinite(plan.min_snr_weight(t, gamma)).all()
        assert torch.isfinite(plan.epsilon_weight(t, gamma)).all()
    zero = NoiseSchedule(plan.alphas_cumprod, "epsilon")
    assert torch.isfinite(zero.min_snr_weight(t, 5.0)).all()


def test_other_predictions_are_refused() -> None:
    with pytest.raises(BaseModelError, match="sample"):
        NoiseSchedule.from_config(noise_scheduler("sample").config)


def test_losses_are_per_sample() -> None:
    a, b = pictures(0), pictures(1)
    expected = torch.stack([torch.nn.functional.mse_loss(a[i], b[i]) for i in range(4)])
    torch.testing.assert_close(mse_per_sample(a, b), expected)
    w = torch.tensor([0.0, 1.0, 2.0, 3.0])
    torch.testing.assert_close(mse_per_sample(a, b, weight=w), w * expected)
    mask = torch.zeros(4, 1, 5, 5)
    mask[..., :2] = 1
    torch.testing.assert_close(mse_per_sample(a, b, mask), mse_per_sample(a[..., :2], b[..., :2]))
    torch.testing.assert_close(image_prior_loss(a, b, w), w * expected)
    teacher = b.requires_grad_(True)
    torch.testing.assert_close(teacher_prior_loss(a, teacher), expected)
    assert not teacher_prior_loss(a, teacher).requires_grad


def test_conditioning() -> None:
    embeds, pooled = torch.arange(12.0).view(4, 3, 1), torch.arange(4.0).view(4, 1)
    full = Conditioning(embeds, pooled, pooled)
    assert len(full) == 4
    again = Conditioning.cat([full.select([0, 1]), full.select([2, 3])])
    assert torch.equal(again.prompt_embeds, embeds) and torch.equal(again.pooled, pooled)  # type: ignore[arg-type]
    assert full.select([3, 3]).pooled.flatten().tolist() == [3, 3]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="some"):
        Conditioning.cat([full, Conditioning(embeds)])


def test_schedulers_by_name() -> None:
    config = dict(noise_scheduler("v_prediction").config)
    for name, kind in (("ddim", "DDIM"), ("euler", "Euler"), ("dpm", "DPMSolver")):
        made = make_scheduler(config, name)
        assert kind in type(made).__name__ and made.config.prediction_type == "v_prediction"
    assert make_scheduler(config, "ddim").config.clip_sample is False
    with pytest.raises(ConfigError, match="ddim, euler, dpm"):
        make_scheduler(config, "heun")


@pytest.mark.parametrize(
    "own",
    [
        {"solver_order": 3},
        {"algorithm_type": "sde-dpmsolver++"},
        {"algorithm_type": "dpmsolver"},
        {"algorithm_type": "deis", "solver_type": "logrho"},  # a DEIS scheduler's
    ],
)
def test_dpm_is_2m_whatever_solver_the_base_comes_with(own: dict[str, object]) -> None:
    config = dict(noise_scheduler().config)
    expected = linear_steps(config, "dpm", 6).coefficients
    assert torch.equal(linear_steps({**config, **own}, "dpm", 6).coefficients, expected)


@pytest.mark.parametrize("sampler", ["ddim", "euler", "dpm"])
@pytest.mark.parametrize(
    "own",
    [
        {"timestep_spacing": "leading", "steps_offset": 1},  # SD 1, SD 2, SDXL
        {"timestep_spacing": "linspace"},
        {"timestep_spacing": "trailing"},  # the embedded base
        {"timestep_spacing": "leading", "steps_offset": 1, "rescale_betas_zero_snr": True},
        {"timestep_spacing": "trailing", "rescale_betas_zero_snr": True},
    ],
)
def test_the_most_steps_that_may_be_asked_for_are_finite(
    sampler: str, own: dict[str, object]
) -> None:
    config = {**dict(noise_scheduler("v_prediction").config), **own}
    run = linear_steps(config, sampler, MAX_INFERENCE_STEPS)
    assert len(run) == MAX_INFERENCE_STEPS
    assert torch.isfinite(run.coefficients).all() and torch.isfinite(run.input_scale).all()

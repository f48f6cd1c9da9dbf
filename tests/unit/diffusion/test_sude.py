"""The SuDe identities: paper (arXiv 2403.06775 Eq. 4-12), hinge form, gradients, weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dreamfleet.diffusion.losses.mse import mse_per_sample
from dreamfleet.diffusion.losses.sude import sude_terms, sude_weight
from dreamfleet.diffusion.schedule import NoiseSchedule

SD_SETTINGS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SHAPE = (2, 3, 3)
seeds = st.integers(0, 10_000)
weights = st.floats(0.1, 8.0)


def schedule(prediction_type: str = "epsilon", **options: object) -> NoiseSchedule:
    scheduler = DDIMScheduler(**SD_SETTINGS, prediction_type=prediction_type, **options)
    return NoiseSchedule.from_config(scheduler.config)


def predictions(seed: int, count: int = 4) -> list[Tensor]:
    """e_s, e_c, e_u."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, *SHAPE, generator=generator) for _ in range(3)]


def mean(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1)


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss.sum(), of, retain_graph=True)[0]


@given(seeds, weights)
@settings(max_examples=60, deadline=None)
def test_the_hinge_is_the_papers_loss_above_its_threshold(seed: int, w: float) -> None:
    s, c, u = [x.double() for x in predictions(seed)]
    paper_loss = w * (mean((s - c) ** 2) - mean((s - u) ** 2))
    tau = -w * mean((c - u) ** 2)
    terms = sude_terms(s, c, u, torch.full((4,), w))
    assert (tau <= 0).all()
    torch.testing.assert_close(
        terms.loss.double(), (paper_loss - tau).clamp_min(0), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(terms.is_on, paper_loss > tau)
    expected = 2 * w * mean((c - u) ** 2) * (1 - terms.rho.double())
    torch.testing.assert_close(paper_loss - tau, expected, rtol=1e-4, atol=1e-4)


@given(seeds, weights)
@settings(max_examples=40, deadline=None)
def test_gradient_while_on_is_2w_over_n_times_u_minus_c(seed: int, w: float) -> None:
    s, c, u = predictions(seed)
    s.requires_grad_(True)
    terms = sude_terms(s, c, u, torch.full((4,), w))
    n = s[0].numel()
    on = terms.is_on.view(-1, 1, 1, 1)
    torch.testing.assert_close(gradient(terms.loss, s), torch.where(on, 2 * w / n * (u - c), 0.0))


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_without_truncation_the_gradient_does_not_depend_on_the_subject(seed: int) -> None:
    s, c, u = predictions(seed)
    other = predictions(seed + 1)[0]
    grads = []
    for subject in (s, other):
        subject.requires_grad_(True)
        terms = sude_terms(subject, c, u, torch.ones(4), None)
        assert terms.is_on.all()
        grads.append(gradient(terms.loss, subject))
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(
        sude_terms(s, c, u, torch.ones(4), None).loss,
        mean((s - c) ** 2) - mean((s - u) ** 2) + mean((c - u) ** 2),
        rtol=1e-4,
        atol=1e-5,
    )


@given(seeds, st.floats(-3, 3), st.sampled_from([0.5, 1.0, 1.5]))
@settings(max_examples=60, deadline=None)
def test_it_is_on_exactly_below_the_truncation_point(seed: int, rho: float, point: float) -> None:
    noise, c, u = predictions(seed)
    b = c - u
    along = (noise * b).flatten(1).sum(1) / (b * b).flatten(1).sum(1)
    orthogonal = noise - along.view(-1, 1, 1, 1) * b
    terms = sude_terms(u + rho * b + orthogonal, c, u, torch.ones(4), point)
    torch.testing.assert_close(terms.rho, torch.full((4,), rho), rtol=1e-3, atol=1e-3)
    if abs(rho - point) > 1e-3:
        assert terms.is_on.tolist() == [rho < point] * 4
        expected = 2 * mean(b**2) * max(point - rho, 0.0)
        torch.testing.assert_close(terms.loss, expected, rtol=1e-3, atol=1e-3)


@given(seeds)
@settings(max_examples=20, deadline=None)
def test_a_batch_equals_its_samples_alone(seed: int) -> None:
    s, c, u = predictions(seed)
    w = torch.tensor([0.5, 1.0, 2.0, 7.0])
    together = sude_terms(s, c, u, w)
    for i in range(4):
        alone = sude_terms(s[i : i + 1], c[i : i + 1], u[i : i + 1], w[i : i + 1])
        for a, b in zip(alone, together, strict=True):
            torch.testing.assert_close(a[0], b[i], rtol=1e-6, atol=1e-7)


def test_off_without_a_class_direction_at_the_switch_and_without_weight() -> None:
    s, c, u = predictions(0)
    same = sude_terms(s, c, c, torch.ones(4))
    assert not same.is_on.any() and not same.loss.any() and (same.rho == 1).all()
    at_switch = sude_terms(c + 1e-7 * (u - c), c, u, torch.ones(4))
    assert not at_switch.is_on.any() and not at_switch.loss.any()
    assert not sude_terms(u - c, c, u, torch.zeros(4), None).is_on.any()


def test_only_the_subject_gets_a_gradient_and_half_precision_is_computed_in_fp32() -> None:
    s, c, u = [x.half().requires_grad_(True) for x in predictions(3)]
    terms = sude_terms(s, c, u, torch.ones(4), None)
    assert terms.loss.dtype == torch.float32
    terms.loss.sum().backward()
    assert s.grad is not None and c.grad is None and u.grad is None
    # Nearly equal predictions: a difference of squares in half precision would be all rounding.
    near = (c + 1e-3 * (c - u)).detach()
    assert not sude_terms(near, c, u, torch.ones(4)).is_on.any()


@given(seeds, st.floats(0.1, 3.0))
@settings(max_examples=25, deadline=None)
def test_while_on_the_total_is_mse_to_a_shifted_target(seed: int, w_s: float) -> None:
    s, c, u = predictions(seed)
    eps, mask_draw, _ = predictions(seed + 1)
    mask = (mask_draw[:, :1] > -0.5).float()
    gamma, w = torch.tensor([1.0, 0.5, 2.0, 0.1]), torch.tensor([0.5, 1.0, 2.0, 7.0])
    s.requires_grad_(True)
    terms = sude_terms(s, c, u, w, None, mask, gamma)
    total = mse_per_sample(s, eps, mask, gamma) + w_s * terms.loss
    shifted = eps + w_s * w.view(-1, 1, 1, 1) * (c - u)
    expected = mse_per_sample(s, shifted, mask, gamma)
    torch.testing.assert_close(gradient(total, s), gradient(expected, s), rtol=1e-4, atol=1e-6)


def test_v_prediction_shifts_the_same_noise_target() -> None:
    plan = schedule("v_prediction")
    v_s, v_c, v_u = predictions(5)
    x0, eps, _ = predictions(6)
    t = torch.tensor([1, 300, 700, 990])
    x_t = plan.add_noise(x0, eps, t)
    v_s.requires_grad_(True)
    e_s, e_c, e_u = (plan.to_epsilon(v, x_t, t) for v in (v_s, v_c, v_u))
    w, w_s = sude_weight(t, plan, "code"), 0.4
    for gamma in (None, 5.0):
        host = plan.min_snr_weight(t, gamma)
        host_weight = plan.epsilon_weight(t, gamma)
        terms = sude_terms(e_s, e_c, e_u, w, None, host_weight=host_weight)
        total = mse_per_sample(v_s, plan.target(x0, eps, t), weight=host) + w_s * terms.loss
        target = eps + w_s * w.view(-1, 1, 1, 1) * (e_c - e_u)
        expected = plan.epsilon_weight(t, gamma) * mean((e_s - target.detach()) ** 2)
        torch.testing.assert_close(
            gradient(total, v_s), gradient(expected, v_s), rtol=2e-4, atol=1e-6
        )


def released_loss(
    plan: NoiseSchedule, t: int, s: Tensor, c: Tensor, u: Tensor, x_t: Tensor
) -> tuple[float, float]:
    """L and tau of the released code for one sample: posterior means, 2 sigma^2 + 1e-6, times
    1/coef1.
    """
    bars = plan.alphas_cumprod.double()
    bar, previous = bars[t], bars[t - 1]
    alpha = bar / previous
    beta = 1 - alpha
    coef1 = beta * previous.sqrt() / (1 - bar)
    coef2 = (1 - previous) * alpha.sqrt() / (1 - bar)
    variance = beta * (1 - previous) / (1 - bar)

    def posterior_mean(e: Tensor) -> Tensor:
        x0 = (1 / bar).sqrt() * x_t.double() - (1 / bar - 1).sqrt() * e.double()
        return coef1 * x0 + coef2 * x_t.double()

    m_s, m_c, m_u = (posterior_mean(e) for e in (s, c, u))
    below = 2 * variance + 1e-6
    loss = (F.mse_loss(m_s, m_c) - F.mse_loss(m_s, m_u)) / below / coef1
    tau = -F.mse_loss(m_c, m_u) / below / coef1
    return float(loss), float(tau)


@pytest.mark.parametrize("t", [1, 2, 10, 100, 500, 900, 999])
def test_official_weights_reproduce_the_released_formula(t: int) -> None:
    plan = schedule()
    w = sude_weight(torch.tensor([t]), plan, "official")
    for seed in range(4):
        s, c, u, x_t = (x[:1] for x in [*predictions(seed), predictions(seed + 99)[0]])
        loss, tau = released_loss(plan, t, s, c, u, x_t)
        terms = sude_terms(s, c, u, w)
        assert bool(terms.is_on) == (loss > tau)
        assert float(terms.loss) == pytest.approx(max(loss - tau, 0.0), rel=2e-3, abs=1e-6)


def test_weights() -> None:
    plan = schedule()
    t = torch.arange(1000)
    official, code = sude_weight(t, plan, "official"), sude_weight(t, plan, "code")
    table = {1: 1.002, 10: 0.554, 100: 0.535, 500: 0.955, 900: 4.225, 999: 7.369}
    for step, value in table.items():
        assert float(official[step]) == pytest.approx(value, rel=2e-3)
    assert float(official[0]) == 0.5
    far = (official / code - 1).abs() > 0.05
    assert far.any() and int(far.nonzero().max()) <= 20
    assert torch.equal(sude_weight(t, plan, "bayes"), torch.ones(1000))
    torch.testing.assert_close(code, 0.5 / plan.alphas_cumprod.sqrt())


def test_weights_are_zero_at_zero_terminal_snr_and_capped_before() -> None:
    plan = schedule("v_prediction", rescale_betas_zero_snr=True)
    t = torch.arange(1000)
    for kind in ("code", "bayes", "official"):
        w = sude_weight(t, plan, kind)  # type: ignore[arg-type]
        assert torch.isfinite(w).all()
        assert float(w[-1]) == 0.0
    assert float(sude_weight(t, plan, "code").max()) == 7.5

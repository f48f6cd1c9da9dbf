"""The loss of one batch against an independent computation with diffusers' own classes, and the
teachers.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, StableDiffusionPipeline
from torch import Tensor

from dreamfleet.adapters.files import save_adapter
from dreamfleet.bases import load_base
from dreamfleet.engine.batch import make_batch
from dreamfleet.errors import ConfigError
from dreamfleet.methods import Batch, LossTerms, make_method
from dreamfleet.methods.dreambooth.method import DreamBooth
from tests.tiny_jobs import CLASS_PROMPT, PROMPT, latent_set, tiny_config
from tests.unit.adapters.test_lora import perturb

pytestmark = pytest.mark.heavy

INDICES = [3, 4, 5, 6]
FULL: dict[str, Any] = {
    "prior__with_prior_preservation": True,
    "prior__weight": 0.7,
    "sude__weight": 0.4,
}


def batch(indices: list[int] | None = None, seed: int = 0) -> Batch:
    count = 3
    return make_batch(
        seed,
        indices or INDICES,
        latent_set(PROMPT, count),
        [CLASS_PROMPT] * count,
        latent_set(CLASS_PROMPT, count, seed=1),
    )


def method(folder: Path, moved: bool = True, **options: Any) -> DreamBooth:
    """A DreamBooth method whose weights differ from the pretrained ones."""
    made = make_method(load_base(folder), tiny_config(folder, **options))
    assert isinstance(made, DreamBooth)
    if moved and made.settings.mode == "lora":
        perturb(made.base)
    elif moved:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for _, parameter in made.parameters():
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return made


class Reference:
    """The same loss written sample by sample on a plain diffusers pipeline."""

    def __init__(self, folder: Path, adapter: Path | None) -> None:
        self.pretrained = self._pipeline(folder, None)
        self.student = self._pipeline(folder, adapter)
        self.scheduler = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")

    @staticmethod
    def _pipeline(folder: Path, adapter: Path | None) -> Any:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        return pipeline

    def output(self, pipeline: Any, x_t: Tensor, t: Tensor, prompt: str) -> Tensor:
        embeds, _ = pipeline.encode_prompt(prompt, "cpu", 1, False)
        return pipeline.unet(x_t, t, encoder_hidden_states=embeds).sample

    def noised(self, x0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        x_t = self.scheduler.add_noise(x0, noise, t)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return x_t, self.scheduler.get_velocity(x0, noise, t) if velocity else noise

    def epsilon(self, output: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        if self.scheduler.config.prediction_type == "epsilon":
            return output
        bar = self.scheduler.alphas_cumprod[t]
        return bar.sqrt() * output + (1 - bar).sqrt() * x_t

    def snr_weight(self, t: Tensor, gamma: float | None) -> float:
        bar = float(self.scheduler.alphas_cumprod[t])
        if gamma is None:
            return 1.0
        snr = bar / (1 - bar)
        velocity = self.scheduler.config.prediction_type == "v_prediction"
        return min(snr, gamma) / (snr + 1 if velocity else snr)

    @torch.no_grad()
    def loss(
        self,
        given: Batch,
        gamma: float | None,
        teacher: str,
        form: str,
        w_s: float,
        prior: float,
        point: float,
    ) -> float:
        total = 0.0
        count = len(given.subject)
        for i in range(count):
            rows = given.subject
            t = rows.t[i : i + 1]
            x_t, target = self.noised(rows.latents[i : i + 1], rows.noise[i : i + 1], t)
            weight = self.snr_weight(t, gamma)
            student = self.output(self.student, x_t, t, rows.prompts[i])
            total += weight * float(F.mse_loss(student, target)) / count
            who = self.pretrained if teacher == "pretrained" else self.student
            outputs = [
                student,
                self.output(who, x_t, t, CLASS_PROMPT),
                self.output(who, x_t, t, ""),
            ]
            total += w_s * self.sude(outputs, x_t, t, weight, point) / count
            total += prior * self.prior(given, i, gamma, form, x_t, t) / count
        return total

    def sude(
        self, outputs: list[Tensor], x_t: Tensor, t: Tensor, weight: float, point: float
    ) -> float:
        """Eq. 7 minus Eq. 8 while positive, as differences of squares, in double precision.

        A truncation point other than 1 moves the threshold by 2 w (point - 1) mean b^2.
        """
        s, c, u = (self.epsilon(output, x_t, t).double() for output in outputs)
        bar = float(self.scheduler.alphas_cumprod[t])
        if bar == 0:
            return 0.0
        if self.scheduler.config.prediction_type == "v_prediction":
            weight = weight / bar
        w = min(0.5 / bar**0.5, 7.5) * weight
        loss = w * float(F.mse_loss(s, c) - F.mse_loss(s, u))
        tau = -w * float(F.mse_loss(c, u)) * (2 * point - 1)
        return max(loss - tau, 0.0)

    def prior(
        self, given: Batch, i: int, gamma: float | None, form: str, x_t: Tensor, t: Tensor
    ) -> float:
        if form == "teacher":
            a, b = (
                self.output(who, x_t, t, CLASS_PROMPT) for who in (self.student, self.pretrained)
            )
            return self.snr_weight(t, gamma) * float(F.mse_loss(a, b))
        assert given.prior is not None
        rows = given.prior
        t = rows.t[i : i + 1]
        x_t, target = self.noised(rows.latents[i : i + 1], rows.noise[i : i + 1], t)
        output = self.output(self.student, x_t, t, rows.prompts[i])
        return self.snr_weight(t, gamma) * float(F.mse_loss(output, target))


@pytest.mark.parametrize("kind", ["epsilon", "v"])
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_equals_an_independent_computation(
    tiny_base_folder: Path, tiny_v_base_folder: Path, tmp_path: Path, kind: str, gamma: float | None
) -> None:
    folder = tiny_base_folder if kind == "epsilon" else tiny_v_base_folder
    given = batch()
    if kind == "v":  # one sample at zero terminal SNR
        given = replace(given, subject=replace(given.subject, t=torch.tensor([999, 5, 300, 800])))
    first = method(folder)
    save_adapter(tmp_path, first.base)
    reference = Reference(folder, tmp_path)
    some_on = False
    for teacher in ("pretrained", "current"):
        for form in ("images", "teacher"):
            point = 1.0 if form == "images" else 200.0  # far enough out to be on
            options: dict[str, Any] = {
                **FULL,
                "train__snr_gamma": gamma,
                "sude__teacher": teacher,
                "sude__truncation_point": point,
                "prior__form": form,
            }
            terms = method(folder, **options).losses(given)
            expected = reference.loss(given, gamma, teacher, form, 0.4, 0.7, point)
            assert float(terms.total.detach()) == pytest.approx(expected, rel=2e-5)
            assert terms.is_on is not None
            some_on = some_on or bool(terms.is_on.any())
    assert some_on, "the hinge took part"


@pytest.mark.parametrize("form", ["images", "teacher"])
def test_a_batch_equals_its_samples_alone(tiny_base_folder: Path, form: str) -> None:
    made = method(tiny_base_folder, **FULL, prior__form=form, sude__truncation_point=None)
    together = made.losses(batch())
    alone = [made.losses(batch([n])) for n in INDICES]
    # SuDe compares predictions that differ by a thousandth: rounding counts a thousand times more.
    for name, rtol in (("subject", 1e-5), ("prior", 1e-4), ("sude", 1e-2), ("rho", 1e-2)):
        parts = torch.cat([getattr(terms, name) for terms in alone])
        torch.testing.assert_close(getattr(together, name), parts, rtol=rtol, atol=1e-6)
    mean = sum(float(terms.total.detach()) for terms in alone) / len(alone)
    assert float(together.total.detach()) == pytest.approx(mean, rel=1e-5)


def gradients(made: DreamBooth, terms: LossTerms) -> dict[str, Tensor]:
    named = made.parameters()
    grads = torch.autograd.grad(terms.total, [p for _, p in named], allow_unused=True)
    return {name: grad for (name, _), grad in zip(named, grads, strict=True) if grad is not None}


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("text", [False, True])
def test_pretrained_teacher_is_the_base_before_training(
    tiny_base_folder: Path, mode: str, text: bool
) -> None:
    options: dict[str, Any] = {
        "train__mode": mode,
        "train__train_text_encoder": text,
        "sude__weight": 1.0,
    }
    made = method(tiny_base_folder, **options)
    fresh = load_base(tiny_base_folder)
    x, t = batch().subject.noise, batch().subject.t
    prompts = (CLASS_PROMPT, "", "a cat", PROMPT)
    assert made.teacher is not None
    taught = made.teacher.predict(x, t, prompts)
    with torch.no_grad():
        expected = fresh.predict(x, t, fresh.encode_prompts(prompts))
        student = made.base.predict(x, t, made.base.encode_prompts(prompts))
    torch.testing.assert_close(taught, expected)
    assert not taught.requires_grad and not torch.allclose(student, expected, atol=1e-3)
    trained = {name.split(".")[0] for name, _ in made.parameters()}
    assert trained == ({"unet", "text_encoder"} if text else {"unet"})
    found = {name.split(".")[0] for name in gradients(made, made.losses(batch()))}
    assert found == trained


def test_current_teacher_follows_the_weights(tiny_base_folder: Path) -> None:
    for text in (False, True):
        options = {
            "sude__weight": 1.0,
            "sude__teacher": "current",
            "train__train_text_encoder": text,
        }
        rho = [
            method(tiny_base_folder, moved=moved, **options).losses(batch()).rho
            for moved in (False, True)
        ]
        assert rho[0] is not None and rho[1] is not None
        assert not torch.allclose(rho[0], rho[1])


def test_terms_that_are_off_cost_nothing(tiny_base_folder: Path) -> None:
    made = method(tiny_base_folder)
    terms = made.losses(replace(batch(), prior=None))
    assert (terms.sude, terms.rho, terms.is_on, terms.prior) == (None, None, None, None)
    assert made.teacher is None
    torch.testing.assert_close(terms.total, terms.subject.mean())


def test_presets_reach_the_loss(tiny_base_folder: Path) -> None:
    official = method(tiny_base_folder, moved=False, sude__preset="official").settings
    assert (official.sude_weight, official.sude_teacher, official.sude_weighting) == (
        0.4,
        "current",
        "official",
    )
    paper = method(tiny_base_folder, moved=False, sude__preset="paper", sude__weight=1.5).settings
    assert (paper.sude_weight, paper.sude_weighting) == (1.5, "bayes")


def test_full_mode_trains_single_precision_masters(tiny_base_folder: Path) -> None:
    base = load_base(tiny_base_folder, dtype=torch.bfloat16)
    made = make_method(base, tiny_config(tiny_base_folder, train__mode="full"))
    assert {parameter.dtype for _, parameter in made.parameters()} == {torch.float32}
    exact = load_base(tiny_base_folder).unet.state_dict()
    assert all(torch.equal(value, exact[key]) for key, value in base.unet.state_dict().items())


def test_gaps_in_the_configuration_are_refused(tiny_base_folder: Path) -> None:
    config = tiny_config(tiny_base_folder)
    gap = config.model_copy(update={"train": config.train.model_copy(update={"rank": None})})
    with pytest.raises(ConfigError, match="resolved_config"):
        make_method(load_base(tiny_base_folder), gap)

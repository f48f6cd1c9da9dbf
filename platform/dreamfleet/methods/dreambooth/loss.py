"""L = L_sub + w_s L_sude + lambda L_prior (arXiv 2403.06775 Eq. 10) of one batch, per sample.

Subject and prior rows share one student forward, class and empty prompts one teacher forward
without gradient, so SuDe costs two teacher predictions and no extra backward.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dreamfleet.bases import Base
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.diffusion.losses.mse import mse_per_sample
from dreamfleet.diffusion.losses.prior_preservation import image_prior_loss, teacher_prior_loss
from dreamfleet.diffusion.losses.sude import SudeTerms, sude_terms, sude_weight
from dreamfleet.methods.base import Batch, LossTerms
from dreamfleet.methods.dreambooth.config import DreamBoothSettings
from dreamfleet.methods.dreambooth.teacher import Teacher

Encode = Callable[[tuple[str, ...]], Conditioning]


class DreamBoothLoss:
    """The loss of batches under fixed settings.

    Args:
        base: the student.
        settings: which terms.
        encode: prompts -> conditioning of the student, with gradient if its text encoder trains.
        sude_teacher: predicts class and empty prompt for SuDe; None while SuDe is off.
        prior_teacher: the frozen model for `prior_form` teacher, else None.
    """

    def __init__(
        self,
        base: Base,
        settings: DreamBoothSettings,
        encode: Encode,
        sude_teacher: Teacher | None,
        prior_teacher: Teacher | None,
    ) -> None:
        self.base, self.settings, self.encode = base, settings, encode
        self.sude_teacher, self.prior_teacher = sude_teacher, prior_teacher

    def __call__(self, batch: Batch) -> LossTerms:
        subject, schedule = batch.subject, self.base.schedule
        x_t = schedule.add_noise(subject.latents, subject.noise, subject.t)
        class_output, empty_output = self._teach(batch, x_t)
        outputs = self._student(batch, x_t)
        weight = schedule.min_snr_weight(subject.t, self.settings.snr_gamma)
        target = schedule.target(subject.latents, subject.noise, subject.t)
        loss_subject = mse_per_sample(outputs[0], target, weight=weight)
        total = loss_subject.mean()
        terms: SudeTerms | None = None
        if class_output is not None and empty_output is not None:
            terms = self._sude(batch, x_t, outputs[0], class_output, empty_output)
            total = total + self.settings.sude_weight * terms.loss.mean()
        loss_prior = self._prior(batch, x_t, outputs, class_output)
        if loss_prior is not None:
            total = total + self.settings.prior_weight * loss_prior.mean()
        return LossTerms(
            total,
            loss_subject,
            terms.loss if terms else None,
            terms.rho if terms else None,
            terms.is_on if terms else None,
            loss_prior,
        )

    def _teach(self, batch: Batch, x_t: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """SuDe's class and empty-prompt outputs, as one batch."""
        if self.sude_teacher is None:
            return None, None
        count = len(batch.subject)
        t = batch.subject.t
        outputs = self.sude_teacher.predict(
            torch.cat([x_t, x_t]), torch.cat([t, t]), batch.class_prompts + ("",) * count
        )
        return outputs[:count], outputs[count:]

    def _student(self, batch: Batch, x_t: Tensor) -> list[Tensor]:
        """Outputs for the subject rows and, if any, for the prior rows (one forward)."""
        rows, timesteps = [x_t], [batch.subject.t]
        prompts = batch.subject.prompts
        if self.settings.prior_form == "teacher":
            rows.append(x_t)
            timesteps.append(batch.subject.t)
            prompts = prompts + batch.class_prompts
        elif batch.prior is not None:
            prior = batch.prior
            rows.append(self.base.schedule.add_noise(prior.latents, prior.noise, prior.t))
            timesteps.append(prior.t)
            prompts = prompts + prior.prompts
        output = self.base.predict(torch.cat(rows), torch.cat(timesteps), self.encode(prompts))
        return list(output.split([len(part) for part in rows]))

    def _sude(
        self, batch: Batch, x_t: Tensor, output: Tensor, class_output: Tensor, empty_output: Tensor
    ) -> SudeTerms:
        schedule, settings, t = self.base.schedule, self.settings, batch.subject.t
        eps_s, eps_c, eps_u = (
            schedule.to_epsilon(o.float(), x_t.float(), t)
            for o in (output, class_output, empty_output)
        )
        return sude_terms(
            eps_s,
            eps_c,
            eps_u,
            sude_weight(t, schedule, settings.sude_weighting),
            settings.truncation_point,
            host_weight=schedule.epsilon_weight(t, settings.snr_gamma),
        )

    def _prior(
        self, batch: Batch, x_t: Tensor, outputs: list[Tensor], class_output: Tensor | None
    ) -> Tensor | None:
        schedule, gamma = self.base.schedule, self.settings.snr_gamma
        if self.settings.prior_form == "teacher" and self.prior_teacher is not None:
            t = batch.subject.t
            # SuDe's teacher already predicted the class at this (x_t, t); only ask again if it is
            # another model.
            if class_output is None or self.prior_teacher is not self.sude_teacher:
                class_output = self.prior_teacher.predict(x_t, t, batch.class_prompts)
            return teacher_prior_loss(outputs[1], class_output, schedule.min_snr_weight(t, gamma))
        if batch.prior is None or len(outputs) < 2:
            return None
        prior = batch.prior
        target = schedule.target(prior.latents, prior.noise, prior.t)
        return image_prior_loss(outputs[1], target, schedule.min_snr_weight(prior.t, gamma))

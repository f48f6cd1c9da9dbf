"""L = L_sub + w_s L_sude + lambda L_prior (arXiv 2403.06775 Eq. 10) of one batch, per sample.

Subject and prior rows share one student forward, class and empty prompts one teacher forward
without gradient, so SuDe costs two teacher predictions and no extra backward. Which network
answers, and with whose rows beside it, is not this module's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreamfleet.config import RunConfig
from dreamfleet.diffusion.losses.mse import mse_per_sample
from dreamfleet.diffusion.losses.prior_preservation import image_prior_loss, teacher_prior_loss
from dreamfleet.diffusion.losses.sude import SudeTerms, sude_terms, sude_weight
from dreamfleet.diffusion.schedule import NoiseSchedule
from dreamfleet.methods.base import Answers, Batch, LossTerms, Query, Questions
from dreamfleet.methods.dreambooth.config import DreamBoothSettings
from dreamfleet.methods.dreambooth.prompts import without_token


@dataclass(frozen=True)
class DreamBoothObjective:
    """The loss of batches under fixed settings.

    Attributes:
        settings: which terms.
        schedule: the forward process.
        token: the identifier, which class prompts are without.
    """

    settings: DreamBoothSettings
    schedule: NoiseSchedule
    token: str

    @staticmethod
    def from_config(config: RunConfig, schedule: NoiseSchedule) -> DreamBoothObjective:
        settings = DreamBoothSettings.from_config(config)
        return DreamBoothObjective(settings, schedule, config.subject.token)

    def class_prompts(self, prompts: Sequence[str]) -> list[str]:
        """Each prompt without the identifier token."""
        return [without_token(prompt, self.token) for prompt in prompts]

    def questions(self, batch: Batch) -> Questions:
        """The student's rows (subject, then prior), and what the teachers are asked."""
        x_t = self._noised(batch)
        return Questions(
            self._student(batch, x_t), self._pretrained(batch, x_t), self._current(batch, x_t)
        )

    def losses(self, batch: Batch, answers: Answers) -> LossTerms:
        """The terms of Eq. 10; `answers` belong to `questions(batch)`."""
        subject, schedule = batch.subject, self.schedule
        x_t, count = self._noised(batch), len(subject)
        outputs = [answers.student[:count], answers.student[count:]]
        weight = schedule.min_snr_weight(subject.t, self.settings.snr_gamma)
        target = schedule.target(subject.latents, subject.noise, subject.t)
        loss_subject = mse_per_sample(outputs[0], target, weight=weight)
        total = loss_subject.mean()
        terms: SudeTerms | None = None
        taught = answers.pretrained if self._frozen_sude else answers.current
        if self.settings.with_sude and taught is not None:
            terms = self._sude(batch, x_t, outputs[0], taught[:count], taught[count:])
            total = total + self.settings.sude_weight * terms.loss.mean()
        loss_prior = self._prior(batch, outputs[1], answers.pretrained)
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

    @property
    def _frozen_sude(self) -> bool:
        return self.settings.with_sude and self.settings.sude_teacher == "pretrained"

    def _noised(self, batch: Batch) -> Tensor:
        subject = batch.subject
        return self.schedule.add_noise(subject.latents, subject.noise, subject.t)

    def _student(self, batch: Batch, x_t: Tensor) -> Query:
        subject = batch.subject
        query = Query(x_t, subject.t, subject.prompts, subject.keys)
        if self.settings.prior_form == "teacher":
            return _joined(query, Query(x_t, subject.t, batch.class_prompts, subject.keys))
        if batch.prior is None:
            return query
        prior = batch.prior
        noised = self.schedule.add_noise(prior.latents, prior.noise, prior.t)
        return _joined(query, Query(noised, prior.t, prior.prompts, prior.keys))

    def _pretrained(self, batch: Batch, x_t: Tensor) -> Query | None:
        """Class prompts, for SuDe or the teacher's prior; then empty ones, for SuDe."""
        subject = batch.subject
        if not self.settings.needs_frozen_teacher:
            return None
        query = Query(x_t, subject.t, batch.class_prompts, subject.keys)
        return _with_empty(query) if self._frozen_sude else query

    def _current(self, batch: Batch, x_t: Tensor) -> Query | None:
        if not self.settings.with_sude or self._frozen_sude:
            return None
        subject = batch.subject
        return _with_empty(Query(x_t, subject.t, batch.class_prompts, subject.keys))

    def _sude(
        self, batch: Batch, x_t: Tensor, output: Tensor, class_output: Tensor, empty_output: Tensor
    ) -> SudeTerms:
        schedule, settings, t = self.schedule, self.settings, batch.subject.t
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

    def _prior(self, batch: Batch, output: Tensor, pretrained: Tensor | None) -> Tensor | None:
        schedule, gamma = self.schedule, self.settings.snr_gamma
        if self.settings.prior_form == "teacher" and pretrained is not None:
            weight = schedule.min_snr_weight(batch.subject.t, gamma)
            return teacher_prior_loss(output, pretrained[: len(batch.subject)], weight)
        if batch.prior is None or not len(output):
            return None
        prior = batch.prior
        target = schedule.target(prior.latents, prior.noise, prior.t)
        return image_prior_loss(output, target, schedule.min_snr_weight(prior.t, gamma))


def _joined(one: Query, two: Query) -> Query:
    return Query(
        torch.cat([one.x_t, two.x_t]),
        torch.cat([one.t, two.t]),
        one.prompts + two.prompts,
        one.keys + two.keys,
    )


def _with_empty(query: Query) -> Query:
    return _joined(query, Query(query.x_t, query.t, ("",) * len(query), query.keys))

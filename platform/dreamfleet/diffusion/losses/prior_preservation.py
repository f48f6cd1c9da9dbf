"""Prior preservation: the class must stay what it was while the subject is learnt."""

from __future__ import annotations

from torch import Tensor

from dreamfleet.diffusion.losses.mse import mse_per_sample


def image_prior_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """DreamBooth's L_prior (arXiv 2208.12242 Eq. 2) of each sample [B].

    Args:
        prediction: model output for noised pictures of the class, under the class prompt [B, C, H,
            W].
        target: the schedule's target for those pictures [B, C, H, W].
        weight: [B] min-SNR weights at the prior samples' own timesteps.
    """
    return mse_per_sample(prediction, target, weight=weight)


def teacher_prior_loss(student: Tensor, teacher: Tensor, weight: Tensor | None = None) -> Tensor:
    """SuDe's form of L_prior (arXiv 2403.06775 Eq. 14) of each sample [B].

    The student's class prediction is held to the frozen pretrained model's at the same (x_t, t).

    Args:
        student: class-prompt output of the weights being trained [B, C, H, W].
        teacher: class-prompt output of the frozen model [B, C, H, W]; no gradient flows into it.
        weight: [B] min-SNR weights.
    """
    return mse_per_sample(student, teacher.detach(), weight=weight)

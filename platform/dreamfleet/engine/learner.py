"""The optimiser's side of a job: AdamW, schedule, clipping, EMA, loss scale and their state.

The same for a job that has a base to itself and for one that shares it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dreamfleet.config import TrainConfig
from dreamfleet.engine.metrics import MetricSum, StepMetrics
from dreamfleet.engine.optimizer import make_optimizer
from dreamfleet.engine.sharding import like, optimizer_state_like, whole
from dreamfleet.errors import ResumeError, TrainingError

STATE_VERSION = 1
# fp16: each retry of a step halves the loss scale; from 65,536 that reaches far below 1.
MAX_SCALE_RETRIES = 24


class Learner:
    """Turns gradients into steps.

    Args:
        train: settings of the optimiser.
        parameters: what is trained, fp32, on one device; their `.grad` is filled by others.
        subject_id: for messages.
        dtype: type of the frozen weights; fp16 scales the loss.
        common_gradient: several workers step together, so only the common gradient may decide.
    """

    def __init__(
        self,
        train: TrainConfig,
        parameters: Sequence[nn.Parameter],
        subject_id: str,
        dtype: torch.dtype,
        common_gradient: bool = False,
    ) -> None:
        self.train, self.subject_id = train, subject_id
        self.parameters: list[nn.Parameter] = list(parameters)
        self.step_index = 0
        self._common_gradient = common_gradient
        self.optimizer = make_optimizer(train, self.parameters)
        self.lr_scheduler = get_scheduler(
            train.lr_scheduler,
            self.optimizer,
            num_warmup_steps=train.lr_warmup_steps,
            num_training_steps=train.max_train_steps,
        )
        self.ema = EMAModel(self.parameters, decay=train.ema_decay) if train.use_ema else None
        device = self.parameters[0].device.type
        self.scaler = torch.amp.GradScaler(device, enabled=dtype == torch.float16)

    def clipped(self, sums: MetricSum) -> float | None:
        """Clip the gradients; their norm before, or None to take the same samples again.

        In fp16 a gradient that overflowed halves the loss scale for another attempt.

        Raises:
            TrainingError: loss or gradient is not finite.
        """
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.train.max_grad_norm)
        grad_norm = float(whole(norm))
        if math.isfinite(grad_norm) and self._loss_is_fine(sums):
            return grad_norm
        if math.isfinite(grad_norm) or not self.scaler.is_enabled():
            raise self.broken_down(sums, grad_norm)
        self.scaler.step(self.optimizer)  # changes nothing: the scaler saw the overflow
        self.scaler.update()
        return None

    def learn(self, sums: MetricSum, grad_norm: float) -> StepMetrics:
        """One optimiser step with the clipped gradients."""
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.step_index += 1
        return sums.metrics(self.step_index, grad_norm, learning_rate)

    def broken_down(self, sums: MetricSum, grad_norm: float) -> TrainingError:
        """The error that says so."""
        return TrainingError(
            f"{self.subject_id}: training broke down at step {self.step_index + 1}: loss "
            f"{sums.mean('loss'):g}, "
            f"gradient norm {grad_norm:g}; lower train.learning_rate (now "
            f"{self.train.learning_rate:g}), lower sude.weight or "
            "prior.weight, or use mixed_precision no or bf16, and begin again with that, under "
            "--overwrite or another --output-dir (--resume goes on under the old settings only)"
        )

    def gather(self) -> None:
        """Put a model that workers hold in parts together; a whole one needs nothing."""

    def learner_state(self) -> dict[str, Any]:
        """All but the parameters; tensors and plain values only."""
        return {
            "version": STATE_VERSION,
            "step": self.step_index,
            "optimizer": cpu_copy(self.optimizer.state_dict()),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "ema": None if self.ema is None else cpu_copy(self.ema.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load_learner_state(self, state: Mapping[str, Any]) -> None:
        """Go on from `learner_state()`."""
        saved = optimizer_state_like(self.parameters, state["optimizer"])
        self.optimizer.load_state_dict(saved)
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(dict(state["ema"]))
            self.ema.to(self.parameters[0].device)
            pairs = zip(self.parameters, self.ema.shadow_params, strict=True)
            self.ema.shadow_params = [like(parameter, mean) for parameter, mean in pairs]
        self.step_index = int(state["step"])

    def check_state(self, state: Mapping[str, Any], own: Mapping[str, Sequence[int]]) -> None:
        """Refuse the state of another kind of job.

        Args:
            own: shapes of the parameters by name.

        Raises:
            ResumeError: another version, or other parameters.
        """
        if state.get("version") != STATE_VERSION:
            raise ResumeError(
                f"checkpoint of version {state.get('version')!r}, this program reads "
                f"{STATE_VERSION}; begin again with --overwrite"
            )
        saved: Mapping[str, Tensor] = state["parameters"]
        wrong = [
            name
            for name, shape in own.items()
            if name not in saved or tuple(saved[name].shape) != tuple(shape)
        ]
        extra = sorted(set(saved) - set(own))
        if wrong or extra:
            raise ResumeError(
                f"the checkpoint trained other parameters ({(wrong + extra)[0]}, "
                f"{len(wrong) + len(extra)} in all); "
                "resume with the rank, layers and mode that the run began with"
            )
        if self.ema is not None and state.get("ema") is None:
            raise ResumeError("the checkpoint has no moving average; resume without --use-ema")

    def _loss_is_fine(self, sums: MetricSum) -> bool:
        # With several workers only the common gradient decides, so that all of them leave at the
        # same step.
        return self._common_gradient or math.isfinite(sums.mean("loss"))


def cpu_copy(tree: Any) -> Any:
    """A nested state with its tensors copied to the CPU, so that further steps do not change it."""
    if isinstance(tree, Tensor):
        return whole(tree.detach()).cpu().clone()
    if isinstance(tree, dict):
        return {key: cpu_copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(cpu_copy(value) for value in tree)
    return tree

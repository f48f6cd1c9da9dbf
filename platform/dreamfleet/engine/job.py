"""One training job: `step`, `state_dict`, `export`.

Later many of them share one base behind the same interface.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from dreamfleet.adapters.files import save_adapter, save_full
from dreamfleet.adapters.lora import adapter_disabled
from dreamfleet.bases import Base, load_base
from dreamfleet.config import RunConfig
from dreamfleet.engine.batch import LatentSet, make_batch, sample_positions
from dreamfleet.engine.metrics import MetricSum, StepMetrics
from dreamfleet.engine.optimizer import make_optimizer
from dreamfleet.errors import ConfigError, ResumeError, TrainingError
from dreamfleet.methods import Batch, make_method

__all__ = ["LatentSet", "StepMetrics", "TrainJob", "TrainJobSpec"]

ReduceGradients = Callable[[Sequence[nn.Parameter]], None]
STATE_VERSION = 1
# fp16: each retry of a step halves the loss scale; from 65,536 that reaches far below 1.
MAX_SCALE_RETRIES = 24


@dataclass(frozen=True)
class TrainJobSpec:
    """All that a job needs beside the base; plain data, no Ray.

    Attributes:
        config: resolved (`bases.resolved_config`).
        subject: the photos' latents and prompts (identifier filled in).
        prior: the prior set's latents and prompts; needed for `prior.form: images`, ignored without
            prior preservation.
        class_prompts: one per photo, its prompt without identifier; None: made from the prompts.
        rank, world_size: this worker's place; a step's samples are shared out over the workers.
        reduce_gradients: averages gradients over the workers in place, called once before each
            optimiser step.
        subject_id: for messages.
    """

    config: RunConfig
    subject: LatentSet
    prior: LatentSet | None = None
    class_prompts: Sequence[str] | None = None
    rank: int = 0
    world_size: int = 1
    reduce_gradients: ReduceGradients | None = None
    subject_id: str = "subject"


class TrainJob:
    """Trains one subject on `base`, which it changes: an adapter is put in, or its weights become
    trainable.

    Args:
        spec: data and settings.
        base: freshly loaded for this job.

    Raises:
        ConfigError: settings that cannot be trained as they are, naming the key.
    """

    def __init__(self, spec: TrainJobSpec, base: Base) -> None:
        self.spec, self.base = spec, base
        self.config = _checked(spec)
        self.method = make_method(base, self.config)
        self._named = self.method.parameters()
        self.parameters: list[nn.Parameter] = [parameter for _, parameter in self._named]
        prompts = list(spec.subject.prompts)
        self.class_prompts = list(spec.class_prompts or self.method.class_prompts(prompts))
        self.step_index = 0
        train = self.config.train
        self.optimizer = make_optimizer(train, self.parameters)
        self.lr_scheduler = get_scheduler(
            train.lr_scheduler,
            self.optimizer,
            num_warmup_steps=train.lr_warmup_steps,
            num_training_steps=train.max_train_steps,
        )
        self.ema = EMAModel(self.parameters, decay=train.ema_decay) if train.use_ema else None
        self.scaler = torch.amp.GradScaler(base.device.type, enabled=base.dtype == torch.float16)
        self.method.train_mode(True)

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        """This worker's samples of a (micro-)step."""
        train = self.config.train
        indices = sample_positions(
            step,
            micro_step,
            batch_size=train.train_batch_size,
            accumulation=train.gradient_accumulation_steps,
            rank=self.spec.rank,
            world_size=self.spec.world_size,
        )
        return make_batch(
            train.seed,
            indices,
            self._subject_set(),
            self.class_prompts,
            self._prior_set(),
            num_train_timesteps=self.base.schedule.num_train_timesteps,
            device=self.base.device,
        )

    def step(self) -> StepMetrics:
        """One optimiser step. Losses are this worker's own; the gradient norm (before clipping) is
        common.

        Raises:
            TrainingError: loss or gradient is not finite; nothing was changed by the step.
        """
        learning_rate = float(self.optimizer.param_groups[0]["lr"])
        sums, grad_norm = self._finite_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.lr_scheduler.step()
        if self.ema is not None:
            self.ema.step(self.parameters)
        self.optimizer.zero_grad(set_to_none=True)
        self.step_index += 1
        return sums.metrics(self.step_index, grad_norm, learning_rate)

    def state_dict(self) -> dict[str, Any]:
        """Everything to go on bit for bit; tensors and plain values only
        (`torch.load(weights_only=True)`).
        """
        return {
            "version": STATE_VERSION,
            "step": self.step_index,
            "parameters": {
                name: parameter.detach().cpu().clone() for name, parameter in self._named
            },
            "optimizer": _cpu_copy(self.optimizer.state_dict()),
            "lr_scheduler": self.lr_scheduler.state_dict(),
            "ema": None if self.ema is None else _cpu_copy(self.ema.state_dict()),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a job with the same spec.

        Raises:
            ResumeError: the state is of another version or of other parameters.
        """
        _check_state(state, dict(self._named), self.ema is not None)
        with torch.no_grad():
            for name, parameter in self._named:
                parameter.copy_(state["parameters"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.lr_scheduler.load_state_dict(state["lr_scheduler"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(dict(state["ema"]))
            self.ema.to(self.base.device)
        self.step_index = int(state["step"])

    def export(self, folder: str | Path) -> list[Path]:
        """Write what training made: `pytorch_lora_weights.safetensors`, or for full fine-tuning a
        diffusers folder.

        With `use_ema` these are the averaged weights. Returns the files written.
        """
        with self.final_weights():
            if self.config.train.mode == "full":
                return save_full(folder, self.base)
            return [save_adapter(folder, self.base)]

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[Base]:
        """The base as it would be exported (EMA weights if kept), for sampling; training goes on
        untouched afterwards.
        """
        self.method.train_mode(False)
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
        try:
            yield self.base
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
            self.method.train_mode(True)

    @contextlib.contextmanager
    def bare_base(self) -> Iterator[Base]:
        """The base without what was trained, to compare with (full fine-tuning: loaded once
        more).
        """
        if self.config.train.mode == "full":
            bare = load_base(self.base.name, device=self.base.device, dtype=self.base.dtype)
            bare.safety_checker = self.base.safety_checker
            yield bare
            return
        self.method.train_mode(False)
        try:
            with adapter_disabled(self.base):
                yield self.base
        finally:
            self.method.train_mode(True)

    def _finite_gradients(self) -> tuple[MetricSum, float]:
        """Losses and clipped gradients of a step; in fp16 the same samples again at half the scale
        until they fit.
        """
        clip = self.config.train.max_grad_norm
        for _ in range(MAX_SCALE_RETRIES):
            sums = self._accumulate()
            self.scaler.unscale_(self.optimizer)
            grad_norm = float(nn.utils.clip_grad_norm_(self.parameters, clip))
            if math.isfinite(grad_norm) and self._loss_is_fine(sums):
                return sums, grad_norm
            if math.isfinite(grad_norm) or not self.scaler.is_enabled():
                break
            self.scaler.step(self.optimizer)  # changes nothing: the scaler saw the overflow
            self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        raise TrainingError(self._not_finite(sums, grad_norm))

    def _loss_is_fine(self, sums: MetricSum) -> bool:
        # With several workers only the common gradient decides, so that all of them leave at the
        # same step.
        return self.spec.world_size > 1 or math.isfinite(sums.mean("loss"))

    def _accumulate(self) -> MetricSum:
        """Gradients of the mean loss over all micro-steps (and workers)."""
        train = self.config.train
        self.optimizer.zero_grad(set_to_none=True)
        sums = MetricSum()
        for micro_step in range(train.gradient_accumulation_steps):
            terms = self.method.losses(self.batch(self.step_index, micro_step))
            self.scaler.scale(terms.total / train.gradient_accumulation_steps).backward()
            sums.add(terms)
        if self.spec.reduce_gradients is not None:
            self.spec.reduce_gradients(self.parameters)
        return sums

    def _not_finite(self, sums: MetricSum, grad_norm: float) -> str:
        train = self.config.train
        return (
            f"{self.spec.subject_id}: training broke down at step {self.step_index + 1}: loss "
            f"{sums.mean('loss'):g}, "
            f"gradient norm {grad_norm:g}; lower train.learning_rate (now "
            f"{train.learning_rate:g}), lower sude.weight or "
            "prior.weight, or use mixed_precision no or bf16; then go on from the last checkpoint "
            "with --resume"
        )

    def _subject_set(self) -> LatentSet:
        subject = self.spec.subject
        if self.config.data.random_flip:
            return subject
        return LatentSet(subject.mean, subject.std, subject.prompts, subject.weights)

    def _prior_set(self) -> LatentSet | None:
        prior = self.config.prior
        return self.spec.prior if prior.with_prior_preservation and prior.form == "images" else None


def _cpu_copy(tree: Any) -> Any:
    """A nested state with its tensors copied to the CPU, so that further steps do not change it."""
    if isinstance(tree, Tensor):
        return tree.detach().cpu().clone()
    if isinstance(tree, dict):
        return {key: _cpu_copy(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(_cpu_copy(value) for value in tree)
    return tree


def _checked(spec: TrainJobSpec) -> RunConfig:
    config, train = spec.config, spec.config.train
    missing = [
        name for name in ("max_train_steps", "learning_rate") if getattr(train, name) is None
    ]
    if missing:
        raise ConfigError(
            f"train.{missing[0]} is not set; fill the gaps with bases.resolved_config first"
        )
    if (
        config.prior.with_prior_preservation
        and config.prior.form == "images"
        and spec.prior is None
    ):
        raise ConfigError(
            "prior.with_prior_preservation is on with form images, but there is no prior set"
        )
    if spec.class_prompts is not None and len(spec.class_prompts) != len(spec.subject):
        raise ConfigError(
            f"{len(spec.class_prompts)} class prompts for {len(spec.subject)} photos; expected one "
            "each"
        )
    return config


def _check_state(state: Mapping[str, Any], own: Mapping[str, Tensor], with_ema: bool) -> None:
    if state.get("version") != STATE_VERSION:
        raise ResumeError(
            f"checkpoint of version {state.get('version')!r}, this program reads {STATE_VERSION}; "
            "begin again with --overwrite"
        )
    saved: Mapping[str, Tensor] = state["parameters"]
    wrong = [name for name in own if name not in saved or saved[name].shape != own[name].shape]
    extra = sorted(set(saved) - set(own))
    if wrong or extra:
        raise ResumeError(
            f"the checkpoint trained other parameters ({(wrong + extra)[0]}, "
            f"{len(wrong) + len(extra)} in all); "
            "resume with the rank, layers and mode that the run began with"
        )
    if with_ema and state.get("ema") is None:
        raise ResumeError("the checkpoint has no moving average; resume without --use-ema")

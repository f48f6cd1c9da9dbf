"""One job in a slot of a shared base: the same interface as `TrainJob`, and for a LoRA the same
state.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dreamfleet.adapters.bank import AdapterBank, Adapters, SlotState
from dreamfleet.adapters.kinds import AdapterShape
from dreamfleet.adapters.lora_slots import LoraShape
from dreamfleet.bases import Base
from dreamfleet.config import RunConfig
from dreamfleet.diffusion.conditioning import Conditioning
from dreamfleet.engine.job import TrainJob
from dreamfleet.engine.learner import Learner, cpu_copy
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.errors import ConfigError
from dreamfleet.methods import Batch, Questions, make_objective
from dreamfleet.methods.dreambooth.text import TextCache

MAX_PREPARED = 64  # micro-steps whose samples are kept until they are trained on


@dataclass(frozen=True)
class Prepared:
    """A micro-step's samples, and what must be predicted for them."""

    batch: Batch
    questions: Questions


def lora_shape(config: RunConfig) -> LoraShape:
    """The adapter that a resolved configuration asks for.

    Raises:
        ConfigError: rank or layers are not set.
    """
    train = config.train
    if train.rank is None or train.lora_layers is None:
        raise ConfigError(
            "train.rank and train.lora_layers are not set; use bases.resolved_config first"
        )
    alpha = float(train.rank if train.lora_alpha is None else train.lora_alpha)
    return LoraShape(train.rank, alpha, train.lora_layers, train.train_text_encoder)


def adapter_shape(spec: TrainJobSpec) -> AdapterShape:
    """The adapter that a job trains, of whichever kind.

    Raises:
        ConfigError: rank or layers of a LoRA are not set.
    """
    return spec.adapter if spec.adapter is not None else lora_shape(spec.config)


def why_alone(config: RunConfig) -> str | None:
    """Why a job of this configuration needs a base of its own; None: it can share one."""
    train = config.train
    if train.mode != "lora":
        return "full fine-tuning changes the base itself"
    for key in ("gradient_checkpointing", "enable_xformers_memory_efficient_attention"):
        if getattr(train, key):
            return f"train.{key} is a setting of the whole base"
    if train.use_8bit_adam:
        return "train.use_8bit_adam has state that belongs to no single tensor of the adapter"
    return None


class PackedJob(Learner):
    """A job whose forward and backward others carry out (`PackedTrainer`).

    Args:
        spec: data and settings; one worker.
        base: shared and frozen.
        bank: takes the adapter; has room for its shape.
        texts: embeddings of the frozen text encoder, shared by all jobs.

    Raises:
        ConfigError: settings that cannot be trained in a slot, naming the key.
        CapacityError: the bank is full.
    """

    def __init__(self, spec: TrainJobSpec, base: Base, bank: AdapterBank, texts: TextCache) -> None:
        self.spec, self.base, self.bank, self._texts = spec, base, bank, texts
        self.config = _checked(spec)
        self.shape = adapter_shape(spec)
        self.objective = make_objective(self.config, base.schedule)
        prompts = list(spec.subject.prompts)
        self.class_prompts = list(spec.class_prompts or self.objective.class_prompts(prompts))
        self._prepared: dict[tuple[int, int], Prepared] = {}
        self.slot = -1
        self._attach(bank)

    @property
    def micro_steps(self) -> int:
        return self.config.train.gradient_accumulation_steps

    @property
    def rows_per_step(self) -> int:
        """Subject samples of one step."""
        return self.micro_steps * self.config.train.train_batch_size

    @property
    def adapters(self) -> Adapters:
        """How its rows are routed."""
        return ((self.slot, 1.0),)

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        """The samples of a (micro-)step."""
        timesteps = self.base.schedule.num_train_timesteps
        return self.spec.batch(step, micro_step, self.class_prompts, timesteps, self.base.device)

    def prepared(self, step: int, micro_step: int) -> Prepared:
        """Samples and questions, made once; the frozen teacher looks some steps ahead."""
        key = (step, micro_step)
        if key not in self._prepared:
            batch = self.batch(step, micro_step)
            self._prepared[key] = Prepared(batch, self.objective.questions(batch))
        return self._prepared[key]

    def ahead(self, steps: int) -> list[Prepared]:
        """The next `steps` steps after the present one, as far as the run goes."""
        last = int(self.config.train.max_train_steps or 0)
        first = self.step_index + 1
        room = (MAX_PREPARED - len(self._prepared)) // self.micro_steps
        until = min(first + min(steps, max(room, 0)), last)
        return [
            self.prepared(step, micro)
            for step in range(first, until)
            for micro in range(self.micro_steps)
        ]

    def encode(self, prompts: tuple[str, ...], *, trainable: bool) -> Conditioning:
        """[B, L, D]; through the text encoder with the slot's own changes where it has some."""
        if not self.bank.changes(self.slot, "text_encoder"):
            return self._texts.encode(prompts)
        with self.bank.routed([self.adapters], trainable=trainable):
            return self.base.encode_prompts(prompts)

    def begin_step(self) -> None:
        """Forget the gradients of the step before."""
        self.bank.gradient(self.slot).zero_()

    def end_step(self) -> None:
        """Samples of steps that are done are of no more use."""
        done = [key for key in self._prepared if key[0] < self.step_index]
        for key in done:
            del self._prepared[key]

    def state_dict(self) -> dict[str, Any]:
        """As `TrainJob.state_dict()`: either kind of job goes on from the other's state."""
        state = self.learner_state()
        names = list(self.bank.unpacked(self.slot, self._flat))
        state["parameters"] = self._split(self._flat)
        state["optimizer"] = self._split_optimizer(state["optimizer"], len(names))
        if state["ema"] is not None:
            shadow = state["ema"]["shadow_params"][0]
            state["ema"] = {
                **state["ema"],
                "shadow_params": list(self._split(shadow).values()),
            }
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()` of a job with the same spec, packed or not.

        Raises:
            ResumeError: the state is of another version or of other parameters.
        """
        shapes = {name: tuple(v.shape) for name, v in self._split(self._flat).items()}
        self.check_state(state, shapes)
        joined = {**state, "optimizer": self._join_optimizer(state["optimizer"], list(shapes))}
        if self.ema is not None:
            shadow = dict(zip(shapes, state["ema"]["shadow_params"], strict=True))
            joined["ema"] = {**state["ema"], "shadow_params": [self.bank.packed(shadow)]}
        with torch.no_grad():
            self._flat.copy_(self.bank.packed(state["parameters"]))
        self.load_learner_state(joined)
        self._prepared.clear()
        self.bank.touched()

    def export(self, folder: str | Path) -> list[Path]:
        """Write the adapter (a LoRA: `pytorch_lora_weights.safetensors`), with `use_ema` of the
        averaged weights.
        """
        return self.shape.save(folder, self.base, self.final_state())

    def final_state(self) -> SlotState:
        """The adapter as it would be exported."""
        with self._averaged():
            return self.bank.export(self.slot)

    @contextlib.contextmanager
    def final_weights(self) -> Iterator[Base]:
        """The base with this adapter as it would be exported, for sampling."""
        with self._averaged(), self.bank.routed([self.adapters]):
            yield self.base

    @contextlib.contextmanager
    def bare_base(self) -> Iterator[Base]:
        """The base without any adapter, to compare with."""
        yield self.base

    def release(self) -> None:
        """Give the slot back; the job is over."""
        self.bank.release(self.slot)
        self._prepared.clear()

    def move(self, bank: AdapterBank) -> Callable[[], None]:
        """Go on in another bank, in a slot of the same number, bit for bit.

        Returns:
            Takes the job back to where it was, for as long as the old bank is whole. A move that
            fails leaves it there by itself.
        """
        before, state = dict(vars(self)), self.state_dict()

        def back() -> None:
            vars(self).update(before)

        try:
            self.bank = bank
            self._attach(bank, self.slot)
            self.load_state_dict(state)
        except Exception:
            back()
            raise
        return back

    def _attach(self, bank: AdapterBank, slot: int | None = None) -> None:
        self.slot = bank.claim(slot)
        try:
            bank.assign(self.slot, self.shape.fresh(self.base, self.config.train.seed))
            parameter = bank.parameter(self.slot)  # [P]
            parameter.grad = bank.gradient(self.slot)
            super().__init__(self.config.train, [parameter], self.spec.subject_id, self.base.dtype)
        except Exception:
            bank.release(self.slot)
            raise

    @property
    def _flat(self) -> Tensor:
        return self.parameters[0].detach()

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        """EMA weights, where kept, in the slot for the time of the block."""
        if self.ema is not None:
            self.ema.store(self.parameters)
            self.ema.copy_to(self.parameters)
            self.bank.touched()
        try:
            yield
        finally:
            if self.ema is not None:
                self.ema.restore(self.parameters)
                self.bank.touched()

    def _split(self, flat: Tensor) -> dict[str, Tensor]:
        views = self.bank.unpacked(self.slot, flat)
        return {name: view.cpu().contiguous().clone() for name, view in views.items()}

    def _split_optimizer(self, state: Mapping[str, Any], count: int) -> dict[str, Any]:
        (group,) = state["param_groups"]
        entries: dict[int, dict[str, Any]] = {}
        for moments in state["state"].values():
            parts = {name: self._split(moments[name]) for name in ("exp_avg", "exp_avg_sq")}
            columns = zip(parts["exp_avg"].values(), parts["exp_avg_sq"].values(), strict=True)
            for index, (mean, square) in enumerate(columns):
                entries[index] = {
                    "step": moments["step"].clone(),
                    "exp_avg": mean,
                    "exp_avg_sq": square,
                }
        return {"state": entries, "param_groups": [{**group, "params": list(range(count))}]}

    def _join_optimizer(self, state: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
        (group,) = state["param_groups"]
        entries: Mapping[int, Mapping[str, Tensor]] = state["state"]
        joined: dict[int, dict[str, Tensor]] = {}
        if entries:
            joined[0] = {"step": next(iter(entries.values()))["step"].clone()}
            for moment in ("exp_avg", "exp_avg_sq"):
                tensors = {names[index]: entry[moment] for index, entry in entries.items()}
                joined[0][moment] = self.bank.packed(tensors)
        return {"state": cpu_copy(joined), "param_groups": [{**group, "params": [0]}]}


AnyJob = TrainJob | PackedJob


def _checked(spec: TrainJobSpec) -> RunConfig:
    config = spec.checked()
    if reason := why_alone(config):
        raise ConfigError(f"{reason}, so this job cannot share one with others; use TrainJob")
    if spec.world_size != 1:
        raise ConfigError(
            f"cluster.num_workers = {spec.world_size}: a packed job has one worker; several share "
            "one subject with cluster.parallel: data"
        )
    return config

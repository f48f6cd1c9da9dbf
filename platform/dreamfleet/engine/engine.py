"""One frozen base on one device, and all that is done with it: training jobs and image requests
share its slots and its steps.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dreamfleet.adapters.bank import AdapterBank, Adapters, SlotState
from dreamfleet.adapters.kinds import (
    AdapterShape,
    Shapes,
    read_slot,
    shapes_of,
    sites_of,
    with_room_for,
)
from dreamfleet.bases import Base
from dreamfleet.engine.attention import use_fast_attention
from dreamfleet.engine.memory import keep_freed_memory, rows_that_fit
from dreamfleet.engine.metrics import StepMetrics
from dreamfleet.engine.packed_job import PackedJob, adapter_shape
from dreamfleet.engine.packed_sampling import ImageRequest, OnStep, PackedSampler, Ticket, fail
from dreamfleet.engine.packed_training import PackedTrainer
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.engine.spec import TrainJobSpec
from dreamfleet.engine.teacher import MIB, FrozenTeacher, TeacherCache
from dreamfleet.errors import AdapterFileError, BadInputError
from dreamfleet.methods.dreambooth.text import TextCache

OnTrainStep = Callable[[StepMetrics], None]
SMOOTHING = 0.1  # weight of the newest step in the shown step times
MAX_PASSED = 32  # later requests that may join before one that waits for slots


@dataclass(eq=False)
class _Training:
    job: PackedJob
    on_step: OnTrainStep | None
    target: int = 0
    last: StepMetrics | None = None
    waiting: list[tuple[int, Future[StepMetrics | None]]] = field(default_factory=list)


class Engine:
    """Trains adapters and draws images, packed. One thread calls its methods; `step` does a piece
    of work.

    Args:
        base: freshly loaded; it stays frozen and is this engine's alone.
    """

    def __init__(self, base: Base, settings: EngineSettings | None = None) -> None:
        self.base, self.settings = base, settings or EngineSettings()
        use_fast_attention(base, frozen=True)
        if base.device.type == "cpu":  # 3 % of one job's step: oneDNN takes the pixels as they lie
            base.unet.to(memory_format=torch.channels_last)
        keep_freed_memory()
        self.max_rows = self.settings.max_rows or rows_that_fit(base)
        self._texts = TextCache(base)
        self._shapes: Shapes = {}
        self._bank: AdapterBank | None = None
        cache = TeacherCache(
            self.settings.teacher_cache_mib * MIB,
            self.settings.teacher_cache_folder,
            self.settings.teacher_cache_disk_mib * MIB,
        )
        self.teacher = FrozenTeacher(base, self._texts, cache, self.max_rows)
        self._sampler = PackedSampler(base, None, self._texts, self.max_rows)
        self._trainer: PackedTrainer | None = None
        self._training_rows = self.max_rows  # fewer once memory has run out
        self._jobs: dict[str, _Training] = {}
        self._host: OrderedDict[str, SlotState] = OrderedDict()
        self._resident: OrderedDict[str, int] = OrderedDict()
        self._users: Counter[str] = Counter()
        self._queue: deque[Ticket] = deque()
        self._spent = {"training": 0.0, "sampling": 0.0}
        self._figures = _Figures()
        self.sharing = 0  # jobs of the newest training step

    # Training

    def add_job(
        self,
        job_id: str,
        spec: TrainJobSpec,
        *,
        state: Mapping[str, Any] | None = None,
        on_step: OnTrainStep | None = None,
    ) -> PackedJob:
        """Give a job a slot; `run_until` makes it train. A job that is here already is returned.

        Args:
            state: `state_dict()` to go on from.
            on_step: called after each of its steps; if it raises, the job ends.

        Raises:
            ConfigError: settings that cannot be trained in a slot, naming the key.
            CapacityError: no slot is free, now.
        """
        if job_id in self._jobs:
            return self._jobs[job_id].job
        spec.checked()
        bank = self._room_for(adapter_shape(spec))
        self._free_a_slot(bank)
        job = PackedJob(spec, self.base, bank, self._texts)
        if state is not None:
            try:
                job.load_state_dict(state)
            except Exception:
                job.release()
                raise
        self._jobs[job_id] = _Training(job, on_step)
        return job

    def run_until(self, job_id: str, step: int) -> Future[StepMetrics | None]:
        """Let a job train until `step` steps are done; the future gets that step's figures.

        Asking again, or for a step that is past, does no harm.

        Raises:
            BadInputError: there is no such job here.
        """
        training = self._training(job_id)
        reached: Future[StepMetrics | None] = Future()
        if training.job.step_index >= step:
            reached.set_result(training.last)
            return reached
        training.target = max(training.target, step)
        training.waiting.append((step, reached))
        return reached

    def job(self, job_id: str) -> PackedJob:
        """A job by its id, between steps (state, export, final weights).

        Raises:
            BadInputError: there is no such job here.
        """
        return self._training(job_id).job

    def has_job(self, job_id: str) -> bool:
        """Whether a job is here (it may have ended, failed, or never been added)."""
        return job_id in self._jobs

    def release(self, job_id: str) -> None:
        """End a job and free its slot; who waits for it gets a cancelled future. Unknown ids are
        none.
        """
        training = self._jobs.pop(job_id, None)
        if training is not None:
            training.job.release()
            for _, reached in training.waiting:
                reached.cancel()
            self._drop_empty_bank()

    # Sampling

    def add_adapter(self, name: str, source: SlotState | str | Path) -> None:
        """Keep an adapter (or the file or folder of one) in host memory under a name.

        Raises:
            AdapterFileError: it is damaged or not for this base.
        """
        state = source if isinstance(source, SlotState) else read_slot(self.base, source)
        self._check_holds(name, state)
        self._host[name] = state
        self._host.move_to_end(name)
        if name in self._resident and self._bank is not None:
            self._bank.assign(self._resident[name], state)
        for old in [own for own in self._host if not self._users[own] and own != name]:
            if len(self._host) <= self.settings.max_host_adapters:
                break
            self.remove_adapter(old)

    def remove_adapter(self, name: str) -> None:
        """Forget an adapter; images that are being drawn with it keep it until they are done."""
        self._host.pop(name, None)
        if not self._users[name]:
            self._evict(name)
            self._drop_empty_bank()

    def submit(self, request: ImageRequest, on_step: OnStep | None = None) -> Ticket:
        """Ask for a picture; it joins the others as soon as there is room.

        Raises:
            BadInputError: a wrong request, or an adapter that is not here.
        """
        request.checked(self.base)
        names = {name for name, _ in request.adapters}
        if len(names) > self.settings.max_slots:
            raise BadInputError(
                f"a request with {len(names)} adapters: this engine holds "
                f"{self.settings.max_slots} at once; ask for fewer or raise max_slots"
            )
        for name, _ in request.adapters:
            if name not in self._host:
                raise BadInputError(
                    f"adapter {name!r}: not loaded in this engine; add it first "
                    f"(here: {', '.join(sorted(self._host)) or 'none'})"
                )
        ticket = Ticket(request, on_step)
        for name, _ in request.adapters:
            self._users[name] += 1
            self._host.move_to_end(name)
        self._queue.append(ticket)
        return ticket

    def preview(self, ticket: Ticket) -> Image.Image:
        """A picture of what there is of a request under way, noise included; between steps, or from
        its `on_step`.
        """
        return self._sampler.preview(ticket)

    # Work

    def step(self) -> bool:
        """Do one training step or one denoising step, in fair turns; False if there is nothing."""
        self._admit()
        active = [own for own in self._jobs.values() if own.job.step_index < own.target]
        drawing = bool(len(self._sampler))
        if not active and not drawing:
            return False
        started = time.perf_counter()
        kind = self._turn(bool(active), drawing)
        if kind == "training":
            self._train(active)
        else:
            self._draw()
        took = time.perf_counter() - started
        share = self.settings.training_share
        self._spent[kind] += took / max(share if kind == "training" else 1 - share, 1e-3)
        self._figures.note(kind, took)
        return True

    def metrics(self) -> dict[str, float]:
        """Slots, queue, step times in seconds and rates, for a dashboard."""
        cache = self.teacher.cache
        return {
            "slots": float(self._bank.used if self._bank else 0),
            "max_slots": float(self.settings.max_slots),
            "max_rows": float(self._trainer.max_rows if self._trainer else self._training_rows),
            "jobs": float(len(self._jobs)),
            "queue": float(len(self._queue)),
            "drawing": float(len(self._sampler)),
            "host_adapters": float(len(self._host)),
            "teacher_cache_bytes": float(cache.bytes),
            "teacher_cache_hits": float(cache.hits),
            "teacher_cache_misses": float(cache.misses),
            **self._figures.values(),
        }

    def abort(self, error: Exception) -> None:
        """Fail all jobs and requests: something broke that belongs to none of them."""
        for job_id in list(self._jobs):
            self._end(job_id, error)
        for ticket in self._queue:
            fail(ticket, error)
        for ticket in [*self._queue, *self._sampler.abort(error)]:
            self._done(ticket)
        self._queue.clear()

    def close(self) -> None:
        """End everything; the base is bare and free for others."""
        for job_id in list(self._jobs):
            self.release(job_id)
        for ticket in self._queue:
            ticket.image.cancel()
        self._queue.clear()
        self._sampler.abort(RuntimeError("the engine is closed"))
        if self._bank is not None:
            self._bank.close()

    def _turn(self, training: bool, drawing: bool) -> str:
        """Who had less of the time that is its due; who had nothing to do saves nothing up."""
        if training and drawing:
            return "training" if self._spent["training"] <= self._spent["sampling"] else "sampling"
        kind, other = ("training", "sampling") if training else ("sampling", "training")
        self._spent[other] = max(self._spent[other], self._spent[kind])
        return kind

    def _train(self, active: list[_Training]) -> None:
        assert self._trainer is not None
        outcomes = self._trainer.step([own.job for own in active])
        self.sharing = len(active)
        self._figures.shared(len(active), sum(own.job.rows_per_step for own in active))
        by_job = {own.job: job_id for job_id, own in self._jobs.items()}
        for job, outcome in outcomes.items():
            training = self._jobs[by_job[job]]
            error = outcome if isinstance(outcome, Exception) else None
            if isinstance(outcome, StepMetrics):
                training.last = outcome
                error = _told(training)
            if error is not None:
                self._end(by_job[job], error)

    def _end(self, job_id: str, error: Exception) -> None:
        """A job that failed leaves."""
        training = self._jobs.pop(job_id)
        training.job.release()
        for _, reached in training.waiting:
            if reached.set_running_or_notify_cancel():
                reached.set_exception(error)
        self._drop_empty_bank()

    def _draw(self) -> None:
        for ticket in self._sampler.step():
            self._done(ticket)

    def _done(self, ticket: Ticket) -> None:
        for name, _ in ticket.request.adapters:
            self._users[name] -= 1
            if not self._users[name] and name not in self._host:
                self._evict(name)
                self._drop_empty_bank()
        self._figures.images += not ticket.image.cancelled() and ticket.image.exception() is None

    def _admit(self) -> None:
        """Let requests join for which there are rows and slots; the others wait their turn.

        The first that lacks slots gets those that come free: later ones join with adapters that are
        there, and not for ever.
        """
        waiting: deque[Ticket] = deque()
        first: Ticket | None = None  # of those that lack slots
        room = max(self.max_rows // 2, 1)
        while self._queue:
            ticket = self._queue.popleft()
            if ticket.cancelled:
                ticket.image.cancel()
                self._done(ticket)
                continue
            try:
                adapters = self._placed(ticket, first) if len(self._sampler) < room else None
            except Exception as error:
                fail(ticket, error)
                self._done(ticket)
                continue
            if adapters is None:
                waiting.append(ticket)
                if first is None and self._waits_for_pictures(ticket):
                    first = ticket
            elif not self._sampler.add(ticket, adapters):
                self._done(ticket)
        self._queue = waiting

    def _placed(self, ticket: Ticket, first: Ticket | None) -> Adapters | None:
        """Slots of a request's adapters, put there if need be; None if there is no room now, also
        for all of them: half of them would only drive others out.

        Args:
            first: an earlier request that waits for slots.
        """
        names = _names(ticket)
        missing = [name for name in names if name not in self._resident]
        for name in missing:
            if name not in self._host:
                raise BadInputError(
                    f"adapter {name!r}: it was removed while a request for it waited; add it again"
                )
        if len(missing) > self._slots_to_be_had(names):
            return None
        if names and first is not None:
            if missing or first.passed >= MAX_PASSED:
                return None
            first.passed += 1
        for name in names:
            self._place(name, keep=names)
        return tuple((self._resident[name], strength) for name, strength in ticket.request.adapters)

    def _waits_for_pictures(self, ticket: Ticket) -> bool:
        """Whether a request's slots come free when pictures are done, without a job's end."""
        return 0 < len(_names(ticket)) <= self.settings.max_slots - len(self._jobs)

    def _place(self, name: str, keep: Collection[str]) -> None:
        if name in self._resident:
            self._resident.move_to_end(name)
            return
        bank = self._room_for(*shapes_of(self._host[name]))
        self._free_a_slot(bank, keep)
        slot = bank.claim()
        try:
            bank.assign(slot, self._host[name])
        except Exception:
            bank.release(slot)
            raise
        self._resident[name] = slot

    def _slots_to_be_had(self, keep: Collection[str]) -> int:
        """Slots that are free, or would be without idle adapters."""
        used = self._bank.used if self._bank is not None else 0
        return self.settings.max_slots - used + len(self._idle(keep))

    def _free_a_slot(self, bank: AdapterBank, keep: Collection[str] = ()) -> None:
        """Send the adapter that was idle longest off the device, if no slot is free."""
        if bank.used == bank.max_slots and (idle := self._idle(keep)):
            self._evict(idle[0])

    def _idle(self, keep: Collection[str]) -> list[str]:
        """Adapters on the device that nothing is drawn with, but for `keep`; those that were not
        used longest come first.
        """
        drawing = {slot for slot, _ in self._sampler.adapters()}
        return [
            name
            for name, slot in self._resident.items()
            if slot not in drawing and name not in keep
        ]

    def _evict(self, name: str) -> None:
        slot = self._resident.pop(name, None)
        if slot is not None and self._bank is not None:
            self._bank.release(slot)

    def _room_for(self, *shapes: AdapterShape) -> AdapterBank:
        """The bank, made wider (larger rank, more layers, another kind) if an adapter does not
        fit.
        """
        wanted = with_room_for(self._shapes, *shapes)
        if self._bank is not None and wanted == self._shapes:
            return self._bank
        old, sites = self._bank, sites_of(self.base, wanted)
        bank = AdapterBank(sites, self.settings.max_slots, self.base.device)
        with contextlib.ExitStack() as undo:  # all move, or none
            undo.callback(bank.close)
            for training in self._jobs.values():
                undo.callback(training.job.move(bank))
            for name, slot in self._resident.items():
                bank.claim(slot)
                assert old is not None
                bank.assign(slot, self._host.get(name) or old.export(slot))
            undo.pop_all()
        if old is not None:
            old.close()
        self._bank, self._shapes = bank, wanted
        self._sampler.bank = bank
        rows = self._trainer.max_rows if self._trainer else self._training_rows
        self._trainer = PackedTrainer(self.base, bank, self.teacher, rows)
        return bank

    def _drop_empty_bank(self) -> None:
        """Memory of slots that nobody uses goes back; the next adapter gets a bank of its size."""
        if self._bank is None or self._bank.used:
            return
        if self._trainer is not None:
            self._training_rows = self._trainer.max_rows
        self._bank.close()
        self._bank, self._trainer, self._shapes = None, None, {}
        self._sampler.bank = None

    def _check_holds(self, name: str, state: SlotState) -> None:
        """Refuse an adapter before anybody asks for a picture with it."""
        bank = self._room_for(*shapes_of(state))
        for part, tensor in state.tensors.items():
            if not bank.has_part(part, tensor.shape):
                raise AdapterFileError(
                    f"adapter {name!r}: {part} of shape {tuple(tensor.shape)} has no place in this "
                    "engine; expected a LoRA of linear and convolution layers, or changes of "
                    f"cross-attention weights and token rows, of base model {self.base.name}"
                )

    def _training(self, job_id: str) -> _Training:
        if job_id not in self._jobs:
            raise BadInputError(
                f"training job {job_id!r}: not in this engine (it ended, failed or was never "
                f"added; here: {', '.join(sorted(self._jobs)) or 'none'})"
            )
        return self._jobs[job_id]


def _names(ticket: Ticket) -> list[str]:
    """A request's adapters, each once."""
    return list(dict.fromkeys(name for name, _ in ticket.request.adapters))


def _told(training: _Training) -> Exception | None:
    """Pass a step's figures on; what the listener raises ends its job."""
    assert training.last is not None
    try:
        if training.on_step is not None:
            training.on_step(training.last)
    except Exception as error:
        return error
    step, still = training.job.step_index, []
    for wanted, reached in training.waiting:
        if step < wanted:
            still.append((wanted, reached))
        elif reached.set_running_or_notify_cancel():
            reached.set_result(training.last)
    training.waiting = still
    return None


@dataclass
class _Figures:
    """What an engine has done, for `Engine.metrics`."""

    images: int = 0
    steps: int = 0
    job_steps: int = 0
    rows: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"training": 0.0, "sampling": 0.0})
    first: float = 0.0  # when the first step began, when the last one ended
    last: float = 0.0
    recent: dict[str, float] = field(default_factory=dict)

    def note(self, kind: str, took: float) -> None:
        self.seconds[kind] += took
        self.last = time.perf_counter()
        self.first = self.first or self.last - took
        before = self.recent.get(kind, took)
        self.recent[kind] = before + SMOOTHING * (took - before)

    def shared(self, jobs: int, rows: int) -> None:
        self.steps, self.job_steps, self.rows = (
            self.steps + 1,
            self.job_steps + jobs,
            self.rows + rows,
        )

    def values(self) -> dict[str, float]:
        training = self.seconds["training"]
        return {
            "images_total": float(self.images),
            "training_steps_total": float(self.steps),
            "training_total_s": training,
            "sampling_total_s": self.seconds["sampling"],
            "first_to_last_step_s": self.last - self.first,
            "jobs_per_step": self.job_steps / self.steps if self.steps else 0.0,
            "samples_per_s": self.rows / training if training else 0.0,
            "training_step_s": self.recent.get("training", 0.0),
            "sampling_step_s": self.recent.get("sampling", 0.0),
        }

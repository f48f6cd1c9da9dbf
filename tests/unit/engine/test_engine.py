"""Training and drawing side by side, slots that come and go, and the thread around it."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreamfleet.adapters.bank import AdapterBank, SlotState
from dreamfleet.adapters.lora_slots import LoraShape, fresh_lora, read_lora_slot
from dreamfleet.bases import load_base
from dreamfleet.engine import engine as engine_module
from dreamfleet.engine.engine import Engine
from dreamfleet.engine.loop import EngineLoop
from dreamfleet.engine.metrics import StepMetrics
from dreamfleet.engine.packed_job import PackedJob
from dreamfleet.engine.packed_sampling import ImageRequest
from dreamfleet.engine.settings import EngineSettings
from dreamfleet.errors import AdapterFileError, BadInputError, CapacityError
from tests.tiny_jobs import tiny_job, tiny_spec

pytestmark = pytest.mark.heavy

REQUEST = ImageRequest("a photo of sks dog", 7, num_inference_steps=3, guidance_scale=2.0)


@pytest.fixture
def engine(tiny_base_folder: Path) -> Iterator[Engine]:
    engine = Engine(load_base(tiny_base_folder), EngineSettings(max_slots=2))
    yield engine
    engine.close()


def adapter(engine: Engine, seed: int, rank: int = 4) -> SlotState:
    fresh = fresh_lora(engine.base, LoraShape(rank, 2.0, "attention"), seed)
    generator = torch.Generator().manual_seed(seed)
    tensors = {k: torch.randn(v.shape, generator=generator) for k, v in fresh.tensors.items()}
    return SlotState(tensors, fresh.scales)


def work(engine: Engine) -> int:
    steps = 0
    while engine.step():
        steps += 1
    return steps


def same(one: Image.Image, two: Image.Image) -> bool:
    """Equal up to the last bit of a colour, which rounding decides."""
    pixels = (np.asarray(picture).astype(int) for picture in (one, two))
    return bool(np.abs(next(pixels) - next(pixels)).max() <= 1)


def test_jobs_and_images_share_the_engine(engine: Engine, tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, train__adam_epsilon=1e-4)
    alone = tiny_job(tiny_base_folder, train__adam_epsilon=1e-4)
    expected = [alone.step().loss for _ in range(4)]
    losses: list[float] = []
    engine.add_job("ada", spec, on_step=lambda metrics: losses.append(metrics.loss))
    engine.add_adapter("bo", adapter(engine, 1))
    quiet = engine.submit(replace(REQUEST, adapters=(("bo", 1.0),)))
    work(engine)
    assert not losses, "a job waits until it is told how far"
    reached = engine.run_until("ada", 3)
    tickets = [engine.submit(replace(REQUEST, adapters=(("bo", 1.0),))), engine.submit(REQUEST)]
    work(engine)
    third = reached.result(timeout=0)
    assert third is not None and third.step == 3
    assert engine.run_until("ada", 2).result(timeout=0) is third
    engine.run_until("ada", 4)
    work(engine)
    assert losses == pytest.approx(expected, rel=1e-4)
    pictures = [ticket.image.result(timeout=0) for ticket in (quiet, *tickets)]
    assert same(pictures[0], pictures[1]) and not same(pictures[1], pictures[2])
    figures = engine.metrics()
    assert figures["slots"] == 2 and figures["jobs"] == 1 and figures["images_total"] == 3
    assert figures["training_steps_total"] == 4 and figures["samples_per_s"] > 0
    engine.release("ada")
    engine.release("ada")
    assert engine.metrics()["slots"] == 1
    with pytest.raises(BadInputError, match="'ada': not in this engine"):
        engine.run_until("ada", 9)


def test_slots_are_given_to_who_needs_them(engine: Engine, tiny_base_folder: Path) -> None:
    """Two slots, three adapters and a job: idle adapters make room, a full engine says so."""
    for seed, name in enumerate(("a", "b", "c")):
        engine.add_adapter(name, adapter(engine, seed))
    requests = [replace(REQUEST, adapters=((name, 1.0),)) for name in ("a", "b", "c", "a")]
    tickets = [engine.submit(request) for request in requests]
    engine.step()
    assert engine.metrics()["queue"] == 1, "c waits for a slot; a is there already"
    work(engine)
    pictures = [ticket.image.result(timeout=0) for ticket in tickets]
    assert same(pictures[0], pictures[3])
    assert not any(same(pictures[0], other) for other in pictures[1:3])
    engine.add_job("ada", tiny_spec(tiny_base_folder))
    engine.add_job("bo", tiny_spec(tiny_base_folder))
    with pytest.raises(CapacityError):
        engine.add_job("cleo", tiny_spec(tiny_base_folder))
    waiting = engine.submit(requests[0])
    work(engine)
    assert not waiting.image.done()
    engine.release("bo")
    work(engine)
    assert same(waiting.image.result(timeout=0), pictures[0])


def asked(*names: str, steps: int = 3) -> ImageRequest:
    return replace(
        REQUEST, adapters=tuple((name, 0.5) for name in names), num_inference_steps=steps
    )


def test_a_request_for_several_adapters_gets_the_slots_that_come_free(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside a stream of requests that need one slot each."""
    moves: list[int] = []
    assign = AdapterBank.assign

    def counted(self: AdapterBank, slot: int, state: SlotState) -> None:
        moves.append(slot)
        assign(self, slot, state)

    for seed, name in enumerate(("a", "c", "d", "e")):
        engine.add_adapter(name, adapter(engine, seed))
    monkeypatch.setattr(AdapterBank, "assign", counted)
    engine.submit(asked("a", steps=6))
    engine.step()
    both, others = engine.submit(asked("c", "d")), []
    while not both.image.done():
        others.append(engine.submit(asked("e")))
        engine.step()
        assert len(others) < 12, "it waits for a's picture only"
    work(engine)
    assert len({ticket.image.result(timeout=0).tobytes() for ticket in others}) == 1
    assert len(moves) == 4, "a, c, d and e are each brought to the device once"
    again = engine.submit(asked("c", "d"))
    work(engine)
    assert same(both.image.result(timeout=0), again.image.result(timeout=0))


def test_adapters_in_demand_let_others_in(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_module, "MAX_PASSED", 6)
    for seed, name in enumerate(("a", "b", "c")):
        engine.add_adapter(name, adapter(engine, seed))
    busy = [engine.submit(asked(name)) for name in ("a", "b")]
    rare = engine.submit(asked("c"))
    while not rare.image.done():
        busy += [engine.submit(asked(name)) for name in ("a", "b")]
        engine.step()
        assert len(busy) < 30
    work(engine)
    assert all(ticket.image.exception(timeout=0) is None for ticket in busy)


def test_who_waits_for_the_end_of_a_job_holds_nobody_up(
    engine: Engine, tiny_base_folder: Path
) -> None:
    for seed, name in enumerate(("a", "c", "d", "e")):
        engine.add_adapter(name, adapter(engine, seed))
    engine.add_job("ada", tiny_spec(tiny_base_folder))
    both, single = engine.submit(asked("c", "d")), engine.submit(asked("e"))
    work(engine)
    assert single.image.done() and not both.image.done()
    engine.release("ada")
    work(engine)
    assert both.image.exception(timeout=0) is None


def test_a_jobs_own_adapter_finds_the_bank_as_it_is(engine: Engine, tiny_base_folder: Path) -> None:
    """A bank for all layers is several times as large as one for attention."""
    job = engine.add_job("ada", tiny_spec(tiny_base_folder, train__lora_layers="attention"))
    bank = engine._bank
    engine.add_adapter("ada", job.final_state())
    assert engine._bank is bank
    engine.add_job("bo", tiny_spec(tiny_base_folder, train__lora_layers="all"))
    assert bank is not None and engine._bank is not None
    assert engine._bank.slot_size > 1.5 * bank.slot_size


def test_a_wider_adapter_changes_nothing_for_the_others(
    engine: Engine, tiny_base_folder: Path
) -> None:
    options: dict[str, Any] = {"train__adam_epsilon": 1e-4, "train__lora_layers": "attention"}
    job = engine.add_job("ada", tiny_spec(tiny_base_folder, **options))
    alone = tiny_job(tiny_base_folder, **options)
    engine.run_until("ada", 2)
    work(engine)
    ticket = engine.submit(REQUEST)
    engine.add_adapter("wide", adapter(engine, 3, rank=8))
    engine.add_adapter("narrow", adapter(engine, 4, rank=2))
    drawn = engine.submit(replace(REQUEST, adapters=(("narrow", 0.5),)))
    engine.run_until("ada", 4)
    work(engine)
    for _ in range(4):
        alone.step()
    theirs = alone.state_dict()["parameters"]
    for name, value in job.state_dict()["parameters"].items():
        assert torch.allclose(value, theirs[name], atol=1e-5), name
    assert not same(ticket.image.result(timeout=0), drawn.image.result(timeout=0))


def test_failures_and_cancellation_stay_with_their_owner(
    engine: Engine, tiny_base_folder: Path
) -> None:
    def broken(metrics: StepMetrics) -> None:
        raise OSError("disk full")

    engine.add_job("ada", tiny_spec(tiny_base_folder))
    engine.add_job("bo", tiny_spec(tiny_base_folder), on_step=broken)
    fine, lost = engine.run_until("ada", 2), engine.run_until("bo", 2)
    gone = engine.submit(REQUEST)
    gone.cancel()
    work(engine)
    assert fine.result(timeout=0) is not None and gone.image.cancelled()
    with pytest.raises(OSError, match="disk full"):
        lost.result(timeout=0)
    assert engine.metrics()["jobs"] == 1 and engine.metrics()["slots"] == 1
    with pytest.raises(BadInputError, match="adapter 'nobody': not loaded"):
        engine.submit(replace(REQUEST, adapters=(("nobody", 1.0),)))


def test_requests_that_cannot_be_placed_fail_alone(
    engine: Engine, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.add_adapter("a", adapter(engine, 0))
    engine.add_adapter("b", adapter(engine, 1))
    reached = engine.run_until(_added(engine, "ada", tiny_base_folder), 1)
    gone = engine.submit(replace(REQUEST, adapters=(("a", 1.0),)))
    engine.remove_adapter("a")
    bank, assign = engine._bank, AdapterBank.assign

    def broken(self: AdapterBank, slot: int, state: SlotState) -> None:
        raise RuntimeError("CUDA error")

    lost = engine.submit(replace(REQUEST, adapters=(("b", 1.0),)))
    monkeypatch.setattr(AdapterBank, "assign", broken)
    work(engine)
    assert reached.done() and reached.exception() is None
    with pytest.raises(BadInputError, match="'a': it was removed while a request"):
        gone.image.result(timeout=0)
    with pytest.raises(RuntimeError, match="CUDA error"):
        lost.image.result(timeout=0)
    engine.release("ada")
    with pytest.raises(RuntimeError, match="CUDA error"):
        engine.add_job("bo", tiny_spec(tiny_base_folder))
    assert bank is not None and bank.used == 0, "no slot is lost"
    monkeypatch.setattr(AdapterBank, "assign", assign)
    cancelled = engine.submit(replace(REQUEST, adapters=(("b", 1.0),)))
    cancelled.image.cancel()
    engine.step()
    assert engine._users["b"] == 1, "it is drawn, and counted, until it is dropped"
    cancelled.cancel()
    work(engine)
    assert engine._users["b"] == 0
    many = tuple((name, 1.0) for name in ("a", "b", "c"))
    engine.add_adapter("a", adapter(engine, 0))
    engine.add_adapter("c", adapter(engine, 0))
    with pytest.raises(BadInputError, match="3 adapters: this engine holds 2"):
        engine.submit(replace(REQUEST, adapters=many))


def _added(engine: Engine, job_id: str, folder: Path) -> str:
    engine.add_job(job_id, tiny_spec(folder))
    return job_id


def test_a_bank_that_cannot_be_made_wider_leaves_all_where_they_are(
    engine: Engine, tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [engine.add_job(name, tiny_spec(tiny_base_folder)) for name in ("ada", "bo")]
    before, load = engine._bank, PackedJob.load_state_dict

    def full(self: PackedJob, state: Any) -> None:
        if self is jobs[1]:
            raise torch.OutOfMemoryError("CUDA out of memory")
        load(self, state)

    monkeypatch.setattr(PackedJob, "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        engine.add_adapter("wide", adapter(engine, 3, rank=8))
    assert engine._bank is before and all(job.bank is before for job in jobs)
    reached = [engine.run_until(name, 2) for name in ("ada", "bo")]
    work(engine)
    first, second = (own.result(timeout=0) for own in reached)
    assert first is not None and second is not None
    assert first.loss == pytest.approx(second.loss), "both learn, from the same samples"


def test_a_replaced_banks_memory_goes_back_at_once(engine: Engine, tiny_base_folder: Path) -> None:
    engine.add_adapter("narrow", adapter(engine, 3))
    engine.add_job("ada", tiny_spec(tiny_base_folder, train__lora_layers="attention"))
    engine.submit(asked("narrow"))
    engine.run_until("ada", 2)
    work(engine)
    assert engine._bank is not None
    bank = weakref.ref(engine._bank)
    gc.collect()
    gc.disable()
    try:
        engine.add_adapter("wide", adapter(engine, 4, rank=8))
        assert bank() is None, "two banks' memory at once may be too much"
    finally:
        gc.enable()


def test_memory_of_slots_that_nobody_uses_goes_back(engine: Engine, tiny_base_folder: Path) -> None:
    hooks = sum(len(module._forward_hooks) for module in engine.base.unet.modules())
    engine.add_adapter("wide", adapter(engine, 3, rank=8))
    engine.add_job("ada", tiny_spec(tiny_base_folder))
    before = [
        engine.submit(replace(REQUEST, adapters=adapters)) for adapters in ((("wide", 1.0),), ())
    ]
    engine.run_until("ada", 2)
    work(engine)
    assert engine._bank is not None
    bank, wide = weakref.ref(engine._bank), engine._bank.slot_size
    engine.release("ada")
    assert engine._bank is not None, "an adapter that may be asked for again stays"
    engine.remove_adapter("wide")
    gc.collect()
    assert bank() is None and engine.metrics()["slots"] == 0
    assert sum(len(module._forward_hooks) for module in engine.base.unet.modules()) == hooks
    bare = engine.submit(REQUEST)
    work(engine)
    assert same(bare.image.result(timeout=0), before[1].image.result(timeout=0))
    engine.add_job("bo", tiny_spec(tiny_base_folder, train__lora_layers="attention"))
    reached = engine.run_until("bo", 1)
    work(engine)
    assert reached.result(timeout=0) is not None
    assert engine._bank is not None and engine._bank.slot_size < wide


def test_a_later_engine_finds_the_teachers_answers_on_disk(
    tiny_base_folder: Path, tiny_v_base_folder: Path, tmp_path: Path
) -> None:
    bounds = EngineSettings(
        max_slots=2, teacher_cache_folder=str(tmp_path), teacher_cache_disk_mib=1
    )

    def asked(folder: Path, **options: Any) -> tuple[float, float, float]:
        """The teacher's forwards, and how often an answer was and was not there."""
        engine = Engine(load_base(folder), bounds)
        engine.add_job("ada", tiny_spec(folder, sude__weight=0.4, **options))
        reached = engine.run_until("ada", 8)
        work(engine)
        engine.close()
        metrics = reached.result(timeout=0)
        assert metrics is not None
        figures = engine.metrics()
        return (
            metrics.loss,
            engine.teacher.forwards,
            figures["teacher_cache_misses"],
        )

    first = asked(tiny_base_folder)
    assert first[1] > 0
    assert asked(tiny_base_folder) == (first[0], 0, 0), "the second run asks nobody"
    assert asked(tiny_base_folder, sude__truncation_point=None)[1] == 0, "nor does another loss"
    assert asked(tiny_base_folder, train__seed=9)[1] == first[1], "other samples"
    assert asked(tiny_v_base_folder)[1] == first[1], "another base"
    files = [path for path in tmp_path.glob("*/*") if path.is_file()]
    assert len(files) > 16 and sum(path.stat().st_size for path in files) <= 2**20


def test_layers_that_others_train_are_drawn_with(engine: Engine, tiny_base_folder: Path) -> None:
    """Adding B A to the layers' weights gives the same picture."""
    merged = Engine(load_base(tiny_base_folder))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in (
        "unet.down_blocks.0.resnets.0.time_emb_proj",
        "unet.conv_in",
        _layer(engine, "layers.0.mlp.fc1"),
    ):
        component, _, name = layer.partition(".")
        weight = getattr(merged.base, component).get_parameter(f"{name}.weight")
        down = torch.randn(2, *weight.shape[1:], generator=generator)
        tail = (1, 1) if weight.dim() == 4 else ()
        up = torch.randn(len(weight), 2, *tail, generator=generator)
        tensors[f"{layer}.lora_A.subject.weight"] = down
        tensors[f"{layer}.lora_B.subject.weight"] = up
        with torch.no_grad():
            weight += (up.flatten(1) @ down.flatten(1)).view(weight.shape)
    bare = engine.submit(REQUEST)
    engine.add_adapter("foreign", SlotState(tensors))
    own = engine.submit(replace(REQUEST, adapters=(("foreign", 1.0),)))
    expected = merged.submit(REQUEST)
    work(engine)
    work(merged)
    merged.close()
    pictures = [ticket.image.result(timeout=0) for ticket in (own, expected, bare)]
    assert same(pictures[0], pictures[1]) and not same(pictures[0], pictures[2])
    norm = _layer(engine, "layer_norm1")
    wrong = SlotState({f"{norm}.lora_A.subject.weight": torch.zeros(2, 4)})
    with pytest.raises(AdapterFileError, match=r"'norm': .*has no place in this engine"):
        engine.add_adapter("norm", wrong)
    with pytest.raises(BadInputError, match="'norm': not loaded"):
        engine.submit(replace(REQUEST, adapters=(("norm", 1.0),)))


def _layer(engine: Engine, end: str) -> str:
    names = [name for name, _ in engine.base.text_encoder.named_modules()]
    return "text_encoder." + next(name for name in names if name.endswith(end))


def test_closing_ends_what_is_drawn(tiny_base_folder: Path) -> None:
    engine = Engine(load_base(tiny_base_folder))
    ticket = engine.submit(REQUEST)
    engine.step()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        ticket.image.result(timeout=0)


def test_turns_are_fair(engine: Engine, tiny_base_folder: Path) -> None:
    engine.add_job("ada", tiny_spec(tiny_base_folder))
    engine.run_until("ada", 10)
    work(engine)  # time that was spent while nobody else wanted it is not held against training
    kinds: list[str] = []
    engine._figures.note = lambda kind, took: kinds.append(kind)  # type: ignore[method-assign]
    engine.run_until("ada", 20)
    for seed in range(2):
        engine.submit(replace(REQUEST, seed=seed, num_inference_steps=40))
    for _ in range(12):
        engine.step()
    assert {"training", "sampling"} == set(kinds[:6])


def test_exports_are_read_back_with_their_alpha(
    engine: Engine, tiny_base_folder: Path, tmp_path: Path
) -> None:
    job = engine.add_job("ada", tiny_spec(tiny_base_folder, train__lora_alpha=7.0))
    engine.run_until("ada", 2)
    work(engine)
    job.export(tmp_path)
    state, back = job.final_state(), read_lora_slot(engine.base, tmp_path)
    assert back.scales == state.scales and set(state.scales.values()) == {7 / 4}
    assert all(torch.equal(back.tensors[name], value) for name, value in state.tensors.items())
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"no")
    with pytest.raises(AdapterFileError):
        engine.add_adapter("ada", tmp_path)


def test_host_adapters_are_bounded(tiny_base_folder: Path) -> None:
    engine = Engine(load_base(tiny_base_folder), EngineSettings(max_host_adapters=2))
    for seed, name in enumerate(("a", "b", "c")):
        engine.add_adapter(name, adapter(engine, seed))
    assert engine.metrics()["host_adapters"] == 2
    with pytest.raises(BadInputError, match="here: b, c"):
        engine.submit(replace(REQUEST, adapters=(("a", 1.0),)))
    engine.submit(asked("b"))
    work(engine)
    engine.add_adapter("d", adapter(engine, 3))
    with pytest.raises(BadInputError, match="here: b, d"):  # c was not used for longest
        engine.submit(asked("c"))
    engine.close()


def test_the_loop_works_by_itself(tiny_base_folder: Path) -> None:
    loop = EngineLoop(lambda: Engine(load_base(tiny_base_folder)))
    loop.call(lambda engine: engine.add_job("ada", tiny_spec(tiny_base_folder))).result(60)
    reached = loop.call(lambda engine: engine.run_until("ada", 2)).result(60)
    ticket = loop.call(lambda engine: engine.submit(REQUEST)).result(60)
    metrics = reached.result(60)
    assert metrics is not None and metrics.step == 2
    assert ticket.image.result(60).size == (64, 64)
    with pytest.raises(BadInputError):
        loop.call(lambda engine: engine.job("bo")).result(60)
    loop.call(lambda engine: setattr(engine, "_turn", None)).result(60)
    lost_ticket = loop.call(lambda engine: engine.submit(REQUEST)).result(60)
    with pytest.raises(TypeError, match="not callable"):
        lost_ticket.image.result(60)
    assert loop.call(lambda engine: engine.metrics()["jobs"]).result(60) == 0
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call(lambda engine: None).result(60)

    def no_base() -> Engine:
        raise OSError("no such base")

    lost = EngineLoop(no_base)
    time.sleep(0.05)
    with pytest.raises(OSError, match="no such base"):
        lost.call(lambda engine: None).result(60)
    left = threading.Event()

    def slow() -> Engine:
        left.wait(60)
        raise OSError("no such base")

    lost.close()
    lost = EngineLoop(slow)
    lost.call(lambda engine: None).cancel()
    last = lost.call(lambda engine: None)
    lost._commands.put(None)
    late = lost.call(lambda engine: None)  # behind the end, as by a thread beside `close`
    left.set()
    with pytest.raises(OSError, match="no such base"):
        last.result(60)
    for refused in (late, lost.call(lambda engine: None)):
        with pytest.raises(RuntimeError, match="closed"):
            refused.result(60)
    lost.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_ends_by_itself_lets_nobody_wait() -> None:
    class Broken:
        def step(self) -> bool:
            raise RuntimeError("out of order")

        def abort(self, error: Exception) -> None:
            raise SystemExit

    begun = threading.Event()

    def build() -> Any:
        begun.wait(60)
        return Broken()

    loop = EngineLoop(build)
    first = loop.call(lambda engine: None)
    begun.set()
    first.result(60)
    loop._thread.join(60)
    with pytest.raises(RuntimeError, match="closed"):
        loop.call(lambda engine: None).result(60)
    assert "ended" in loop.trouble()

"""Packed pictures equal diffusers' own, whatever shares their batch."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from torch import Tensor

from dreamfleet.adapters.bank import AdapterBank, SlotState
from dreamfleet.adapters.files import save_lora
from dreamfleet.adapters.lora_slots import (
    LoraShape,
    fresh_lora,
    lora_shape_metadata,
    lora_sites,
    lora_to_file,
)
from dreamfleet.bases import Base, load_base
from dreamfleet.diffusion.linear_steps import linear_steps
from dreamfleet.engine.packed_sampling import ImageRequest, PackedSampler, Ticket
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.methods.dreambooth import text
from dreamfleet.methods.dreambooth.text import TextCache

pytestmark = pytest.mark.heavy

SCHEDULERS: dict[str, Any] = {
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
    "dpm": DPMSolverMultistepScheduler,
}
SHAPES = [LoraShape(4, 2.0, "all", True), LoraShape(2, 2.0, "attention")]
REQUESTS = [
    ImageRequest("a photo of sks dog", 7, "a cat", 5, 4.0, "ddim", adapters=(("0", 1.0),)),
    ImageRequest("a cat", 2**63 + 5, "", 3, 2.0, "euler", adapters=(("1", 0.6),)),
    ImageRequest("sks dog", 3, "the cat", 6, 3.0, "dpm", adapters=(("0", 1.0),)),
    ImageRequest("a dog", 4, "", 2, 1.0, "euler"),
    ImageRequest("a cat", 9, "", 4, 3.0, "dpm"),
]
SMALL = ImageRequest("a cat", 11, "", 4, 3.0, "ddim", height=32, width=64)


def slot_states(base: Base) -> list[SlotState]:
    states = []
    for seed, shape in enumerate(SHAPES):
        fresh = fresh_lora(base, shape, seed)
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: 0.2 * torch.randn(value.shape, generator=generator)
            for name, value in fresh.tensors.items()
        }
        states.append(SlotState(tensors, fresh.scales))
    return states


@pytest.fixture(scope="module", params=["epsilon", "velocity"])
def folder(request: Any, tiny_base_folder: Path, tiny_v_base_folder: Path) -> Path:
    return tiny_base_folder if request.param == "epsilon" else tiny_v_base_folder


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(folder)


@pytest.fixture
def sampler(base: Base) -> Iterator[PackedSampler]:
    bank = AdapterBank(lora_sites(base, LoraShape(4, 4.0, "all", True)), 2, "cpu")
    for state in slot_states(base):
        bank.assign(bank.claim(), state)
    yield PackedSampler(base, bank, TextCache(base))
    bank.close()


def joined(sampler: PackedSampler, request: ImageRequest, **options: Any) -> Ticket:
    ticket = Ticket(request, **options)
    sampler.add(ticket, tuple((int(name), strength) for name, strength in request.adapters))
    return ticket


def drawn(sampler: PackedSampler, requests: list[ImageRequest], gap: int = 0) -> list[Tensor]:
    """Final latents; `gap` steps pass before the next request joins."""
    captured: dict[int, Tensor] = {}
    decode = sampler.base.decode_latents

    def watch(latents: Tensor) -> Tensor:
        captured.update({float(x.double().sum()): x.clone() for x in latents})  # type: ignore[misc]
        return decode(latents)

    sampler.base.decode_latents = watch  # type: ignore[method-assign]
    finals: list[Tensor] = []
    tickets = []
    try:
        for request in requests:
            tickets.append(joined(sampler, request))
            drawings = {id(d.ticket): d for d in sampler._drawings}
            finals.append(drawings[id(tickets[-1])])  # type: ignore[arg-type]
            for _ in range(gap):
                sampler.step()
        while len(sampler):
            sampler.step()
    finally:
        del sampler.base.decode_latents
    assert all(ticket.image.result(timeout=0).mode == "RGB" for ticket in tickets)
    return [drawing.x for drawing in finals]  # type: ignore[attr-defined]


def diffusers_latents(folder: Path, request: ImageRequest, base: Base, tmp_path: Path) -> Tensor:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    config = {**pipeline.scheduler.config, "clip_sample": False}
    pipeline.scheduler = SCHEDULERS[request.scheduler].from_config(config)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {}
    for name, strength in request.adapters:
        shape, state = SHAPES[int(name)], slot_states(base)[int(name)]
        save_lora(tmp_path, base, lora_to_file(state), lora_shape_metadata(base, shape))
        pipeline.load_lora_weights(tmp_path, adapter_name="own")
        pipeline.set_adapters("own", strength)
    output = pipeline(
        request.prompt,
        negative_prompt=request.negative_prompt,
        num_inference_steps=request.num_inference_steps,
        guidance_scale=request.guidance_scale,
        height=request.height,
        width=request.width,
        generator=torch.Generator("cpu").manual_seed(request.seed),
        output_type="latent",
        **options,
    )
    latents: Tensor = output.images[0]
    return latents


def assert_same(one: Tensor, two: Tensor) -> None:
    assert float((one - two).abs().max()) <= 1e-4 * max(1.0, float(two.abs().max()))


def test_packed_alone_and_diffusers_agree(
    folder: Path, base: Base, sampler: PackedSampler, tmp_path: Path
) -> None:
    together = drawn(sampler, [*REQUESTS, SMALL])
    staggered = drawn(sampler, [*REQUESTS, SMALL], gap=1)
    sampler.max_rows = 3
    in_turns = drawn(sampler, [*REQUESTS, SMALL])
    for index, request in enumerate([*REQUESTS, SMALL]):
        expected = diffusers_latents(folder, request, base, tmp_path / str(index))
        for own in (together, staggered, in_turns):
            assert own[index].shape == expected.shape
            assert_same(own[index], expected)


@pytest.mark.parametrize("name", list(SCHEDULERS))
@pytest.mark.parametrize("count", [1, 2, 25])
def test_linear_steps_are_diffusers_steps(base: Base, name: str, count: int) -> None:
    steps = linear_steps(base.scheduler_config, name, count)
    scheduler = SCHEDULERS[name].from_config({**base.scheduler_config, "clip_sample": False})
    scheduler.set_timesteps(count)
    assert len(steps) == len(scheduler.timesteps)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 4, 4, 4, generator=generator) * scheduler.init_noise_sigma
    mine, kept = x.clone(), torch.zeros_like(x)
    from dreamfleet.diffusion.linear_steps import advance

    for index, t in enumerate(scheduler.timesteps):
        assert float(t) == pytest.approx(float(steps.timesteps[index]))
        seen = scheduler.scale_model_input(x, t)
        assert torch.allclose(seen, x * steps.input_scale[index], rtol=1e-5, atol=1e-6)
        output = torch.randn(x.shape, generator=generator)
        x = scheduler.step(output, t, x, return_dict=False)[0]
        mine, kept = advance(steps.coefficients[index : index + 1], mine, output, kept)
        assert_same(mine, x)


def test_cancelled_and_failing_requests_leave_the_others(sampler: PackedSampler) -> None:
    (expected,) = drawn(sampler, [REQUESTS[0]])
    calls: list[tuple[int, int]] = []
    good = joined(sampler, REQUESTS[0], on_step=lambda done, total: calls.append((done, total)))
    gone = joined(sampler, REQUESTS[1])

    def broken(done: int, total: int) -> None:
        raise OSError("the listener is gone")

    deaf = joined(sampler, REQUESTS[2], on_step=broken)
    wrong = joined(sampler, ImageRequest("a", 1, num_inference_steps=0))
    with pytest.raises(BadInputError, match="num_inference_steps = 0"):
        wrong.image.result(timeout=0)
    sampler.step()
    with pytest.raises(OSError, match="listener"):
        deaf.image.result(timeout=0)
    gone.cancel()
    assert gone in sampler.step() and gone.image.cancelled()
    drawing = sampler._drawings[0]
    while len(sampler):
        sampler.step()
    assert_same(drawing.x, expected)
    assert good.image.done() and calls == [(done, 5) for done in range(1, 6)]


def test_a_broken_pass_is_freed_before_its_requests_are_drawn_alone(
    sampler: PackedSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict, held = sampler.base.predict, list[Any]()

    def small_memory(x: Tensor, *others: Any) -> Tensor:
        assert not any(own() is not None for own in held)
        if len(x) > 2:
            activations = torch.zeros(4)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(x, *others)

    tickets = [joined(sampler, request) for request in (REQUESTS[0], REQUESTS[2])]
    monkeypatch.setattr(sampler.base, "predict", small_memory)
    while len(sampler):
        sampler.step()
    assert held and all(ticket.image.result(timeout=0) for ticket in tickets)


def test_requests_that_cannot_begin_do_not_join(sampler: PackedSampler) -> None:
    ticket, gone = (Ticket(REQUESTS[3]) for _ in range(2))
    gone.image.cancel()
    assert sampler.add(ticket) and sampler.add(gone)
    assert not sampler.add(Ticket(ImageRequest("a", 1, num_inference_steps=0)))
    assert len(sampler) == 2


def test_embeddings_are_kept_for_the_newest_prompts_only(
    base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode, asked = base.encode_prompts, list[str]()

    def counted(prompts: list[str]) -> Any:
        asked.extend(prompts)
        return encode(prompts)

    monkeypatch.setattr(base, "encode_prompts", counted)
    monkeypatch.setattr(text, "MAX_PROMPTS", 2)
    texts = TextCache(base)
    assert len(texts.encode(["a cat", "a dog", "a cat", "dog", "a cat"])) == 5
    assert asked == ["a cat", "a dog", "dog"]
    texts.encode(["a dog"])
    assert asked[3:] == ["a dog"]


def test_a_nan_adapter_spoils_its_own_picture_only(base: Base, sampler: PackedSampler) -> None:
    alone = drawn(sampler, [REQUESTS[1], REQUESTS[3]])
    bank = sampler.bank
    assert bank is not None
    state = bank.export(0)
    bank.assign(0, SlotState({k: v * float("nan") for k, v in state.tensors.items()}))
    spoilt, *rest = drawn(sampler, [REQUESTS[0], REQUESTS[1], REQUESTS[3]])
    assert torch.isnan(spoilt).any()
    for one, two in zip(rest, alone, strict=True):
        assert_same(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": -1}, "seed = -1"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"height": 13}, "height = 13: expected a multiple"),
        ({"adapters": (("0", float("inf")),)}, "finite strengths"),
    ],
)
def test_bad_requests_are_refused(base: Base, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        ImageRequest(**{"prompt": "a dog", "seed": 1, **changes}).checked(base)


def test_schedulers_that_are_not_linear_are_refused(base: Base) -> None:
    with pytest.raises(ConfigError, match="thresholding"):
        linear_steps({**base.scheduler_config, "thresholding": True}, "ddim", 3)
    with pytest.raises(ConfigError, match="heun"):
        linear_steps(base.scheduler_config, "heun", 3)

"""Slots: many adapters at once equal each alone, in values, gradients and files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamfleet.adapters.bank import AdapterBank, SlotState
from dreamfleet.adapters.cross_attention_slots import (
    TOKEN_ROWS,
    cross_attention_sites,
    fresh_cross_attention,
)
from dreamfleet.adapters.lora import (
    adapter_strength,
    add_lora,
    lora_metadata,
    lora_parameters,
    lora_state,
)
from dreamfleet.adapters.lora_slots import (
    LoraShape,
    fresh_lora,
    lora_from_file,
    lora_shape_metadata,
    lora_sites,
    lora_to_file,
    shape_of,
)
from dreamfleet.bases import Base, load_base
from dreamfleet.errors import AdapterFileError, CapacityError, ConfigError
from tests.tiny_adapters import set_lora_state

WIDE = LoraShape(8, 8.0, "all", train_text_encoder=True)
SHAPES = [LoraShape(4, 2.0, "all"), LoraShape(8, 8.0, "attention"), LoraShape(2, 6.0, "all", True)]
PROMPTS = ["a photo of sks dog", "a cat"]


def moved(state: SlotState, seed: int) -> SlotState:
    """Random numbers in place of the initial ones (whose second factor is zero)."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        name: torch.randn(value.shape, generator=generator) * 0.2
        for name, value in state.tensors.items()
    }
    return SlotState(tensors, state.scales, state.notes)


def states(base: Base) -> list[SlotState]:
    return [moved(fresh_lora(base, shape, 0), seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture(scope="module", params=["contiguous_format", "channels_last"])
def base(tiny_base_folder: Path, request: pytest.FixtureRequest) -> Base:
    """In both layouts of memory: on CPUs the engine takes the second."""
    base = load_base(tiny_base_folder)
    base.unet.to(memory_format=getattr(torch, request.param))  # type: ignore[call-overload]
    return base


@pytest.fixture
def bank(base: Base) -> Iterator[AdapterBank]:
    bank = AdapterBank(lora_sites(base, WIDE), 4, "cpu")
    for state in states(base):
        bank.assign(bank.claim(), state)
    yield bank
    bank.close()


def inputs(rows: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(rows, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    return x, torch.arange(rows) * 90 + 10


def packed(base: Base, bank: AdapterBank, rows: list[Any]) -> Tensor:
    x, t = inputs(len(rows))
    texts = []
    for index, row in enumerate(rows):
        with bank.routed([row]):
            texts.append(base.encode_prompts([PROMPTS[index % 2]]))
    with bank.routed(rows), torch.no_grad():
        return base.predict(x, t, type(texts[0]).cat(texts))


def with_peft(folder: Path, shape: LoraShape, state: SlotState, rows: int) -> Tensor:
    """The same rows through PEFT's own layers."""
    base = peft_base(folder, shape, state)
    x, t = inputs(rows)
    with torch.no_grad():
        return base.predict(x, t, base.encode_prompts([PROMPTS[i % 2] for i in range(rows)]))


def peft_base(folder: Path, shape: LoraShape, state: SlotState) -> Base:
    base = load_base(folder)
    add_lora(
        base,
        rank=shape.rank,
        alpha=shape.alpha,
        layers=shape.layers,
        train_text_encoder=shape.train_text_encoder,
    )
    set_lora_state(base, lora_to_file(state))
    return base


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 0, 1, 1], [2, 0, 0, 1, 2], [1, 1]])
def test_mixed_rows_equal_peft_alone(
    tiny_base_folder: Path, base: Base, bank: AdapterBank, order: list[int]
) -> None:
    together = packed(base, bank, [((slot, 1.0),) for slot in order])
    for slot, state in enumerate(states(base)):
        alone = with_peft(tiny_base_folder, SHAPES[slot], state, len(order))
        for row in (row for row, own in enumerate(order) if own == slot):
            assert torch.allclose(together[row], alone[row], atol=2e-5)


def test_bare_rows_and_strengths(tiny_base_folder: Path, base: Base, bank: AdapterBank) -> None:
    rows: list[Any] = [(), ((0, 0.5),), ((0, 0.0),), ((0, 1.0), (1, 0.7))]
    together = packed(base, bank, rows)
    x, t = inputs(4)
    with torch.no_grad():
        bare = base.predict(x, t, base.encode_prompts([PROMPTS[i % 2] for i in range(4)]))
    assert torch.allclose(together[0], bare[0], atol=1e-6)
    assert torch.allclose(together[2], bare[2], atol=1e-6)
    one = peft_base(tiny_base_folder, SHAPES[0], states(base)[0])
    with adapter_strength(one, 0.5), torch.no_grad():
        half = one.predict(x, t, one.encode_prompts([PROMPTS[i % 2] for i in range(4)]))
    assert torch.allclose(together[1], half[1], atol=2e-5)
    # Two adapters on one row: diffusers' own way of weighing them.
    pipeline = load_base(tiny_base_folder).pipeline()
    for slot, name in enumerate(("first", "second")):
        files = {
            key.removeprefix("unet."): v for key, v in lora_to_file(states(base)[slot]).items()
        }
        metadata = lora_shape_metadata(base, SHAPES[slot])["unet"]
        pipeline.unet.load_lora_adapter(files, adapter_name=name, prefix=None, metadata=metadata)
    pipeline.unet.set_adapters(["first", "second"], [1.0, 0.7])
    with torch.no_grad():
        texts = base.encode_prompts([PROMPTS[i % 2] for i in range(4)]).prompt_embeds
        both = pipeline.unet(x, t, encoder_hidden_states=texts, return_dict=False)[0]
    assert torch.allclose(together[3], both[3], atol=2e-5)


def test_outside_the_block_the_base_is_bare(base: Base, bank: AdapterBank) -> None:
    x, t = inputs(2)
    texts = base.encode_prompts(PROMPTS)
    with torch.no_grad():
        before = base.predict(x, t, texts)
        packed(base, bank, [((0, 1.0),)])
        assert torch.equal(base.predict(x, t, texts), before)
    assert not [name for name, _ in base.unet.named_parameters() if "lora" in name]


@pytest.mark.parametrize("order", [[0, 1, 2], [0, 2], [0, 0, 2], [0, 0, 1, 1]])
def test_gradients_equal_peft_alone(
    tiny_base_folder: Path, base: Base, bank: AdapterBank, order: list[int]
) -> None:
    x, t = inputs(len(order))
    texts = base.encode_prompts([PROMPTS[i % 2] for i in range(len(order))])
    for _ in range(2):  # gradients add up
        with bank.routed([((slot, 1.0),) for slot in order], trainable=True):
            (base.predict(x, t, texts) ** 2).flatten(1).mean(1).sum().backward()
    for slot in set(order):
        rows = [row for row, own in enumerate(order) if own == slot]
        alone = peft_base(tiny_base_folder, SHAPES[slot], states(base)[slot])
        own = alone.predict(x[rows], t[rows], texts.select(rows))
        (2 * (own**2).flatten(1).mean(1).sum()).backward()
        got = bank.unpacked(slot, bank.gradient(slot))
        for name, parameter in lora_parameters(alone):
            if parameter.grad is not None and name.startswith("unet."):
                gap = float((got[name] - parameter.grad).norm())
                assert gap <= 1e-4 * float(parameter.grad.norm()) + 1e-7, name
    unused = set(range(3)) - set(order)
    assert all(not bank.gradient(slot).any() for slot in unused)


def test_a_slot_full_of_nan_touches_no_other(base: Base, bank: AdapterBank) -> None:
    state = bank.export(1)
    rows: list[Any] = [((0, 1.0),), ((1, 1.0),), (), ((2, 1.0),)]
    before = packed(base, bank, rows)
    bank.assign(1, SlotState({k: v * float("nan") for k, v in state.tensors.items()}))
    after = packed(base, bank, rows)
    assert torch.isnan(after[1]).all()
    assert all(torch.equal(before[row], after[row]) for row in (0, 2, 3))
    x, t = inputs(4)
    texts = base.encode_prompts(PROMPTS * 2)
    with bank.routed([((slot, 1.0),) for slot in (0, 1, 2, 2)], trainable=True):
        base.predict(x, t, texts).flatten(1).mean(1).sum().backward()
    assert torch.isnan(bank.gradient(1)).any()
    assert torch.isfinite(bank.gradient(0)).all() and torch.isfinite(bank.gradient(2)).all()


def test_assign_export_release_are_exact(base: Base, bank: AdapterBank) -> None:
    for slot, state in enumerate(states(base)):
        back = bank.export(slot)
        assert back.tensors.keys() == state.tensors.keys() and dict(back.scales) == state.scales
        assert all(torch.equal(back.tensors[name], state.tensors[name]) for name in state.tensors)
    bank.release(1)
    bank.release(1)
    assert bank.used == 2 and bank.claim() == 1
    bank.claim()
    with pytest.raises(CapacityError, match="all 4 adapter slots"):
        bank.claim()


def test_a_fresh_slot_is_what_peft_begins_with(tiny_base_folder: Path, base: Base) -> None:
    for shape in SHAPES:
        own = load_base(tiny_base_folder)
        parameters = add_lora(
            own,
            rank=shape.rank,
            alpha=shape.alpha,
            layers=shape.layers,
            train_text_encoder=shape.train_text_encoder,
            seed=3,
        )
        fresh = fresh_lora(base, shape, 3)
        assert list(fresh.tensors) == [name for name, _ in parameters]
        assert all(torch.equal(fresh.tensors[name], value) for name, value in parameters)
        assert lora_to_file(fresh).keys() == lora_state(own).keys()
        assert lora_shape_metadata(base, shape) == lora_metadata(own)
        back = lora_from_file(base, lora_to_file(fresh), fresh.scales)
        assert back.tensors.keys() == fresh.tensors.keys() and back.scales == fresh.scales


@pytest.mark.parametrize("layers", ["attention", "attention_ff", "all"])
@pytest.mark.parametrize("text", [False, True])
def test_an_adapters_shape_is_no_larger_than_it_needs(base: Base, layers: Any, text: bool) -> None:
    shape = LoraShape(4, 1.0, layers, text)
    state = fresh_lora(base, shape, 0)
    assert shape_of(state) == shape
    more = {f"{name}.lora_A.subject.weight": torch.zeros(4, 1) for name in ("unet.conv_in", "x")}
    wider = shape_of(SlotState({**state.tensors, **more}))
    assert wider == LoraShape(4, 1.0, layers, text, frozenset({"unet.conv_in", "x"}))


def test_what_does_not_fit_is_refused(base: Base, bank: AdapterBank) -> None:
    with pytest.raises(ConfigError, match="larger rank"):
        bank.assign(0, fresh_lora(base, LoraShape(16, 16.0, "attention"), 0))
    with pytest.raises(AdapterFileError, match="no such layer"):
        lora_from_file(base, {"unet.nowhere.lora_A.weight": torch.zeros(1, 1)}, {})


def test_a_batch_of_another_size_than_its_routing_is_refused(base: Base, bank: AdapterBank) -> None:
    x, t = inputs(4)
    texts = base.encode_prompts(PROMPTS * 2)
    with pytest.raises(ValueError, match="4 rows under a routing for 2"):
        with bank.routed([((0, 1.0),), ((1, 1.0),)]):
            base.predict(x, t, texts)


def test_padding_stays_zero_under_training(base: Base, bank: AdapterBank) -> None:
    parameter = bank.parameter(0)
    parameter.grad = bank.gradient(0)
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, fused=True)
    x, t = inputs(2)
    for _ in range(2):
        with bank.routed([((0, 1.0),), ((1, 1.0),)], trainable=True):
            base.predict(x, t, base.encode_prompts(PROMPTS)).square().mean().backward()
        optimizer.step()
        bank.touched()
    padding = bank.packed({k: torch.ones_like(v) for k, v in bank.export(0).tensors.items()}) == 0
    assert padding.any() and not parameter.detach()[padding].any()
    assert not torch.equal(bank.export(0).tensors[bank.sites[0].parts[0].name], torch.zeros(()))


def test_the_second_kind_changes_keys_values_and_token_rows(
    tiny_base_folder: Path, base: Base
) -> None:
    bank = AdapterBank(cross_attention_sites(base, max_tokens=2), 3, "cpu")
    ids = base.tokenizer("sks cat", add_special_tokens=False).input_ids
    kept = []
    for seed, tokens in enumerate(({ids[0]: ids[1]}, {ids[0]: ids[1], ids[1]: ids[0]})):
        start = fresh_cross_attention(base, tokens)
        rows = base.text_encoder.get_input_embeddings().weight[list(tokens.values())]
        assert torch.equal(start.tensors[TOKEN_ROWS], rows)
        kept.append(moved(start, seed))
        bank.assign(bank.claim(), kept[-1])
    together = packed(base, bank, [((0, 1.0),), ((1, 1.0),), (), ((1, 1.0),)])
    x, t = inputs(4)
    for slot, state in enumerate(kept):
        alone = load_base(tiny_base_folder)
        modules = dict(alone.unet.named_modules())
        with torch.no_grad():
            for name, value in state.tensors.items():
                if name != TOKEN_ROWS:
                    layer = name.removeprefix("unet.").removesuffix(".delta")
                    modules[layer].weight += value
            embedding = alone.text_encoder.get_input_embeddings().weight
            embedding[list(state.notes[TOKEN_ROWS])] = state.tensors[TOKEN_ROWS]
            texts = alone.encode_prompts([PROMPTS[i % 2] for i in range(4)])
            expected = alone.predict(x, t, texts)
        for row in ([0], [1, 3])[slot]:
            assert torch.allclose(together[row], expected[row], atol=2e-5)
        back = bank.export(slot)
        assert all(torch.equal(back.tensors[k], v) for k, v in state.tensors.items())
        assert dict(back.notes) == dict(state.notes)
    with bank.routed([((0, 1.0),)], trainable=True):
        texts = base.encode_prompts(PROMPTS)
        base.predict(x[:2], t[:2], texts).square().mean().backward()
    assert bank.unpacked(0, bank.gradient(0))[TOKEN_ROWS].any()
    assert not bank.gradient(1).any()
    bank.close()
    with torch.no_grad():
        assert torch.equal(packed(base, bank, [((0, 1.0),)]), packed(base, bank, [()]))

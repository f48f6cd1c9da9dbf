"""LoRA: what is targeted, how it starts, what it does to the base."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dreamfleet.adapters.lora import (
    adapter_disabled,
    adapter_strength,
    add_lora,
    has_lora,
    lora_state,
    remove_lora,
    target_modules,
)
from dreamfleet.adapters.lora_slots import LoraShape, lora_sites
from dreamfleet.bases import Base, load_base
from dreamfleet.errors import BadInputError, ConfigError
from tests.tiny_adapters import set_lora_state


def output(base: Base) -> Tensor:
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        return base.predict(x, torch.tensor([10, 600]), base.encode_prompts(["a sks dog", "a cat"]))


def perturb(base: Base) -> None:
    generator = torch.Generator().manual_seed(9)
    state = lora_state(base)
    set_lora_state(
        base,
        {key: torch.randn(value.shape, generator=generator) * 0.2 for key, value in state.items()},
    )


def test_a_fresh_adapter_changes_nothing_and_follows_its_seed(tiny_base_folder: Path) -> None:
    states: list[dict[str, torch.Tensor]] = []
    for seed, layers in ((1, "attention"), (1, "all"), (2, "attention")):
        base = load_base(tiny_base_folder)
        torch.manual_seed(len(states))  # global state plays no part
        parameters = add_lora(base, rank=4, alpha=2.0, layers=layers, seed=seed)  # type: ignore[arg-type]
        assert all(
            parameter.requires_grad and parameter.dtype == torch.float32
            for _, parameter in parameters
        )
        assert torch.equal(output(base), output(load_base(tiny_base_folder)))
        states.append(dict(parameters))
    first, wide, other = states
    assert set(first) < set(wide)
    assert all(torch.equal(first[name], wide[name]) for name in first), (
        "a tensor's draw depends on its own name only"
    )
    assert any(not torch.equal(first[name], other[name]) for name in first)
    down = torch.cat([p.detach().flatten() for name, p in wide.items() if "lora_A" in name])
    assert float(down.std()) == pytest.approx(1 / 4, rel=0.05)


def test_layers_grow_with_the_setting(tiny_base_folder: Path) -> None:
    counts = []
    for layers in ("attention", "attention_ff", "all"):
        base = load_base(tiny_base_folder)
        names = [name for name, _ in add_lora(base, rank=2, alpha=2, layers=layers)]  # type: ignore[arg-type]
        counts.append(len(names))
        assert any("resnets.0.conv1" in name for name in names) == (layers == "all")
        assert any("ff.net.2" in name for name in names) == (layers != "attention")
    assert counts == sorted(set(counts))
    with pytest.raises(ConfigError, match="flux"):
        target_modules("flux", "all")


def test_off_half_on_and_removed(tiny_base_folder: Path) -> None:
    bare = output(load_base(tiny_base_folder))
    base = load_base(tiny_base_folder)
    add_lora(base, rank=4, alpha=4, layers="all", train_text_encoder=True)
    perturb(base)
    adapted = output(base)
    assert not torch.allclose(adapted, bare)
    with adapter_disabled(base):
        assert torch.equal(output(base), bare)
    with pytest.raises(KeyError), adapter_disabled(base):
        raise KeyError
    assert torch.equal(output(base), adapted), "switched on again after an error"
    with adapter_strength(base, 0.0):
        torch.testing.assert_close(output(base), bare)
    for strength in (float("nan"), float("-inf")):
        with pytest.raises(BadInputError, match="finite"), adapter_strength(base, strength):
            output(base)
    with adapter_strength(base, 0.5):
        half = output(base)
    assert not torch.allclose(half, bare) and not torch.allclose(half, adapted)
    assert torch.equal(output(base), adapted)
    assert all(p.requires_grad for name, p in base.unet.named_parameters() if "lora_" in name)
    remove_lora(base)
    assert not has_lora(base) and torch.equal(output(base), bare)
    fresh = load_base(tiny_base_folder)
    for module, other in ((base.unet, fresh.unet), (base.text_encoder, fresh.text_encoder)):
        assert list(module.state_dict()) == list(other.state_dict()), "no wrapper stays"
    shape = LoraShape(4, 4.0, "all", train_text_encoder=True)
    assert [s.name for s in lora_sites(base, shape)] == [s.name for s in lora_sites(fresh, shape)]


def test_a_base_without_adapter_is_left_alone(tiny_base_folder: Path) -> None:
    base = load_base(tiny_base_folder)
    bare = output(base)
    with adapter_disabled(base), adapter_strength(base, 1.0):
        assert torch.equal(output(base), bare)

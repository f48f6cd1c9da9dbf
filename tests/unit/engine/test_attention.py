"""The quicker attention is the same attention."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from dreamfleet.bases import load_base
from dreamfleet.engine import attention
from dreamfleet.engine.attention import PlainAttention, use_fast_attention


@pytest.mark.parametrize("frozen", [False, True])
def test_plain_attention_equals_torchs_own(tiny_base_folder: Path, frozen: bool) -> None:
    base, fast = load_base(tiny_base_folder), load_base(tiny_base_folder)
    use_fast_attention(fast, frozen=frozen)
    weights = zip(base.unet.parameters(), fast.unet.parameters(), strict=True)
    assert all(torch.equal(one, two) for one, two in weights)
    for own in (base, fast):  # what acts at a layer's output, acts
        for name, layer in own.unet.named_modules():
            if name.endswith(("attn1.to_q", "attn2.to_v")):
                layer.register_forward_hook(lambda layer, args, output: output + args[0].mean())
    kinds = {type(processor) for processor in fast.unet.attn_processors.values()}
    assert kinds == {PlainAttention}
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    x.requires_grad_()
    texts, t = base.encode_prompts(["a dog", "a cat"]), torch.tensor([5, 700])
    gradients = []
    for own in (base, fast):
        output = own.predict(x, t, texts)
        gradients.append((output, *torch.autograd.grad(output.square().sum(), x)))
    for one, two in zip(*gradients, strict=True):
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(p, PlainAttention) for p in base.unet.attn_processors.values())
    if frozen:  # a layer that somebody puts in is asked
        other = torch.nn.Linear(32, 32, bias=False)
        for own in (base, fast):
            own.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q = other
        one, two = (own.predict(x, t, texts) for own in (base, fast))
        assert torch.allclose(one, two, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(one, gradients[0][0], atol=1e-3)


def test_scores_of_large_pictures_are_never_held_whole(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The base's size says which attention it gets, a request may ask for another size."""
    base, fast = load_base(tiny_base_folder), load_base(tiny_base_folder)
    use_fast_attention(fast, frozen=True)
    monkeypatch.setattr(attention, "MAX_POSITIONS", 64)
    texts, t = base.encode_prompts(["a dog"]), torch.tensor([5])
    fused, seen = F.scaled_dot_product_attention, []

    def spy(query: Any, key: Any, value: Any, **options: Any) -> Any:
        seen.append((query.dim(), query.shape[-2] * key.shape[-2]))
        return fused(query, key, value, **options)

    for side, calls in ((16, 0), (48, 1)):  # of latents; half of it where attention is
        x = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(1))
        expected = base.predict(x, t, texts)
        with monkeypatch.context() as patched:
            patched.setattr(F, "scaled_dot_product_attention", spy)
            output = fast.predict(x, t, texts)
        assert torch.allclose(output, expected, rtol=1e-4, atol=1e-5)
        assert bool(seen) == bool(calls)
    large = (side // 2) ** 2
    assert set(seen) == {(4, large**2), (4, large * texts.prompt_embeds.shape[1])}, "self and cross"

"""The quicker attention is the same attention."""

from __future__ import annotations

from pathlib import Path

import torch

from dreamfleet.bases import load_base
from dreamfleet.engine.attention import PlainAttention, use_fast_attention


def test_plain_attention_equals_torchs_own(tiny_base_folder: Path) -> None:
    base, fast = load_base(tiny_base_folder), load_base(tiny_base_folder)
    use_fast_attention(fast)
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

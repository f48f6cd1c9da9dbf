"""Mixed precision, gradient checkpointing, and the extras that are asked for by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dreamfleet.bases import load_base
from dreamfleet.engine.job import TrainJob
from dreamfleet.errors import ConfigError
from tests.tiny_jobs import tiny_job, tiny_spec

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("mode", ["lora", "full"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_is_the_frozen_base_and_nothing_else(
    family_folder: Path, tmp_path: Path, mode: str, dtype: torch.dtype
) -> None:
    spec = tiny_spec(
        family_folder,
        train__mode=mode,
        train__train_text_encoder=True,
        train__mixed_precision={torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype],
        prior__with_prior_preservation=True,
        sude__weight=0.4,
    )
    job = TrainJob(spec, load_base(family_folder, dtype=dtype))
    assert job.scaler.is_enabled() == (dtype == torch.float16)
    trained = {id(parameter) for parameter in job.parameters}
    components = [job.base.unet, *job.base.text_encoders.values()]
    frozen = [p for module in components for p in module.parameters() if id(p) not in trained]
    assert all(parameter.dtype == dtype for parameter in frozen)
    assert bool(frozen) == (mode == "lora")
    before = [parameter.detach().clone() for parameter in job.parameters]
    metrics = [job.step() for _ in range(2)]
    assert all(0 < figure.loss < 100 for figure in metrics)
    assert all(parameter.dtype == torch.float32 for parameter in job.parameters)
    state = job.optimizer.state_dict()["state"].values()
    assert all(entry[name].dtype == torch.float32 for entry in state for name in ("exp_avg",))
    changed = [not torch.equal(p, old) for p, old in zip(job.parameters, before, strict=True)]
    assert sum(changed) > len(changed) / 2
    whole = TrainJob(spec, load_base(family_folder))
    assert metrics[0].loss == pytest.approx(whole.step().loss, rel=0.05), "the same batch"


def gradients(job: TrainJob) -> list[Tensor]:
    job.method.losses(job.batch(0)).total.backward()
    return [p.grad for p in job.parameters if p.grad is not None]


def _count(job: TrainJob, layer: str) -> list[int]:
    """Grows with every forward pass of a layer of the UNet."""
    passes: list[int] = []
    job.base.unet.get_submodule(layer).register_forward_hook(lambda *ignored: passes.append(1))
    return passes


def _count_text(job: TrainJob) -> list[int]:
    """Grows with every forward pass of the text encoder's first layer."""
    passes: list[int] = []
    names = [name for name, _ in job.base.text_encoder.named_modules()]
    layer = next(name for name in names if name.endswith("layers.0.layer_norm1"))
    job.base.text_encoder.get_submodule(layer).register_forward_hook(
        lambda *ignored: passes.append(1)
    )
    return passes


def test_gradient_checkpointing_gives_the_same_gradient(family_folder: Path) -> None:
    options: dict[str, Any] = {"train__train_text_encoder": True, "sude__weight": 0.4}
    jobs = [
        tiny_job(family_folder, train__gradient_checkpointing=lean, **options)
        for lean in (False, True)
    ]
    counts = [(_count(job, "down_blocks.1.resnets.0.conv1"), _count_text(job)) for job in jobs]
    one, two = (gradients(job) for job in jobs)
    assert [len(unet) for unet, _ in counts] == [2, 3], "teacher and student; once more on the way"
    assert len(counts[1][1]) == len(counts[0][1]) + 1
    assert len(one) == len(two) > 0
    for expected, found in zip(one, two, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_extras_that_are_missing_say_how_to_get_them(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(ConfigError, match="pip install bitsandbytes.*without --use-8bit-adam"):
        tiny_job(tiny_base_folder, train__use_8bit_adam=True)
    with pytest.raises(ConfigError, match="xformers .*leave it out"):
        tiny_job(tiny_base_folder, train__enable_xformers_memory_efficient_attention=True)


def test_8bit_adam_wants_a_gpu(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Optim:
        AdamW8bit = torch.optim.AdamW

    monkeypatch.setitem(sys.modules, "bitsandbytes", Optim)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", Optim)
    with pytest.raises(ConfigError, match="works on GPUs only"):
        tiny_job(tiny_base_folder, train__use_8bit_adam=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_8bit_adam_trains(tiny_base_folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    spec = tiny_spec(tiny_base_folder, train__use_8bit_adam=True)
    job = TrainJob(spec, load_base(tiny_base_folder, device="cuda"))
    before = [parameter.detach().clone() for parameter in job.parameters]
    job.step()
    assert any(not torch.equal(p, old) for p, old in zip(job.parameters, before, strict=True))


@pytest.fixture
def tf32() -> Iterator[Callable[[], tuple[bool, bool]]]:
    """What torch is told of TF32; put back afterwards."""
    places: tuple[Any, Any] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = False
    yield lambda: (places[0].allow_tf32, places[1].allow_tf32)
    for place, value in zip(places, before, strict=True):
        place.allow_tf32 = value


def test_tf32_is_asked_of_torch(
    tiny_base_folder: Path, tf32: Callable[[], tuple[bool, bool]]
) -> None:
    tiny_job(tiny_base_folder)
    assert tf32() == (False, False)
    tiny_job(tiny_base_folder, train__allow_tf32=True)
    assert tf32() == (True, True)

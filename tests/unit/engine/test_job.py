"""One job's optimiser steps."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dreamfleet.adapters.files import load_adapter
from dreamfleet.bases import load_base
from dreamfleet.config import TrainConfig
from dreamfleet.engine.job import LatentSet, TrainJob
from dreamfleet.engine.learner import Learner
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import ConfigError, ResumeError, TrainingError
from tests.golden.make_loss_curve import CURVE_FILE, loss_curve
from tests.tiny_jobs import CLASS_PROMPT, PROMPT, tiny_job, tiny_spec, weights

ALL = {"prior__with_prior_preservation": True, "sude__weight": 0.4}


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)


def difference(one: dict[str, Tensor], two: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Largest relative difference between two ways of training, per tensor."""
    worst = 0.0
    for key in one:
        moved = float((two[key] - start[key]).norm())
        if moved > 1e-6:
            worst = max(worst, float((one[key] - two[key]).norm()) / moved)
    return worst


def saved(job: TrainJob) -> Any:
    """The state after a journey through a file, as the checkpoints do it."""
    buffer = io.BytesIO()
    torch.save(job.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def test_every_learning_rate_schedule_is_one_of_its_own() -> None:
    curves = set()
    kinds = get_args(TrainConfig.model_fields["lr_scheduler"].annotation)
    for kind in kinds:
        train = TrainConfig(
            lr_scheduler=kind, lr_warmup_steps=2, max_train_steps=8, learning_rate=1e-8
        )
        learner = Learner(train, [nn.Parameter(torch.ones(1))], "rex", torch.float32)
        rates = []
        for _ in range(8):
            rates.append(learner.optimizer.param_groups[0]["lr"])
            learner.optimizer.step()
            learner.lr_scheduler.step()
        curves.add(tuple(rates))
    assert len(curves) == len(kinds) > 1


@pytest.mark.parametrize(
    "options",
    [
        {
            **ALL,
            "train__use_ema": True,
            "train__lr_scheduler": "cosine",
            "train__lr_warmup_steps": 2,
        },
        {"train__mode": "full", "train__train_text_encoder": True, "sude__weight": 1.0},
        {"train__train_text_encoder": True, "train__gradient_accumulation_steps": 2},
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(
    tiny_base_folder: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    whole = tiny_job(tiny_base_folder, **options)
    metrics = [whole.step() for _ in range(3)]
    state = saved(whole)
    metrics += [whole.step() for _ in range(3)]
    torch.manual_seed(123)
    resumed = tiny_job(tiny_base_folder, **options)
    resumed.load_state_dict(state)
    assert resumed.step_index == 3
    again = [resumed.step() for _ in range(3)]
    assert [asdict(m) for m in again] == [asdict(m) for m in metrics[3:]]
    assert same(weights(resumed), weights(whole))
    for job, name in ((whole, "a"), (resumed, "b")):
        job.export(tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.safetensors"))
    assert files and all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )


def test_state_of_a_step_is_not_changed_by_later_ones(tiny_base_folder: Path) -> None:
    job = tiny_job(tiny_base_folder, train__use_ema=True)
    job.step()
    state = job.state_dict()
    before = torch.cat(
        [s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()]
    ).clone()
    shadow = state["ema"]["shadow_params"][0].clone()
    job.step()
    after = torch.cat([s["exp_avg"].flatten() for s in state["optimizer"]["state"].values()])
    assert torch.equal(before, after) and torch.equal(shadow, state["ema"]["shadow_params"][0])


def test_same_seed_same_adapter_and_settings_touch_no_draw(tiny_base_folder: Path) -> None:
    jobs = [
        tiny_job(tiny_base_folder, **options) for options in (ALL, ALL, {**ALL, "train__seed": 1})
    ]
    for job in jobs:
        for _ in range(3):
            job.step()
    assert same(weights(jobs[0]), weights(jobs[1]))
    assert not same(weights(jobs[0]), weights(jobs[2]))
    other = tiny_job(
        tiny_base_folder,
        train__learning_rate=3e-4,
        train__rank=2,
        train__max_train_steps=7,
        prior__with_prior_preservation=True,
        prior__weight=0,
        sude__truncation_point=None,
    )
    for step in (0, 5):
        a, b = jobs[0].batch(step), other.batch(step)
        assert torch.equal(a.subject.noise, b.subject.noise) and torch.equal(
            a.subject.t, b.subject.t
        )
        assert (
            a.prior is not None
            and b.prior is not None
            and torch.equal(a.prior.noise, b.prior.noise)
        )


def trained(
    folder: Path, steps: int = 4, **options: Any
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    job = tiny_job(folder, **options)
    start = weights(job)
    for _ in range(steps):
        job.step()
    return start, weights(job)


def test_accumulation_equals_a_bigger_batch(tiny_base_folder: Path) -> None:
    options: dict[str, Any] = {**ALL, "train__adam_epsilon": 1e-4}
    start, one = trained(tiny_base_folder, train__train_batch_size=4, **options)
    _, two = trained(tiny_base_folder, train__gradient_accumulation_steps=4, **options)
    # Another batch size is another order of sums, and how much that rounds is the processor's.
    assert difference(one, two, start) < 5e-4


def test_two_workers_equal_one_with_twice_the_batch(tiny_base_folder: Path) -> None:
    options: dict[str, Any] = {**ALL, "train__adam_epsilon": 1e-4}
    start, one = trained(tiny_base_folder, steps=3, train__train_batch_size=2, **options)
    spec = tiny_spec(tiny_base_folder, **options)
    jobs = [
        TrainJob(replace(spec, rank=r, world_size=2), load_base(tiny_base_folder)) for r in (0, 1)
    ]
    for _ in range(3):
        _lockstep(jobs)
    assert same(weights(jobs[0]), weights(jobs[1]))
    assert difference(weights(jobs[0]), one, start) < 1e-4


def _lockstep(jobs: list[TrainJob]) -> None:
    """One step of all workers: first each one's gradient, then the step with the mean."""
    gradients: list[list[Tensor]] = []
    for job in jobs:
        job._accumulate()
        gradients.append([p.grad.clone() for p in job.parameters if p.grad is not None])
    means = [torch.stack(parts).mean(dim=0) for parts in zip(*gradients, strict=True)]

    def reduce(parameters: Any) -> None:
        for parameter, mean in zip(
            [p for p in parameters if p.grad is not None], means, strict=True
        ):
            parameter.grad.copy_(mean)

    for job in jobs:
        job.spec = replace(job.spec, reduce_gradients=reduce)
        job.step()
        job.spec = replace(job.spec, reduce_gradients=None)


def test_clipping_clips(tiny_base_folder: Path) -> None:
    seen: list[float] = []
    job = tiny_job(tiny_base_folder, train__max_grad_norm=1e-3)
    step = job.optimizer.step

    def watch(*args: Any, **kwargs: Any) -> Any:
        norms = [p.grad.norm() for p in job.parameters if p.grad is not None]
        seen.append(float(torch.stack(norms).norm()))
        return step(*args, **kwargs)

    job.optimizer.step = watch  # type: ignore[method-assign]
    metrics = job.step()
    assert metrics.grad_norm > 1e-2, "the norm before clipping is what is reported"
    assert seen[0] == pytest.approx(1e-3, rel=1e-3)


def test_ema_follows_the_weights_and_is_exported(tiny_base_folder: Path, tmp_path: Path) -> None:
    job = tiny_job(
        tiny_base_folder, train__use_ema=True, train__ema_decay=0.5, train__learning_rate=1e-2
    )
    average = {name: value.clone() for name, value in weights(job).items()}
    for step in range(1, 5):
        job.step()
        decay = min(0.5, step / (9 + step)) if step > 1 else 0.0
        for name, value in weights(job).items():
            average[name] -= (1 - decay) * (average[name] - value)
    now = weights(job)
    with job.final_weights():
        for name, value in weights(job).items():
            torch.testing.assert_close(value, average[name], rtol=1e-4, atol=1e-6)
    assert same(weights(job), now), "training goes on with its own weights"
    job.export(tmp_path)
    fresh = load_base(tiny_base_folder)
    load_adapter(fresh, tmp_path)
    with job.final_weights() as final:
        expected = sample_images(final, [PROMPT], [1], num_inference_steps=3)
    found = sample_images(fresh, [PROMPT], [1], num_inference_steps=3)
    assert np.array_equal(np.asarray(expected[0]), np.asarray(found[0]))


def test_the_adapter_changes_the_picture_and_the_bare_base_does_not(tiny_base_folder: Path) -> None:
    bare = sample_images(load_base(tiny_base_folder), [PROMPT], [1], num_inference_steps=3)[0]
    for mode in ("lora", "full"):
        job = tiny_job(tiny_base_folder, train__mode=mode, train__learning_rate=1e-2)
        for _ in range(3):
            job.step()
        with job.final_weights() as base:
            changed = sample_images(base, [PROMPT], [1], num_inference_steps=3)[0]
        with job.bare_base() as base:
            again = sample_images(base, [PROMPT], [1], num_inference_steps=3)[0]
        assert np.array_equal(np.asarray(again), np.asarray(bare))
        assert not np.array_equal(np.asarray(changed), np.asarray(bare))


def test_only_what_is_trained_changes(tiny_base_folder: Path) -> None:
    fresh = load_base(tiny_base_folder)
    job = tiny_job(tiny_base_folder, **ALL)
    for _ in range(3):
        job.step()
    state = {
        key.replace(".base_layer", ""): value for key, value in job.base.unet.state_dict().items()
    }
    assert all(torch.equal(state[key], value) for key, value in fresh.unet.state_dict().items())
    for name in ("vae", "text_encoder"):
        now = getattr(job.base, name).state_dict()
        assert all(
            torch.equal(now[key], value) for key, value in getattr(fresh, name).state_dict().items()
        )


def test_learning_lowers_the_loss_on_one_photo(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, train__learning_rate=2e-2, train__train_batch_size=4)
    still = LatentSet(torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16), [PROMPT])
    job = TrainJob(replace(spec, subject=still), load_base(tiny_base_folder))
    losses = [job.step().loss for _ in range(25)]
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])


def test_metrics_say_what_was_on(tiny_base_folder: Path) -> None:
    plain = tiny_job(tiny_base_folder).step()
    assert (plain.loss_sude, plain.rho, plain.hinge_share, plain.loss_prior) == (None,) * 4
    assert plain.step == 1 and plain.lr == 1e-3 and plain.loss == pytest.approx(plain.loss_subject)
    full = tiny_job(
        tiny_base_folder, **ALL, sude__truncation_point=50.0, train__train_batch_size=2
    ).step()
    assert full.hinge_share == 1.0 and full.loss_sude is not None and full.loss_prior is not None
    total = full.loss_subject + 0.4 * full.loss_sude + full.loss_prior
    assert full.loss == pytest.approx(total, rel=1e-5)


def test_warm_up_reaches_the_optimiser(tiny_base_folder: Path) -> None:
    job = tiny_job(
        tiny_base_folder, train__lr_scheduler="constant_with_warmup", train__lr_warmup_steps=4
    )
    rates = [job.step().lr for _ in range(6)]
    assert rates == pytest.approx([0, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 1e-3])


def test_a_broken_loss_names_the_step_and_leaves_the_weights(tiny_base_folder: Path) -> None:
    job = tiny_job(tiny_base_folder)
    job.step()
    before = weights(job)
    bad = torch.full((3, 4, 16, 16), math.nan)
    job.spec = replace(job.spec, subject=LatentSet(bad, bad, [PROMPT] * 3))
    job.subject_id = "biscuit"
    with pytest.raises(
        TrainingError, match=r"biscuit: .* step 2: loss nan.*learning_rate \(now 0.001\)"
    ) as caught:
        job.step()
    assert "begin again with that, under --overwrite" in str(caught.value), "no --resume takes it"
    assert same(weights(job), before) and job.step_index == 1


def test_a_lost_worker_gradient_stops_every_worker(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder)

    def spoil(parameters: Any) -> None:
        parameters[0].grad.fill_(math.inf)

    job = TrainJob(replace(spec, world_size=2, reduce_gradients=spoil), load_base(tiny_base_folder))
    with pytest.raises(TrainingError, match="gradient norm"):
        job.step()


def test_foreign_checkpoints_are_refused(tiny_base_folder: Path) -> None:
    state = saved(tiny_job(tiny_base_folder))
    with pytest.raises(ResumeError, match="other parameters"):
        tiny_job(tiny_base_folder, train__rank=2).load_state_dict(state)
    with pytest.raises(ResumeError, match="other parameters"):
        tiny_job(tiny_base_folder, train__lora_layers="attention").load_state_dict(state)
    with pytest.raises(ResumeError, match="moving average"):
        tiny_job(tiny_base_folder, train__use_ema=True).load_state_dict(state)
    with pytest.raises(ResumeError, match="version 0"):
        tiny_job(tiny_base_folder).load_state_dict({**state, "version": 0})


def test_specs_that_cannot_be_trained_are_refused(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, **ALL)
    with pytest.raises(ConfigError, match="no prior set"):
        TrainJob(replace(spec, prior=None), load_base(tiny_base_folder))
    with pytest.raises(ConfigError, match="class prompts"):
        TrainJob(replace(spec, class_prompts=[CLASS_PROMPT]), load_base(tiny_base_folder))
    gap = spec.config.model_copy(
        update={"train": spec.config.train.model_copy(update={"learning_rate": None})}
    )
    with pytest.raises(ConfigError, match="learning_rate is not set"):
        TrainJob(replace(spec, config=gap), load_base(tiny_base_folder))


def test_class_prompts_come_from_the_captions(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder)
    captions = ["sks dog in the snow", "a photo of sks dog", "my sks dog"]
    subject = LatentSet(spec.subject.mean, spec.subject.std, captions)
    job = TrainJob(replace(spec, subject=subject), load_base(tiny_base_folder))
    assert job.class_prompts == ["dog in the snow", "a photo of dog", "my dog"]


@pytest.mark.parametrize("mode", ["lora", "full"])
def test_half_precision_trains_single_precision_parameters(
    tiny_base_folder: Path, mode: str
) -> None:
    spec = tiny_spec(tiny_base_folder, **ALL, train__mode=mode, train__mixed_precision="bf16")
    job = TrainJob(spec, load_base(tiny_base_folder, dtype=torch.bfloat16))
    exact = tiny_job(tiny_base_folder, **ALL, train__mode=mode)
    for _ in range(2):
        rough, fine = job.step(), exact.step()
        assert rough.loss == pytest.approx(fine.loss, rel=0.03)
    assert all(p.dtype == torch.float32 for p in job.parameters)


def test_overflow_in_fp16_repeats_the_step_at_a_smaller_scale(tiny_base_folder: Path) -> None:
    options = {**ALL, "prior__weight": 100}
    job, reference = (tiny_job(tiny_base_folder, **options) for _ in range(2))
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    metrics, expected = job.step(), reference.step()
    assert job.scaler.get_scale() < 2.0**127
    assert metrics.loss == pytest.approx(expected.loss)
    assert metrics.grad_norm == pytest.approx(expected.grad_norm, rel=1e-3)
    assert job.step_index == 1


def test_golden_loss_curve(tiny_base_folder: Path) -> None:
    golden = json.loads(CURVE_FILE.read_text())
    curve = loss_curve(tiny_base_folder)
    for name, values in golden["curves"].items():
        assert curve[name] == pytest.approx(values, rel=1e-3, abs=1e-6), name


def test_parameters_are_a_list(tiny_base_folder: Path) -> None:
    job = tiny_job(tiny_base_folder)
    assert isinstance(job.parameters, list) and all(
        isinstance(p, nn.Parameter) for p in job.parameters
    )

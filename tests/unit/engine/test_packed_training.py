"""Jobs that share a base: each is what it would be alone, whatever happens to its neighbours."""

from __future__ import annotations

import math
import os
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from dreamfleet.bases import load_base
from dreamfleet.engine.batch import LatentSet
from dreamfleet.engine.job import TrainJob, TrainJobSpec
from dreamfleet.engine.memory import rows_that_fit
from dreamfleet.engine.metrics import StepMetrics
from dreamfleet.engine.packed_job import PackedJob
from dreamfleet.engine.packed_training import PackedTrainer
from dreamfleet.engine.teacher import FrozenTeacher, TeacherCache
from dreamfleet.errors import CapacityError, ConfigError, ResumeError, TrainingError
from dreamfleet.methods import Batch
from dreamfleet.methods.dreambooth.text import TextCache
from tests.tiny_jobs import PROMPT, latent_set, packed_job, packed_trainer, tiny_job, tiny_spec

pytestmark = pytest.mark.heavy

# An AdamW epsilon above rounding: else the sign of a zero gradient's rounding error is a full step.
STABLE = {"train__adam_epsilon": 1e-4}
JOBS: list[dict[str, Any]] = [
    {**STABLE, "prior__with_prior_preservation": True, "sude__weight": 0.4},
    {
        **STABLE,
        "train__rank": 2,
        "train__seed": 5,
        "train__learning_rate": 3e-3,
        "train__lr_scheduler": "cosine",
        "train__train_batch_size": 2,
        "train__max_grad_norm": 0.05,
        "train__train_text_encoder": True,
        "train__use_ema": True,
        "sude__weight": 1.0,
        "sude__teacher": "current",
        "sude__truncation_point": None,
    },
    {
        **STABLE,
        "train__lora_layers": "attention",
        "train__gradient_accumulation_steps": 2,
        "train__lora_alpha": 7.0,
        "train__snr_gamma": 5.0,
        "prior__with_prior_preservation": True,
        "prior__form": "teacher",
    },
]


def tensors(job: TrainJob | PackedJob) -> dict[str, Tensor]:
    values: dict[str, Tensor] = job.state_dict()["parameters"]
    return values


def assert_close(
    one: dict[str, Tensor],
    two: dict[str, Tensor],
    start: dict[str, Tensor],
    tolerance: float = 1e-4,
) -> None:
    assert one.keys() == two.keys() == start.keys()
    for name in one:
        moved = float((two[name] - start[name]).norm())
        rounding = 4e-7 * float(start[name].norm()) + 1e-9  # of the stored numbers themselves
        assert float((one[name] - two[name]).norm()) <= tolerance * moved + rounding, name


def stepped(trainer: PackedTrainer, *jobs: PackedJob, steps: int = 1) -> list[StepMetrics]:
    """Steps in which nothing may fail; the last one's figures."""
    outcomes: dict[PackedJob, Any] = {}
    for _ in range(steps):
        outcomes = trainer.step(jobs)
        assert all(isinstance(value, StepMetrics) for value in outcomes.values()), outcomes
    return [outcomes[job] for job in jobs]


def test_packed_equals_alone_after_fifty_steps(tiny_base_folder: Path, tmp_path: Path) -> None:
    trainer = packed_trainer(tiny_base_folder)
    specs = [tiny_spec(tiny_base_folder, train__max_train_steps=50, **own) for own in JOBS]
    packed = [packed_job(trainer, spec) for spec in specs]
    start = [tensors(job) for job in packed]
    figures = stepped(trainer, *packed, steps=50)
    for index, spec in enumerate(specs):
        alone = TrainJob(spec, load_base(tiny_base_folder))
        assert all(torch.equal(start[index][k], v) for k, v in tensors(alone).items())
        for _ in range(50):
            last = alone.step()
        assert_close(tensors(packed[index]), tensors(alone), start[index])
        shown = {name: value for name, value in asdict(last).items() if value is not None}
        for name, value in shown.items():
            assert asdict(figures[index])[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name
        for job, name in ((alone, "alone"), (packed[index], "packed")):
            job.export(tmp_path / name)
        (one, two) = (load_file(*(tmp_path / name).iterdir()) for name in ("alone", "packed"))
        assert one.keys() == two.keys()
        assert all(torch.allclose(one[key], two[key], atol=1e-4) for key in one)


@pytest.mark.parametrize("kind", ["tiny_sdxl_folder", "tiny_v_base_folder"])
def test_packed_equals_alone_on_other_bases(kind: str, request: pytest.FixtureRequest) -> None:
    """Pooled embeddings and sizes; v-prediction that ends at pure noise."""
    folder = request.getfixturevalue(kind)
    trainer = packed_trainer(folder)
    specs = [tiny_spec(folder, **JOBS[index]) for index in (0, 2)]
    packed = [packed_job(trainer, spec) for spec in specs]
    start = [tensors(job) for job in packed]
    stepped(trainer, *packed, steps=2)
    for spec, job, before in zip(specs, packed, start, strict=True):
        alone = TrainJob(spec, load_base(folder))
        for _ in range(2):
            alone.step()
        assert_close(tensors(job), tensors(alone), before, 1e-3)  # few steps, as below


def test_resumed_packed_and_alone_go_on_from_each_others_state(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, **JOBS[1])
    trainer = packed_trainer(tiny_base_folder)
    job, neighbour = packed_job(trainer, spec), packed_job(trainer, tiny_spec(tiny_base_folder))
    start = tensors(job)
    stepped(trainer, job, neighbour, steps=2)
    state = job.state_dict()
    stepped(trainer, job, steps=2)
    resumed = packed_job(trainer, spec)
    resumed.load_state_dict(state)
    stepped(trainer, resumed, steps=2)
    assert all(torch.equal(v, tensors(resumed)[k]) for k, v in tensors(job).items())
    alone = TrainJob(spec, load_base(tiny_base_folder))
    alone.load_state_dict(state)
    alone.step()
    back = packed_job(trainer, spec)
    back.load_state_dict(alone.state_dict())
    stepped(trainer, back, neighbour)
    alone.step()
    for other in (alone, back):
        assert other.step_index == 4
        assert_close(tensors(other), tensors(job), start, 1e-3)  # few steps: rounding weighs more
        one, two = (own.state_dict()["ema"]["shadow_params"] for own in (other, job))
        assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one, two, strict=True))
    with pytest.raises(ResumeError, match="other parameters"):
        back.load_state_dict(neighbour.state_dict())


def test_joining_leaving_and_moving_change_nothing(tiny_base_folder: Path) -> None:
    """Slots with gaps, another bank on the way, samples split over several passes."""
    specs = [tiny_spec(tiny_base_folder, **own) for own in JOBS]
    steady = packed_trainer(tiny_base_folder)
    reference = packed_job(steady, specs[0])
    start = tensors(reference)
    stepped(steady, reference, steps=6)
    trainer = packed_trainer(tiny_base_folder, max_rows=3)
    first, middle, job = (packed_job(trainer, specs[index]) for index in (2, 1, 0))
    stepped(trainer, first, middle, job, steps=2)
    middle.release()
    assert trainer.bank.used == 2
    stepped(trainer, first, job)  # no neighbours in memory
    late = packed_job(trainer, specs[1])
    assert late.slot == 1, "the freed slot is used again"
    stepped(trainer, first, late, job)
    wider = packed_trainer(tiny_base_folder, rank=8)
    job.move(wider.bank)
    wider.base = trainer.base
    own = packed_trainer(tiny_base_folder, rank=8)
    moved = packed_job(own, specs[0])
    moved.load_state_dict(job.state_dict())
    stepped(own, moved, steps=2)
    assert_close(tensors(moved), tensors(reference), start)


def bad_set() -> LatentSet:
    bad = torch.full((3, 4, 16, 16), math.nan)
    return LatentSet(bad, bad, [PROMPT] * 3)


class _Fragile(PackedJob):
    """Fails where it is told to."""

    where = ""

    def batch(self, step: int, micro_step: int = 0) -> Batch:
        if self.where == "batch" and step == 1:
            raise OSError("photo store is gone")
        return super().batch(step, micro_step)

    def encode(self, prompts: tuple[str, ...], *, trainable: bool) -> Any:
        if self.where == "forward" and self.step_index == 1:
            raise RuntimeError("text encoder broke")
        return super().encode(prompts, trainable=trainable)


@pytest.mark.parametrize("where", ["nan", "batch", "forward", "loss"])
def test_one_jobs_failure_ends_that_job_only(
    tiny_base_folder: Path, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = tiny_spec(tiny_base_folder, **JOBS[0])
    quiet = packed_trainer(tiny_base_folder)
    reference = [packed_job(quiet, spec), packed_job(quiet, replace(spec))]
    stepped(quiet, *reference, steps=3)
    trainer = packed_trainer(tiny_base_folder)
    good = packed_job(trainer, spec)
    fragile = replace(spec, subject_id="biscuit")
    bad = _Fragile(fragile, trainer.base, trainer.bank, trainer.teacher.texts)
    good_too = packed_job(trainer, spec)
    bad.where = where
    stepped(trainer, good, bad, good_too)
    before = tensors(bad)
    if where == "nan":
        bad.spec = replace(bad.spec, subject=bad_set())
        bad._prepared.clear()
    elif where == "loss":
        monkeypatch.setattr(bad, "objective", None)
    outcomes = trainer.step([good, bad, good_too])
    assert isinstance(outcomes[bad], Exception)
    if where == "nan":
        assert isinstance(outcomes[bad], TrainingError) and "biscuit" in str(outcomes[bad])
    assert bad.step_index == 1 and all(torch.equal(v, before[k]) for k, v in tensors(bad).items())
    bad.release()
    stepped(trainer, good, good_too)
    for job in (good, good_too):
        assert job.step_index == 3
        assert_close(tensors(job), tensors(reference[0]), before)


def test_equal_questions_are_asked_once_and_ahead(tiny_base_folder: Path) -> None:
    trials = [
        tiny_spec(tiny_base_folder, train__train_batch_size=2, sude__weight=weight)
        for weight in (0.1, 0.4, 1.0)
    ]
    cache = TeacherCache()
    trainer = packed_trainer(tiny_base_folder, cache=cache)
    jobs = [packed_job(trainer, spec) for spec in trials]
    stepped(trainer, *jobs, steps=4)
    assert trainer.teacher.forwards == 1, "16 rows are 4 steps of 2 samples, class and empty"
    stepped(trainer, *jobs)
    assert trainer.teacher.forwards == 2
    one = packed_trainer(tiny_base_folder)
    alone = packed_job(one, trials[1])
    start = tensors(alone)
    stepped(one, alone, steps=5)
    assert_close(tensors(jobs[1]), tensors(alone), start)
    other = packed_job(trainer, tiny_spec(tiny_base_folder, sude__weight=1, train__seed=9))
    stepped(trainer, other)
    assert trainer.teacher.forwards == 3, "another seed has other samples"


def test_the_teacher_cache_is_bounded_and_shared_on_disk(tmp_path: Path) -> None:
    rows = {f"row {index}": torch.full((4, 16, 16), float(index)) for index in range(8)}
    size = 4 * 16 * 16 * 4
    cache = TeacherCache(max_bytes=3 * size, folder=tmp_path, max_disk_bytes=6 * size)
    for key, value in rows.items():
        cache.put(key, value)
    assert cache.bytes == 3 * size
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*")) <= 6.5 * size
    two = [TeacherCache(folder=tmp_path, max_disk_bytes=40 * size) for _ in range(2)]
    for index in range(60):
        two[index % 2].put(f"more {index}", rows["row 0"])
    held = [path.stat().st_size for path in tmp_path.glob("*/*")]
    assert 30 * size < sum(held) <= 1.15 * 40 * size, "two processes hold the bound together"
    TeacherCache(folder=tmp_path).put("row 7", rows["row 7"])
    other = TeacherCache(folder=tmp_path)
    kept = other.get("row 7")
    assert kept is not None and torch.equal(kept, rows["row 7"])
    assert (other.hits, other.misses) == (1, 0)
    for path in tmp_path.glob("*/*"):
        path.write_bytes(b"cut short")
    assert TeacherCache(folder=tmp_path).get("row 7") is None
    assert TeacherCache(max_bytes=10**6).get("row 7") is None
    (tmp_path / "a file").write_text("")
    nowhere = TeacherCache(folder=tmp_path / "a file")
    nowhere.put("row 7", rows["row 7"])
    assert nowhere.folder is None and nowhere.get("row 7") is not None, "kept in memory"


def test_trouble_with_the_teachers_folder_costs_the_cache_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = torch.ones(4, 16, 16)
    full = TeacherCache(folder=tmp_path)
    path = full._path(tmp_path, "row")
    path.with_suffix(f".{os.getpid()}.part").mkdir(parents=True)  # so that no file can be written
    full.put("row", row)
    assert full.folder is None and full.get("row") is not None
    left = path.with_name("0123.99.part")  # by a kill
    left.write_bytes(b"x" * 10**5)
    os.utime(left, (0, 0))
    TeacherCache(folder=tmp_path, max_disk_bytes=10**5).put("other row", row)
    assert not left.exists()

    def refused(path: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    assert TeacherCache(folder=tmp_path).get("other row") is not None


def test_a_teacher_on_another_device_or_in_tf32_is_asked_anew(tiny_base_folder: Path) -> None:
    base = load_base(tiny_base_folder)
    matmul = torch.backends.cuda.matmul
    models, before = set(), matmul.allow_tf32
    try:
        for device, matmul.allow_tf32 in (("cpu", False), ("cuda", False), ("cuda", True)):
            there = replace(base, device=torch.device(device))
            models.add(FrozenTeacher(there, TextCache(base), TeacherCache(), 4)._model)
    finally:
        matmul.allow_tf32 = before
    assert len(models) == 3


def test_what_cannot_be_packed_is_refused(tiny_base_folder: Path) -> None:
    trainer = packed_trainer(tiny_base_folder, max_slots=1)
    spec = tiny_spec(tiny_base_folder)
    full = tiny_spec(tiny_base_folder, train__mode="full")
    with pytest.raises(ConfigError, match="full fine-tuning"):
        packed_job(trainer, full)
    with pytest.raises(ConfigError, match="one worker"):
        packed_job(trainer, replace(spec, world_size=2))
    with pytest.raises(ConfigError, match="larger rank"):
        packed_job(trainer, tiny_spec(tiny_base_folder, train__rank=8))
    assert trainer.bank.used == 0
    packed_job(trainer, spec)
    with pytest.raises(CapacityError):
        packed_job(trainer, spec)


def test_half_precision_overflow_repeats_the_job_that_overflowed(tiny_base_folder: Path) -> None:
    spec = tiny_spec(tiny_base_folder, prior__with_prior_preservation=True, prior__weight=100)
    trainer = packed_trainer(tiny_base_folder)
    job, neighbour = packed_job(trainer, spec), packed_job(trainer, spec)
    job.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=1000)
    first, second = stepped(trainer, job, neighbour)
    assert job.scaler.get_scale() < 2.0**127
    assert first.loss == pytest.approx(second.loss)
    assert first.grad_norm == pytest.approx(second.grad_norm, rel=1e-3)


def test_final_weights_are_the_averaged_ones(tiny_base_folder: Path) -> None:
    options = {"train__use_ema": True, "train__ema_decay": 0.5, "train__learning_rate": 1e-2}
    trainer = packed_trainer(tiny_base_folder)
    job = packed_job(trainer, tiny_spec(tiny_base_folder, **options))
    alone = tiny_job(tiny_base_folder, **options)
    stepped(trainer, job, steps=3)
    for _ in range(3):
        alone.step()
    before = tensors(job)
    x, t = torch.ones(1, 4, 16, 16), torch.tensor([300])
    with job.final_weights() as base, alone.final_weights() as other, torch.no_grad():
        texts = base.encode_prompts([PROMPT])
        assert torch.allclose(base.predict(x, t, texts), other.predict(x, t, texts), atol=1e-4)
    assert all(torch.equal(v, before[k]) for k, v in tensors(job).items())
    with job.bare_base() as base, alone.bare_base() as other, torch.no_grad():
        assert torch.allclose(base.predict(x, t, texts), other.predict(x, t, texts), atol=1e-6)


def spec_with_other_latents(folder: Path) -> TrainJobSpec:
    spec = tiny_spec(folder)
    generator = torch.Generator().manual_seed(3)
    mean = torch.randn(2, 4, 8, 8, generator=generator)
    return replace(spec, subject=LatentSet(mean, 0.1 * mean.abs(), [PROMPT] * 2))


def test_jobs_of_several_sizes_share_an_engine(tiny_base_folder: Path) -> None:
    trainer = packed_trainer(tiny_base_folder)
    job = packed_job(trainer, tiny_spec(tiny_base_folder))
    small = packed_job(trainer, spec_with_other_latents(tiny_base_folder))
    figures = stepped(trainer, small, job, steps=2)
    assert all(math.isfinite(own.loss) for own in figures)
    assert latent_set(PROMPT).key == latent_set(PROMPT).key != latent_set(PROMPT, seed=1).key


def test_when_memory_runs_out_passes_become_smaller(
    tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = packed_trainer(tiny_base_folder)
    jobs = [packed_job(trainer, tiny_spec(tiny_base_folder, train__train_batch_size=2))]
    jobs += [packed_job(trainer, tiny_spec(tiny_base_folder)) for _ in range(2)]
    predict = trainer.base.predict
    held: list[weakref.ref[Tensor]] = []
    limit = 3

    def small_memory(x_t: Tensor, t: Tensor, texts: Any) -> Tensor:
        assert not any(own() is not None for own in held), "a failed pass is freed before others"
        if len(x_t) > limit:
            activations = torch.zeros(4)
            held.append(weakref.ref(activations))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return predict(x_t, t, texts)

    monkeypatch.setattr(trainer.base, "predict", small_memory)
    trainer.max_rows = 6
    stepped(trainer, *jobs)
    assert trainer.max_rows == 3
    assert [job.step_index for job in jobs] == [1, 1, 1]
    limit = 1
    outcomes = trainer.step(jobs)
    assert isinstance(outcomes[jobs[0]], torch.OutOfMemoryError)
    assert held and not any(own() is not None for own in held), "nor does the kept error hold it"
    assert 1 <= rows_that_fit(trainer.base) <= 64

"""What evaluations and benchmarks decide before and after drawing; no Ray, no pictures."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from dreamfleet.adapters.files import save_adapter
from dreamfleet.adapters.lora import add_lora
from dreamfleet.assessment import BenchmarkPlan, JudgeNames, compare, evaluate
from dreamfleet.assessment.benchmarks import _Benchmark, _Member
from dreamfleet.assessment.common import (
    Assessment,
    _individual,
    checkpoints_of,
    local_output,
    mean_history,
    units_of,
)
from dreamfleet.bases import Base, load_base
from dreamfleet.config import dump_config
from dreamfleet.data.photos import to_png
from dreamfleet.errors import AdapterFileError, BadInputError, SubjectSetError
from dreamfleet.evaluation.cards import adapter_info, write_adapter_json
from dreamfleet.evaluation.drawing import BARE, Arm, Unit
from dreamfleet.evaluation.protocols import Ask
from dreamfleet.evaluation.report import Metric
from dreamfleet.evaluation.worldbench.frozen import states_text
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.training.checkpoints import json_lines, step_name
from dreamfleet.training.worker import HISTORY
from tests.tiny_bases import make_tiny_sd1
from tests.unit.data.helpers import config_for
from tests.unit.evaluation.test_report import report_data


def test_runs_of_a_benchmark_share_no_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = make_tiny_sd1(tmp_path / "tiny")
    monkeypatch.chdir(tmp_path)
    config = config_for(
        tmp_path,
        base_model="tiny",
        output_dir=str(tmp_path / "bench"),
        cluster={"storage_path": "s3://bucket/runs?scheme=http"},
        subject={"id": "of-the-recipe"},
    )
    bench = _Benchmark(BenchmarkPlan("dreambench", config, num_seeds=2), SilentProgress())
    bench.output.mkdir()
    members = [_Member("rex", "dog", ("rex.png",), ("rex.png",))]
    session: Any = SimpleNamespace(num_cpus=2, num_gpus=0)
    first, second = (bench._training_config(members, index, session) for index in (0, 1))
    assert first.base_model == second.base_model == str(base)
    assert first.subject.id is None, "the list names its subjects"
    assert first.cluster.storage_path == "s3://bucket/runs/bench/seed-0?scheme=http"
    assert second.cluster.storage_path == "s3://bucket/runs/bench/seed-1?scheme=http"
    assert config.cluster.storage_path == "s3://bucket/runs?scheme=http"
    # One subject lies where it would lie among several: the benchmark may go on with more.
    two = bench._training_config([*members, replace(members[0], subject_id="Tom")], 0, session)
    assert first.output_dir == f"{two.output_dir}/rex"


def test_scored_states_are_told_apart_by_what_they_hold() -> None:
    assert states_text(None) == "all"
    one = states_text({"dog": ["running", "sitting"], "teapot": []})
    assert one == states_text({"teapot": [], "dog": ["sitting", "running"]})
    assert one != states_text({"dog": ["running"], "teapot": []})


def test_curves_come_from_wherever_the_checkpoints_are(tmp_path: Path) -> None:
    storage = config_for(tmp_path, cluster={"storage_path": str(tmp_path / "shared")})
    inside, shared = tmp_path / "rex" / "checkpoints" / "adapter", tmp_path / "shared" / "bo"
    whole = shared / step_name(2)  # a whole model's copy below `adapter` is deleted
    for folder, loss in ((inside, 1.0), (whole, 3.0)):
        folder.mkdir(parents=True)
        (folder / HISTORY).write_bytes(json_lines([{"step": 2, "loss": loss}]))
    (whole / "manifest.json").write_text("{}")
    places = [
        checkpoints_of(tmp_path / "rex", config_for(tmp_path), "rex"),
        checkpoints_of(tmp_path / "bo", storage, "bo"),
        checkpoints_of(tmp_path / "gone", storage, "gone"),
    ]
    assert mean_history(places) == [{"step": 2.0, "loss": 2.0}]


def test_a_gpu_that_is_not_there_is_refused_before_ray(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # of another test in this process
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = config_for(tmp_path, device="cuda", output_dir=str(tmp_path / "out"))
    with pytest.raises(BadInputError, match="torch sees no GPU on this machine"):
        local_output(config)


def test_results_do_not_go_into_an_adapter(tmp_path: Path) -> None:
    (tmp_path / "adapter.json").write_text("{}")
    with pytest.raises(BadInputError, match=r"report\.html would be overwritten"):
        local_output(config_for(tmp_path, output_dir=str(tmp_path)))


def test_what_evaluate_needs_on_this_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match=r"s3://bucket/rex: a folder on this machine"):
        evaluate("s3://bucket/rex", "attributes", {})
    config = config_for(tmp_path / "moved", base_model=str(make_tiny_sd1(tmp_path / "tiny")))
    (tmp_path / "rex").mkdir()
    (tmp_path / "rex" / "config.yaml").write_text(dump_config(config))
    save_adapter(tmp_path / "rex", lora_base(tmp_path / "tiny"))
    with pytest.raises(SubjectSetError, match=r"moved: no such folder.*; --images says where"):
        evaluate(tmp_path / "rex", "dreambench", {})


def test_an_adapter_is_named_by_its_whole_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that no config.yaml names: `.` has no name of its own, and `v1.5` is not `v1`. Nobody's
    photos are those of a subject without a name.
    """
    base, here, drawn = make_tiny_sd1(tmp_path / "tiny"), tmp_path / "v1.5", []
    here.mkdir()
    save_adapter(here, lora_base(base))
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "photos" / "00.png")

    def draw(self: Assessment, units: list[Unit], *_: Any) -> Any:
        asked = {unit.question.subject_id for unit in units}
        drawn.append((set(self.references), asked, self.output_dir.name))
        raise KeyboardInterrupt

    monkeypatch.chdir(here)
    monkeypatch.setattr("dreamfleet.runtime.session.ray_session", lambda *_, **__: nullcontext())
    monkeypatch.setattr(Assessment, "draw", draw)
    given = {
        "base_model": str(base), "subject.class_word": "dog",
        "subject.images": [str(tmp_path / "photos")],
    }  # fmt: skip
    with pytest.raises(KeyboardInterrupt):
        evaluate(".", "dreambench", given)
    assert drawn == [({"v1.5"}, {"v1.5"}, "v1.5-dreambench")]


def lora_base(folder: Path) -> Base:
    base = load_base(folder)
    add_lora(base, rank=2, alpha=2.0, layers="attention", train_text_encoder=False, seed=0)
    return base


def test_flags_of_the_other_benchmark_are_refused(tmp_path: Path) -> None:
    base = make_tiny_sd1(tmp_path / "tiny")
    config = config_for(tmp_path, base_model=str(base), output_dir=str(tmp_path / "out"))
    for name, given, flag in (
        ("worldbench", {"one_shot": True}, "--one-shot"),
        ("worldbench", {"data_dir": "photos"}, "--data-dir"),
        ("dreambench", {"split": "C"}, "--split"),
    ):
        with pytest.raises(BadInputError, match=f"{flag}: belongs to"):
            _Benchmark(BenchmarkPlan(name, config, **given), SilentProgress())  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="--base-report: belongs to `benchmark worldbench`"):
        BenchmarkPlan("dreambench", config).with_base_report("base.json")


def test_a_recipe_called_base_is_not_the_bare_base(tmp_path: Path) -> None:
    base = make_tiny_sd1(tmp_path / "tiny")
    config = config_for(tmp_path, base_model=str(base), output_dir=str(tmp_path / "out"))
    plan = _Benchmark(BenchmarkPlan("dreambench", config, arm=BARE), SilentProgress()).plan
    assert plan.arm != BARE


def test_sigterm_ends_a_benchmark_like_ctrl_c(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals arrive in the main thread")

    def killed(self: _Benchmark) -> list[_Member]:
        os.kill(os.getpid(), signal.SIGTERM)
        return []

    monkeypatch.setattr(_Benchmark, "_members", killed)
    config = config_for(
        tmp_path, base_model=str(make_tiny_sd1(tmp_path / "tiny")), output_dir=str(tmp_path / "out")
    )
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        _Benchmark(BenchmarkPlan("dreambench", config), SilentProgress()).run()
    assert signal.getsignal(signal.SIGTERM) is before


class TestNoise:
    """The subject is the unit of every interval, so each has noise of its own."""

    def seeds(self, tmp_path: Path, subject_id: str, host: str, benchmark: bool) -> set[int]:
        config = config_for(tmp_path, base_model="embedded", output_dir=str(tmp_path / "out"))
        arm = Arm(host)
        if not benchmark:  # an adapter of one subject, whatever it is called
            units = units_of(arm, [Ask("{token}", "scene")], config, subject_id, 2, ["dreambench"])
        else:
            bench = _Benchmark(BenchmarkPlan("dreambench", config), SilentProgress())
            member = _Member(subject_id, "dog", (), ())
            units = bench._dreambench_units(arm, config, member)
        return {seed for unit in units for seed in unit.seeds}

    def test_of_a_benchmark_is_the_subject_s_own_and_the_same_in_all_arms(
        self, tmp_path: Path
    ) -> None:
        dog = self.seeds(tmp_path, "dog", BARE, True)
        assert dog == self.seeds(tmp_path, "dog", "recipe", True)
        assert not dog & self.seeds(tmp_path, "dog2", BARE, True)

    def test_of_an_evaluation_is_the_same_for_all_adapters(self, tmp_path: Path) -> None:
        one, two = (self.seeds(tmp_path, name, "adapter", False) for name in ("rex-1", "rex-2"))
        assert one == two and len(one) == 2


def test_judges_of_the_other_kind_are_refused(tmp_path: Path) -> None:
    assert JudgeNames(evaluators="mine").spec("embedded").evaluators == "mine"
    assert JudgeNames(clip="").spec("some/base").clip == ""
    with pytest.raises(BadInputError, match=r"--clip, --blip: not used for the drawn world"):
        JudgeNames(clip="my/clip", blip="").spec("embedded")
    with pytest.raises(BadInputError, match=r"--evaluators: not used for a real base"):
        JudgeNames(evaluators="mine").spec("some/base")
    base = make_tiny_sd1(tmp_path / "tiny")
    config = config_for(tmp_path, base_model=str(base), output_dir=str(tmp_path / "out"))
    plan = BenchmarkPlan("worldbench", config, judges=JudgeNames(dino="my/dino"))
    with pytest.raises(BadInputError, match="--dino: not used"):
        _Benchmark(plan, SilentProgress())


def test_held_back_subjects_are_not_drawn_without_a_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the first training, and marked in report and summary."""
    config = config_for(tmp_path, base_model=str(make_tiny_sd1(tmp_path / "tiny")))
    config.output_dir = str(tmp_path / "out")
    monkeypatch.setattr("dreamfleet.assessment.benchmarks._check_world", lambda *about: None)
    monkeypatch.setattr(_Benchmark, "_members", lambda self: 1 / 0)
    said: list[str] = []
    monkeypatch.setattr(SilentProgress, "warn", lambda self, text: said.append(text))
    bench = _Benchmark(BenchmarkPlan("worldbench", config, split="C"), SilentProgress())
    with pytest.raises(ZeroDivisionError):
        bench.run()
    assert said == list(bench._warnings()) and "split C are held back" in said[0]
    usual = _Benchmark(BenchmarkPlan("worldbench", config), SilentProgress())
    assert usual._warnings() == ()


def test_individuals_are_told_apart_by_more_than_their_names() -> None:
    red, blue = (to_png(Image.new("RGB", (8, 8), colour)) for colour in ("red", "blue"))
    rex = _individual([red, blue], "dog", "sks")
    assert rex == _individual([blue, red], "dog", "sks"), "photos may have other names"
    others = {_individual([red], "dog", "sks"), _individual([red, blue], "cat", "sks"),
              _individual([red, blue], "dog", "ktn")}  # fmt: skip
    assert len(others | {rex}) == 4


class TestCompareAdapters:
    """Two folders of `personalize`: their figures have names without backbones."""

    def folder(self, place: Path, judge: str, identity: float) -> str:
        place.mkdir()
        metric = Metric("identity", "Identity", identity, 0.4, "alike", judge)
        data = report_data(base_hash="ab" * 32, metrics=[metric])
        write_adapter_json(place, adapter_info(data))
        return str(place)

    def test_of_the_same_judges(self, tmp_path: Path) -> None:
        a = self.folder(tmp_path / "a", "CLIP", 0.8)
        b = self.folder(tmp_path / "b", "CLIP", 0.5)
        _, (row,) = compare([a, b])
        assert row["figure"] == "identity"
        assert row["mean_difference"] == pytest.approx(0.3)

    def test_other_judges_are_refused(self, tmp_path: Path) -> None:
        a = self.folder(tmp_path / "a", "CLIP", 0.8)
        b = self.folder(tmp_path / "b", "world's CLIP", 0.5)
        with pytest.raises(BadInputError, match="not measured alike: judges identity CLIP"):
            compare([a, b])

"""WorldBench on a tiny random base with judges of known answers; rules on made-up numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from dreamfleet.assessment.comparisons import SAME_SETTINGS
from dreamfleet.config import load_config
from dreamfleet.errors import BadInputError, ResumeError, TrainingError
from dreamfleet.evaluation.scores import title
from dreamfleet.evaluation.world_metrics import WorldScorer
from dreamfleet.evaluation.worldbench import (
    BenchSettings,
    WorldBench,
    check_text,
    command,
    measure_base,
    named_hosts,
    publish,
    read_gate,
    summarise,
    write_gate,
)
from dreamfleet.evaluation.worldbench import run as run_module
from dreamfleet.evaluation.worldbench.command import parse_steps
from dreamfleet.evaluation.worldbench.frozen import check_frozen, sampler_text
from dreamfleet.evaluation.worldbench.plan import jobs_for, requests_for
from dreamfleet.evaluation.worldbench.publish import _measured
from dreamfleet.evaluation.worldbench.run import read_results
from dreamfleet.evaluation.worldbench.summary import (
    DIVERSITY,
    choose_guidance,
    choose_states,
    diagnose,
    identities,
    learnt_step,
    markdown_table,
)
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.splits import benchmark_photo, subjects
from tests.tiny_bases import make_tiny_sd1

pytestmark = pytest.mark.heavy

TINY = BenchSettings(
    num_subjects=1,
    steps=(1, 2),
    images_per_prompt=1,
    class_images=2,
    num_inference_steps=1,
    guidance_scale=1.0,
    num_class_images=2,
)


class SeesSubject:
    """Always the right class, in the state and scene of its choice."""

    def __init__(self, class_name: str = "dog") -> None:
        self.class_name = class_name

    def read(self, images: Sequence[Image.Image]) -> list[dict[str, str]]:
        state = CLASSES[self.class_name].states[0].name
        return [{"class": self.class_name, "state": state, "scene": "snow"} for _ in images]


class Colours:
    def embed(self, images: Sequence[Image.Image]) -> np.ndarray:
        rows = np.stack([np.asarray(i, float).reshape(-1, 3).mean(axis=0) - 127 for i in images])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("base") / "tiny")


def bench(
    base: Path, folder: Path, settings: BenchSettings = TINY, hosts: Sequence[str] = ("lora-prior",)
) -> tuple[WorldBench, list[str]]:
    said: list[str] = []
    run = WorldBench(
        base_name=str(base),
        hosts=named_hosts(hosts),
        settings=settings,
        scorer=WorldScorer(SeesSubject(), Colours()),
        evaluators="fixed",
        output_dir=folder,
        report=said.append,
    )
    return run, said


class TestPlan:
    def test_scoring_prompts_name_neither_the_photo_s_state_nor_its_scene(self) -> None:
        for subject in subjects("D"):
            photo = benchmark_photo(subject)
            requests = requests_for(subject, photo, "sks")
            assert sum(r.kind == "state" for r in requests) == 7
            assert sum(r.kind == "scene" for r in requests) == 9
            assert all(r.state != photo.state and r.scene != photo.scene for r in requests)
            named = [r for r in requests if r.kind != "class"]
            assert all("sks" in r.prompt.split() for r in named)
            assert requests[-1].prompt == f"photo of a {subject.class_name}"

    def test_noise_is_the_same_for_all_hosts_steps_and_training_seeds(self) -> None:
        subject = subjects("D")[0]
        photo = benchmark_photo(subject)
        other = BenchSettings(training_seed=7, steps=(5,), guidance_scale=2.0)
        seeds = [job.seed for job in jobs_for(subject, photo, BenchSettings())]
        assert seeds == [job.seed for job in jobs_for(subject, photo, other)]
        assert len(set(seeds)) == len(seeds)

    def test_held_back_subjects_do_not_overlap(self) -> None:
        chosen = BenchSettings(num_subjects=6, first_subject=8).subjects()
        assert len(chosen) == 6
        assert not set(chosen) & set(subjects("D", 8))

    @pytest.mark.parametrize(
        "wrong", [{"steps": ()}, {"steps": (4, 2)}, {"num_subjects": 0}, {"class_images": 1}]
    )
    def test_refuses_settings_that_cannot_be_run(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(BadInputError, match="expected"):
            BenchSettings(**wrong)

    def test_unknown_hosts_are_named(self) -> None:
        with pytest.raises(BadInputError, match="lora-prior"):
            named_hosts(["dora"])

    def test_the_measured_host_is_the_shipped_recipe(self) -> None:
        (host,) = named_hosts(["lora-teacher"])
        path = Path(__file__).parents[3] / "pipelines/recipes/lora_teacher_prior.yaml"
        recipe = load_config(path)
        assert recipe.prior == host.config.prior
        steps = recipe.train.max_train_steps  # the benchmark's own, as rungs
        assert recipe.train == host.config.train.model_copy(update={"max_train_steps": steps})

    def test_steps_are_read_from_text(self) -> None:
        assert parse_steps("200,400") == (200, 400)
        with pytest.raises(BadInputError, match="200 to 400"):
            parse_steps("200 to 400")


@pytest.fixture(scope="module")
def finished(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run with two hosts; tests leave it as they found it."""
    folder = tmp_path_factory.mktemp("bench")
    bench(tiny_base, folder, hosts=("lora-prior", "full"))[0].run()
    return folder


class TestRun:
    def test_leaves_rows_table_and_pictures(self, finished: Path) -> None:
        summary = publish(finished, TINY)
        rows = pq.read_table(finished / "results.parquet").to_pylist()
        # One picture per prompt (18 but two of the class) for the base and two hosts at two steps.
        assert len(rows) == 19 * 5
        assert {(row["host"], row["steps"]) for row in rows} == {
            ("base", 0), ("lora-prior", 1), ("lora-prior", 2), ("full", 1), ("full", 2),
        }  # fmt: skip
        assert all((finished / row["picture"]).is_file() for row in rows)
        assert len({row["noise_seed"] for row in rows}) == 19
        stored = json.loads((finished / "summary.json").read_text())
        assert stored["table"][0]["host"] == "base"
        assert stored["settings"] == json.loads(json.dumps(TINY.as_dict())) | {
            "sampler": "ddim, 1 steps, guidance 1", "pictures per prompt": "1",
            "scored states": "all",
        }  # fmt: skip
        assert (finished / "grids" / "D00-dog-full.png").is_file()
        assert (finished / "grids" / "scenes-lora-prior-00002.png").is_file()
        assert "alignment (states)" in (finished / "table.md").read_text()
        assert "lora-prior, 2 steps" in check_text(summary)

    def test_training_changes_the_pictures(self, finished: Path) -> None:
        folder = finished / "pictures" / "D00-dog"
        bare, trained = (
            np.asarray(Image.open(folder / name / "000.png"), float)
            for name in ("base/00000", "full/00002")
        )
        assert bare.shape == (64, 64, 3) and np.abs(bare - trained).max() > 0

    def test_goes_on_where_it_stopped_and_repeats(self, tiny_base: Path, finished: Path) -> None:
        again, said = bench(tiny_base, finished)
        path = again.rows_path(again.settings.subjects()[0], "lora-prior")
        first = path.read_text()
        path.unlink()
        again.run()
        assert said[0] == "D00-dog base: done before"
        assert said[-1] == "D00-dog lora-prior: 2 steps scored"
        assert path.read_text() == first  # the same seed gives the same numbers

    def test_refuses_a_folder_of_other_settings(self, tiny_base: Path, finished: Path) -> None:
        other = BenchSettings(**{**TINY.as_dict(), "training_seed": 1})
        with pytest.raises(ResumeError, match="another output folder"):
            bench(tiny_base, finished, other)[0].run()
        with pytest.raises(ResumeError, match="full.json: trained with .*'training_seed': 0"):
            bench(tiny_base, finished, other, hosts=["full-prior"])[0].run()

    def test_a_training_that_breaks_down_costs_no_other_one(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run, said = bench(tiny_base, tmp_path, hosts=("lora", "lora-prior", "full"))
        for host in run.hosts[1:]:
            rate = {"learning_rate": 1e30}  # more than a recipe may say
            host.config.train = host.config.train.model_copy(update=rate)
        (prior, full) = run.run()
        assert "lora-prior: broke down before 2 steps" in prior and prior in said
        assert "full: broke down" in full
        assert {row["host"] for row in read_results(tmp_path)[0]} == {"base", "lora"}

        def full_disk(*about: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(WorldBench, "_save_pictures", full_disk)
        with pytest.raises(OSError, match="no space"):
            run.run()

    def test_a_command_writes_all_other_results_before_it_names_a_breakdown(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        done: list[str] = []
        monkeypatch.setattr(command, "frozen_now", lambda *about: {})
        monkeypatch.setattr(command, "shipped_scorer", lambda oracle: (None, ""))
        monkeypatch.setattr(WorldBench, "run", lambda self: ["D00-dog full: broke down"])
        monkeypatch.setattr(command, "publish", lambda *about: done.append("published"))
        monkeypatch.setattr(command, "check_text", lambda summary: "table")
        options = {
            "base_model": str(tiny_base), "split": "D", "subjects": 1, "first_subject": 0,
            "steps": "1", "images_per_prompt": 1, "class_images": 2, "num_inference_steps": 1,
            "num_class_images": 2, "seed": 0, "hosts": "full", "device": "cpu",
        }  # fmt: skip
        with pytest.raises(TrainingError, match="not in the table: D00-dog full: broke down"):
            command.check_hosts(tmp_path, options, done.append)
        assert done == ["published", "table", f"results, table and pictures: {tmp_path}"]

    def test_an_edited_world_is_another_one(
        self, tiny_base: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "world_hash", lambda: "edited")
        with pytest.raises(ResumeError, match="other settings"):
            bench(tiny_base, finished)[0].run()

    def test_measures_the_bare_base(self, tiny_base: Path, tmp_path: Path) -> None:
        from dreamfleet.bases import load_base

        said: list[str] = []
        gate = measure_base(
            load_base(str(tiny_base)), SeesSubject("teapot"), guidances=(1.5, 3.0),
            images_per_state=1, num_inference_steps=1, classes=["teapot"], report=said.append,
        )  # fmt: skip
        assert gate["guidance"] == 1.5  # both are equally good: the smaller
        assert gate["scored_states"] == {"teapot": ["plain"]}
        assert gate["alignment_by_guidance"] == {"1.5": 0.125, "3.0": 0.125}
        write_gate(gate, tmp_path / "base.json")
        assert read_gate(tmp_path / "base.json") == gate
        with pytest.raises(BadInputError, match="check_embedded_base"):
            read_gate(tmp_path / "nothing.json")

    def test_measuring_the_base_goes_on_where_it_stopped(
        self, tiny_base: Path, tmp_path: Path
    ) -> None:
        from dreamfleet.bases import load_base

        class Judge(SeesSubject):
            reads = 0

            def read(self, images: Any) -> Any:
                self.reads += 1
                return super().read(images)

        def measure(judge: Judge, guidances: tuple[float, ...], judged_by: str = "one") -> Any:
            return measure_base(
                load_base(str(tiny_base)), judge, guidances=guidances, images_per_state=1,
                num_inference_steps=1, classes=["teapot"], judged_by=judged_by, kept=tmp_path,
                report=lambda line: None,
            )  # fmt: skip

        first, second, other = Judge("teapot"), Judge("teapot"), Judge("teapot")
        measure(first, (1.5,))
        whole = measure(second, (1.5, 3.0))
        assert (first.reads, second.reads) == (8, 8)  # eight states at the new scale only
        assert whole["alignment_by_guidance"] == {"1.5": 0.125, "3.0": 0.125}
        measure(other, (1.5,), judged_by="another")
        assert other.reads == 8


class TestRules:
    def test_guidance_is_the_smallest_within_two_points(self) -> None:
        measured = {1.5: 0.80, 2.0: 0.88, 3.0: 0.90, 5.0: 0.895, 7.5: 0.7}
        assert choose_guidance(measured) == 2.0

    def test_states_are_scored_from_85_percent(self) -> None:
        measured = {("dog", "sitting"): 0.85, ("dog", "ball"): 0.84, ("cat", "hat"): 0.2}
        assert choose_states(measured) == {"dog": ["sitting"], "cat": []}

    def test_learnt_is_the_first_rung_near_the_best(self) -> None:
        assert learnt_step({200: 0.3, 400: 0.77, 800: 0.8, 1600: 0.6}) == 400
        with pytest.raises(BadInputError, match="without rungs"):
            learnt_step({})

    def test_a_host_that_learns_nothing_has_no_n_and_no_diagnosis(self) -> None:
        assert learnt_step({200: -0.1, 400: 0.0}) is None
        assert diagnose(0.9, {200: 0.1, 400: 0.1}, None)["diseased"] is None

    @pytest.mark.parametrize(
        ("alignments", "expected", "at"),
        [
            ({400: 0.80, 800: 0.70, 1600: 0.70}, True, 800),
            ({400: 0.70, 800: 0.90, 1600: 0.90}, True, 400),
            ({400: 0.80, 800: 0.80, 1600: 0.80}, False, None),
            ({400: 0.80, 800: 0.80}, None, None),
        ],
    )
    def test_a_host_is_diseased_that_lost_15_points(
        self, alignments: dict[int, float], expected: bool | None, at: int | None
    ) -> None:
        found = diagnose(0.90, alignments, 400)
        assert found["diseased"] is expected and found["at"] == at

    def test_what_is_just_reached_is_reached(self) -> None:
        assert 0.95 - 0.80 < 0.15, "as floats are"
        assert diagnose(0.95, {400: 0.80}, 400)["at"] == 400
        assert learnt_step({200: 0.95 * 0.7, 400: 0.7}) == 200


def row(host: str, steps: int, subject: str, kind: str, **values: Any) -> dict[str, Any]:
    asked = {"asked_state": "golden" if kind == "state" else None}
    prompt = values.pop("prompt", kind)
    return {
        "host": host, "steps": steps, "subject": subject, "class": "teapot", "kind": kind,
        "seed": 0, "prompt": prompt, "aligned": None, "copied": None, "joint": None,
        "similarity": 0.5, "floor": 0.2, "ceiling": 0.8, **asked, **values,
    }  # fmt: skip


def made_up_rows(num_subjects: int = 8) -> list[dict[str, Any]]:
    """The base aligns always and knows nobody; the host aligns in half of the cases, knows all."""
    rows = []
    for i in range(num_subjects):
        who = f"s{i}"
        for kind in ("state", "scene"):
            rows += [
                row("base", 0, who, kind, aligned=True, copied=False, joint=False, similarity=0.2),
                row("lora", 200, who, kind, aligned=True, copied=False, joint=True, similarity=0.8),
                row(
                    "lora", 200, who, kind, aligned=False, copied=True, joint=False, similarity=0.8
                ),
            ]
        rows.append(row("base", 0, who, "subject", similarity=0.2))
        rows.append(row("lora", 200, who, "subject", similarity=0.8))
    return rows


class TestSummary:
    def test_old_ladders_call_the_class_s_variety_by_its_name(self, tmp_path: Path) -> None:
        path = tmp_path / "rows" / "s0" / "lora.json"
        path.parent.mkdir(parents=True)
        rung = {"steps": 200, "div[world-identity-distance]": 0.3}
        path.write_text(json.dumps({"rows": [], "rungs": [rung]}))
        _, (found,) = read_results(tmp_path)
        assert found == {"subject": "s0", "host": "lora", "steps": 200, DIVERSITY: 0.3}
        assert title(DIVERSITY).startswith("Class variety")

    def test_figures_and_pairs(self) -> None:
        rungs = [
            {"subject": f"s{i}", "host": host, "steps": steps, DIVERSITY: value}
            for i in range(8)
            for host, steps, value in (("base", 0, 0.4), ("lora", 200, 0.3))
        ]
        summary = summarise(made_up_rows(), rungs)
        base, lora = summary["table"]
        assert (base["means"]["alignment"], lora["means"]["alignment"]) == (1.0, 0.5)
        assert (base["means"]["identity"], lora["means"]["identity"]) == pytest.approx((0.0, 1.0))
        assert lora["means"]["copy_rate"] == lora["means"]["joint"] == 0.5
        differences = summary["against_base"][0]["differences"]
        assert differences["alignment"]["mean_difference"] == -0.5
        assert differences["alignment"]["interval"] == (-0.5, -0.5)
        assert differences[DIVERSITY]["mean_difference"] == pytest.approx(-0.1)
        assert summary["ladders"]["lora"]["learnt_at"] == 200
        assert summary["ladders"]["lora"]["diseased"] is True
        assert "| lora | 200 | 0.500 |" in markdown_table(summary)

    def test_identity_is_averaged_within_a_training_seed_first(self) -> None:
        """Seed 0: gains 0.6 and 0.3 over ranges 0.6 and 0.6; seed 1: 0.0 over 0.6."""
        rows = [row("lora", 1, "s0", "state", seed=seed, similarity=similarity)
                for seed, similarity in ((0, 0.8), (0, 0.5), (1, 0.2))]  # fmt: skip
        assert identities(rows, "state") == {"s0": pytest.approx((0.75 + 0.0) / 2)}

    def test_few_subjects_give_no_interval(self) -> None:
        differences = summarise(made_up_rows(7), [])["against_base"][0]["differences"]
        assert differences["alignment"]["interval"] is None

    def test_states_that_the_base_does_not_reach_do_not_count(self) -> None:
        summary = summarise(made_up_rows(2), [], {"teapot": ["wooden"]})
        base = summary["table"][0]
        assert math.isnan(base["means"]["alignment"])
        assert base["means"]["scene_alignment"] == 1.0

    def test_needs_the_bare_base(self) -> None:
        with pytest.raises(BadInputError, match="bare base"):
            summarise([row("lora", 200, "s0", "state", aligned=True)], [])


class TestFrozen:
    """What the rules rest on travels as hashes, and another base's measurement is not used."""

    def test_names_what_changed(self) -> None:
        now = {"base": "a" * 64, "sampler": "ddim, 25 steps"}
        check_frozen({}, now, "base.json")  # of before hashes were kept
        check_frozen(now, now, "base.json")
        with pytest.raises(BadInputError, match=r"base\.json.*base b{16}, now a{16}\)"):
            check_frozen({**now, "base": "b" * 64}, now, "base.json")

    def test_a_benchmark_refuses_a_measurement_of_another_base(
        self, tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamfleet.assessment import BenchmarkPlan
        from dreamfleet.bases import inspect_base
        from dreamfleet.config import RunConfig
        from dreamfleet.evaluation.worldbench import frozen

        monkeypatch.setattr(frozen, "weights_hash", lambda name, root: "a" * 64)
        own = frozen.frozen_now(inspect_base(tiny_base).hash, 25)
        gate = {"guidance": 3.0, "scored_states": {"dog": ["running"]}, "frozen": own}
        write_gate(gate, tmp_path / "base.json")
        plan = BenchmarkPlan("worldbench", RunConfig(base_model=str(tiny_base)))
        measured = plan.with_base_report(str(tmp_path / "base.json"))
        assert measured.scored_states == {"dog": ["running"]}
        assert measured.config.sampling.guidance_scale == 3.0
        config = plan.config.model_copy(deep=True)
        config.sampling.guidance_scale = 7.5
        with pytest.raises(BadInputError, match="guidance_scale = 7.5: .*count at 3;"):
            replace(plan, config=config).with_base_report(str(tmp_path / "base.json"))
        monkeypatch.setattr(frozen, "weights_hash", lambda name, root: "b" * 64)
        with pytest.raises(BadInputError, match="oracle A .*measure the base again"):
            plan.with_base_report(str(tmp_path / "base.json"))

    def test_a_ladder_says_how_it_was_measured_in_a_benchmark_s_words(self) -> None:
        """So that `compare` refuses one of another sampler, base or judge."""
        frozen = {"base": "b" * 64, "world": "c" * 64, "prompts": "d" * 64, "sampler": "x"}
        measured = _measured(BenchSettings(guidance_scale=3.0), {"dog": ["hat"]}, frozen, "e" * 64)
        assert set(measured) == set(SAME_SETTINGS)
        assert measured["base hash"] == "b" * 16 and measured["judges"] == "e" * 16
        assert measured["sampler"] == sampler_text("ddim", 25, 3.0)

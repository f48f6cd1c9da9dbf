"""Studies on a tiny random base with judges of known answers: short, and all of it real."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import psutil
import pytest
import yaml
from PIL import Image
from safetensors.torch import load_file

from dreamfleet.errors import BadInputError, TrainingError
from dreamfleet.evaluation.judges import JudgeSpec, Question
from dreamfleet.evaluation.protocols.protocol import protocol_file
from dreamfleet.evaluation.results import read_rows
from dreamfleet.evaluation.studies import command
from dreamfleet.evaluation.studies import fields as fields_module
from dreamfleet.evaluation.studies import run as run_module
from dreamfleet.evaluation.studies.fields import PhotographField
from dreamfleet.evaluation.studies.page import fill_page
from dreamfleet.evaluation.studies.pieces import read_about
from dreamfleet.evaluation.studies.plan import BARE, PlannedArm, arm_config
from dreamfleet.evaluation.studies.recipe import Loaded, Study, load_study, studies_in
from dreamfleet.evaluation.studies.report import (
    publish,
    settle,
    write_results,
)
from dreamfleet.evaluation.studies.run import StudyRun
from dreamfleet.evaluation.studies.settings import read_settings
from dreamfleet.evaluation.studies.store import ArmFolder
from dreamfleet.evaluation.studies.tables import read_csv
from dreamfleet.evaluation.worldbench.oracle_check import draw_sample
from tests.tiny_bases import add_safety_checker
from tests.tiny_evaluators import TOWER, write_tiny_blip, write_tiny_clip, write_tiny_dino
from tests.unit.data.helpers import write_photos
from tests.unit.studies.helpers import (
    RECIPES,
    ROOT,
    fixed_field,
    quick,
    write_trial_settings,
)

pytestmark = pytest.mark.heavy

Make = Callable[..., StudyRun]
SHARED = [own for own in studies_in(RECIPES) if not own.study.searches]
SLOW = {"a", "c", "step4"}  # many arms, or hosts that train alone


@pytest.fixture(scope="module")
def make(tiny_base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes a short run of a recipe; all in one folder unless another is given."""
    common = tmp_path_factory.mktemp("studies")
    settings = write_trial_settings(common / "settings.yaml")

    def made(name: str, folder: Path | None = None, **changes: Any) -> StudyRun:
        said: list[str] = []
        (path,) = RECIPES.glob(f"{name}*.yaml")
        order = command.StudyOrder(
            str(path), str(folder or common / "runs"), str(settings), subjects=1, seeds=1,
            split="D", base_model=str(tiny_base_folder),
        )  # fmt: skip
        study = quick(order.study(), **changes)
        run = command.study_run(order, said.append, fixed_field(study))
        run.study = study
        run.said = said  # type: ignore[attr-defined]
        return run

    return made


def settings_of(run: StudyRun) -> Any:
    return read_settings(run.output_dir.parent / "settings.yaml")


def trainings(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Names of what is trained from here on, by training."""
    seen: list[list[str]] = []
    for name in ("train_together", "train_alone"):
        whole = getattr(run_module, name)

        def spied(base: Any, ladders: Any, whole: Any = whole) -> Any:
            many = ladders if isinstance(ladders, list | tuple) else [ladders]
            seen.append([ladder.name for ladder in many])
            return whole(base, ladders)

        monkeypatch.setattr(run_module, name, spied)
    return seen


@pytest.mark.parametrize(
    "loaded",
    [pytest.param(own, marks=[pytest.mark.slow] if own.study.study in SLOW else [])
     for own in SHARED],
    ids=lambda own: own.study.study,
)  # fmt: skip
def test_a_short_run_of_every_recipe(make: Make, loaded: Loaded) -> None:
    run = make(loaded.path.stem)
    run.arms = _few(run.arms)
    run.run()
    folder, left = write_results(run, settings_of(run))
    assert left == [] and run.failures() == []
    rows = read_rows(folder / "results.parquet")
    assert {row["arm"] for row in rows} == {"base", *(arm.name for arm in run.arms)}
    assert all((folder / row["picture"]).is_file() for row in rows)
    noise: dict[Any, set[str]] = {}
    for row in rows:
        noise.setdefault((row["host"], row["arm"], row["steps"]), set()).add(row["noise_seed"])
    assert {frozenset(seeds) for seeds in noise.values()} == {frozenset(noise["base", "base", 0])} \
        or loaded.study.study == "h"  # fmt: skip
    table = read_csv(folder / "table.csv")
    assert len(table) == 1 + len(run.arms) * len(run.study.rungs)
    shown = [name for name in loaded.study.figures if any(name in row for row in table)]
    assert set(loaded.study.chart.figures) <= set(shown)
    for name in ("chart.webp", "sheet.webp"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 100
    assert run.costs()[1]["train_s"] > 0


def _few(arms: Sequence[PlannedArm]) -> list[PlannedArm]:
    """All arms of the first LoRA host; of a host that trains alone, two."""
    hosts = list(dict.fromkeys(arm.host for arm in arms))
    most = {host: 2 if host == "full" else 99 if host == hosts[0] else 0 for host in hosts}
    return [arm for host in hosts for arm in [a for a in arms if a.host == host][: most[host]]]


class TestRun:
    def test_lora_arms_share_an_engine_and_nothing_is_done_twice(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = trainings(monkeypatch)
        run = make("f_", tmp_path, seeds=2)
        run.run()
        assert [len(names) for names in seen] == [6]
        rows, left = run.rows()
        assert left == [] and len(run.said) == 8  # type: ignore[attr-defined]
        again = make("f_", tmp_path, seeds=2)
        again.run()
        assert len(seen) == 1 and len(again.said) == 1  # type: ignore[attr-defined]
        assert again.rows()[0] == rows

    def test_subjects_share_an_engine_where_no_worker_idles(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = trainings(monkeypatch)
        run = make("f_", tmp_path, subjects=2)
        one, two = run.members()
        assert run.batches() == [[one, two]] and run.batches(2) == [[one], [two]]
        replace(run, part=(1, 2)).run()
        assert [len(names) for names in seen] == [3]
        run.run()
        assert [len(names) for names in seen] == [3, 3] and run.rows()[1] == []
        monkeypatch.setattr(run_module, "TOGETHER", 5)
        assert run.batches() == [[one], [two]]
        again = make("f_", tmp_path / "both", subjects=2)
        monkeypatch.setattr(run_module, "TOGETHER", 6)
        again.run()
        assert [len(names) for names in seen] == [3, 3, 6] and again.rows()[1] == []

    def test_another_study_draws_with_the_weights_that_are_there(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = make("f_", tmp_path)
        first.run()
        seen = trainings(monkeypatch)
        other = make("k_", tmp_path)
        other.run()
        assert seen == [] and other.rows()[1] == []
        kinds = {row["kind"] for row in other.rows()[0]}
        assert kinds == {"subject", "application"}
        pixels = _pictures(first, "chosen"), _pictures(other, "chosen")
        common = set(pixels[0]) & set(pixels[1])
        assert common and all((pixels[0][n] == pixels[1][n]).all() for n in common)

    def test_together_is_alone_up_to_rounding(self, make: Make, tmp_path: Path) -> None:
        together = make("f_", tmp_path / "one")
        together.run()
        alone = make("f_", tmp_path / "two")
        alone.arms = alone.arms[1:2]
        alone.run()
        one, two = _weights(together, "chosen"), _weights(alone, "chosen")
        assert _alike(one, two)

    def test_a_stop_loses_only_what_was_under_way(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make("f_", tmp_path)
        _stop_when_told(run, "chosen", KeyboardInterrupt)
        folder, left = write_results(run, settings_of(make("f_")))
        assert len(left) == 1 and not read_about(folder)["complete"]
        seen = trainings(monkeypatch)
        again = make("f_", tmp_path)
        again.run()
        assert [len(names) for names in seen] == [1] and again.rows()[1] == []

    def test_a_kill_in_training_costs_a_minute_and_changes_nothing(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(run_module, "TELL_EVERY_S", 0.0)
        whole, broken = make("f_", tmp_path / "one"), make("f_", tmp_path / "two")
        whole.run()

        _stop_at_the_first_step(broken)
        again = make("f_", tmp_path / "two")
        _go_on_from_there(again)
        one, two = _weights(whole, "chosen"), _weights(again, "chosen")
        assert _alike(one, two)  # bit for bit only where the same arms run together again
        assert len(again.logs()) == len(whole.logs()) == 6
        assert not list(tmp_path.rglob("state.pt"))

    def test_a_rung_that_a_saved_state_is_past_keeps_its_own_weights(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Another study that asks other prompts of that rung would draw with later ones."""
        monkeypatch.setattr(run_module, "SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(run_module, "TELL_EVERY_S", 0.0)

        def chosen() -> StudyRun:
            run = make("f_", tmp_path)
            run.arms = [replace(run.arms[1], rungs=(1, 3), factors=(0.5, 1.5))]
            return run

        _stop_when_told(chosen(), "step 2 of 3", KeyboardInterrupt)
        (early,) = tmp_path.rglob("weights-00001/*.safetensors")
        before = early.read_bytes()
        chosen().run()
        (late,) = tmp_path.rglob("weights-00003/*.safetensors")
        assert early.read_bytes() == before != late.read_bytes()

    def test_a_host_that_trains_alone_goes_on_where_it_was_stopped(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "SAVE_EVERY_S", 0.0)
        monkeypatch.setattr(run_module, "TELL_EVERY_S", 0.0)

        def full(folder: str) -> StudyRun:
            run = make("b_", tmp_path / folder, hosts=["full-prior"])
            (spec,) = [arm for arm in run.study.arms if arm.name == "w_s x 4"]
            config = arm_config(spec, "full-prior", settings_of(make("b_")), {})
            run.arms = [replace(run.arms[0], host="full-prior", config=config)]
            return run

        whole, broken = full("one"), full("two")
        whole.run()

        _stop_at_the_first_step(broken)
        assert list(tmp_path.rglob("state.pt"))
        again = full("two")
        _go_on_from_there(again)
        one, two = _pictures(whole, whole.arms[0].name), _pictures(again, whole.arms[0].name)
        assert one and all((one[name] == two[name]).all() for name in one)

    def test_what_is_no_breakdown_is_not_written_down_as_one(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(run_module, "SAVE_EVERY_S", 0.0)
        run = make("f_", tmp_path)

        def full_disk(*args: Any) -> None:
            raise OSError("no space left on device")

        monkeypatch.setattr(ArmFolder, "save_state", full_disk)
        with pytest.raises(OSError, match="no space"):
            run.run()
        assert run.failures() == [] and len(run.rows()[1]) == 3

    @pytest.mark.slow
    def test_workers_end_with_their_command(self, tiny_base_folder: Path, tmp_path: Path) -> None:
        settings = write_trial_settings(tmp_path / "settings.yaml", steps=100_000)
        command_line = [
            sys.executable, str(ROOT / "pipelines" / "run_study.py"),
            *("--config", str(RECIPES / "h_class_noun.yaml")),
            *("--output-dir", str(tmp_path / "runs")),
            *("--settings", str(settings), "--base-model", str(tiny_base_folder)),
            *("--num-workers", "2"),
        ]  # fmt: skip
        with subprocess.Popen(command_line, stdout=subprocess.DEVNULL) as process:
            arms = tmp_path / "runs" / "arms"
            _until(lambda: len(list(arms.glob("*/.lock"))) == 2)
            workers = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        assert len(workers) >= 2
        _until(lambda: not any(own.is_running() for own in workers))

    def test_parts_are_other_subjects(self, make: Make, tmp_path: Path) -> None:
        run = make("f_", tmp_path, subjects=3)
        run.arms = run.arms[:1]
        run.part = (1, 2)
        run.run()
        rows, left = run.rows()
        assert {row["subject"] for row in rows} == {"D01-teapot"}
        assert left == [], "the others are not this part's"
        folder, _ = write_results(run, settings_of(make("f_")))
        assert read_about(folder)["complete"] and not (folder / "sheet.webp").is_file()
        run.part = (0, 1)
        assert len(run.rows()[1]) == 4  # two subjects, bare base and one arm

    def test_a_training_that_breaks_down_ends_alone(self, make: Make, tmp_path: Path) -> None:
        run = make("f_", tmp_path)
        broken = run.arms[2].config
        assert broken is not None
        rate = {"learning_rate": 1e30}  # more than a recipe may say: no number at the second step
        broken.train = broken.train.model_copy(update=rate)
        run.run()
        _, left = run.rows()
        assert left == []
        assert {own["arm"] for own in run.failures()} == {"official"}
        assert {row["arm"] for row in run.rows()[0]} == {"base", "host", "chosen"}

    def test_a_breakdown_after_an_arm_s_last_rung_is_not_its_own(
        self, make: Make, tmp_path: Path
    ) -> None:
        run = make("f_", tmp_path)
        unit = run.unit(run.members()[0], run.arms[0], 0)
        unit.folder.note(failed="NaN", failed_at=3)  # as a study that reads it at 3 steps leaves it
        assert not run.is_done(unit) and run.failures() == []
        unit.folder.note(failed="NaN", failed_at=2)
        assert run.is_done(unit) and [own["arm"] for own in run.failures()] == ["host"]

    def test_what_comes_before_a_breakdown_is_still_read(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make("f_", tmp_path)
        run.arms = [replace(run.arms[0], rungs=(1, 2), factors=(0.5, 1.0))]
        unit = run.unit(run.members()[0], run.arms[0], 0)
        unit.folder.note(failed="NaN", failed_at=2)  # as a study that asked other prompts leaves it
        assert not run.is_done(unit)
        whole = vars(run_module)["train_together"]

        def breaks_again(base: Any, ladders: Any) -> Any:
            for reached in whole(base, ladders):
                error = TrainingError("NaN") if reached.step == 2 else None
                yield replace(reached, error=error)

        monkeypatch.setattr(run_module, "train_together", breaks_again)
        run.run()
        assert {row["steps"] for row in run.rows()[0] if row["arm"] == "host"} == {1}
        seen = trainings(monkeypatch)
        run.run()
        assert seen == [] and run.is_done(unit) and len(run.failures()) == 1
        other = make("k_", tmp_path)
        other.arms = [replace(other.arms[0], rungs=(1, 2), factors=(0.5, 1.0))]
        other.run()  # other prompts: the weights before the breakdown are there
        assert seen == [] and other.rows()[1] == []

    def test_a_kill_between_two_files_of_a_rung_is_made_good(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        run = make("f_", tmp_path)
        run.arms = run.arms[1:2]
        folder = run.unit(run.members()[0], run.arms[0], 0).folder
        folder.weights(2).mkdir(parents=True)  # and no file in it yet
        with monkeypatch.context() as patched:
            patched.setattr(ArmFolder, "write_log", lambda *args: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                run.run()
        assert not list(folder.weights(2).iterdir()), "with weights there, no log would be made"
        run.run()
        assert run.rows()[1] == [] and len(run.logs()) == 2

    def test_a_shorter_training_leaves_the_longer_one_s_log(self, tmp_path: Path) -> None:
        folder = ArmFolder(tmp_path)
        folder.write_log([{"step": 1, "rho": 0.5}, {"step": 2, "rho": 0.6}])
        folder.write_log([{"step": 1, "rho": 0.5}])
        assert [row["step"] for row in folder.read_log()] == [1, 2]

    def test_arms_that_are_one_training_are_read_at_the_steps_of_both(
        self, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = trainings(monkeypatch)
        run = make("f_", tmp_path)
        host = run.arms[0]
        run.arms = [replace(host, name="found", rungs=(3,)), replace(host, name="F", rungs=(1,))]
        run.run()
        rows, left = run.rows()
        assert left == [] and [len(names) for names in seen] == [1]
        assert {(row["arm"], row["steps"]) for row in rows} == {
            ("base", 0), ("found", 3), ("F", 1),
        }  # fmt: skip
        lengths = {arm.name: 0 for arm in run.arms}
        for row in run.logs():
            lengths[row["arm"]] += 1
        assert lengths == {"found": 3, "F": 1}

    def test_every_step_is_logged_with_its_t(self, make: Make, tmp_path: Path) -> None:
        run = make("c_", tmp_path, rungs=[1.0])
        run.arms = [arm for arm in run.arms if arm.name in ("host", "none")]
        run.arms = [_shortened(arm) for arm in run.arms]
        run.run()
        logs = run.logs()
        assert len(logs) == 4 and all(0 <= row["t"] < 1000 for row in logs)
        assert len({row["t"] for row in logs}) == 2  # both arms see the same samples
        assert all(row["rho"] is not None for row in logs)


FIRST_STEP = "step 1 of 2"


def _stop_when_told(run: StudyRun, words: str, how: type[BaseException]) -> None:
    """Run until a line of its report has `words`, and end it there."""

    def stop(text: str) -> None:
        if words in text:
            raise how

    run.report = stop
    with pytest.raises(how):
        run.run()


def _stop_at_the_first_step(run: StudyRun) -> None:
    _stop_when_told(run, FIRST_STEP, SystemExit)


def _go_on_from_there(run: StudyRun) -> None:
    run.run()
    told = [text for text in run.said if "step" in text]  # type: ignore[attr-defined]
    assert not any(FIRST_STEP in text for text in told)


def _until(holds: Callable[[], bool], timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.1)


def _shortened(arm: Any) -> Any:
    return replace(arm, rungs=arm.rungs[1:2], factors=(1.0,))


def _alike(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two trained adapters are the same up to rounding."""
    assert one.keys() == two.keys()
    grown = [name for name in one if "lora_B" in name]  # zero before training
    size = sum(float(one[name].norm() ** 2) for name in grown)
    apart = sum(float((one[name] - two[name]).norm() ** 2) for name in grown)
    return size > 0 and apart <= 1e-6 * size


def _weights(run: StudyRun, arm: str) -> dict[str, Any]:
    unit = next(unit for unit in run.units() if unit.arm.name == arm)
    return load_file(unit.folder.weights(2) / "pytorch_lora_weights.safetensors")


def _pictures(run: StudyRun, arm: str) -> dict[str, np.ndarray]:
    rows = [row for row in run.rows()[0] if row["arm"] == arm]
    return {
        row["name"]: np.asarray(Image.open(run.output_dir / row["picture"]), int) for row in rows
    }


class TestPublishing:
    def test_the_oracle_is_checked_on_a_study_s_arms(self, make: Make, tmp_path: Path) -> None:
        run = make("f_")
        run.run()
        folder, _ = write_results(run, settings_of(run))
        assert draw_sample([folder], tmp_path, 6, arms=["chosen", "official"]) == 6
        key = (tmp_path / "key.csv").read_text(encoding="utf-8")
        assert key.count("lora: chosen") == key.count("lora: official") == 3

    def test_a_trial_is_not_published(self, make: Make, tmp_path: Path) -> None:
        run = make("f_")
        run.run()
        run.overrides = {"train.rank": "4"}
        folder, _ = write_results(run, settings_of(run))
        said = (
            "trial settings, has 1 subjects of 8, was run with --set train.rank, .*other pictures"
        )
        with pytest.raises(BadInputError, match=said):
            publish(folder, tmp_path, next(o.study for o in SHARED if o.study.study == "f"))

    def test_what_was_read_or_chosen_otherwise_is_not_published(
        self, make: Make, tmp_path: Path
    ) -> None:
        run = make("f_")
        run.run()
        folder, _ = write_results(run, settings_of(run))
        about = {**read_about(folder), "trial": False}
        settled = yaml.safe_load(Path(settings_of(run).path).read_text(encoding="utf-8"))

        def tried(changes: Mapping[str, Any], said: dict[str, Any], study: Study) -> None:
            (folder / "about.json").write_text(json.dumps({**about, **said}), encoding="utf-8")
            evidence = tmp_path / "evidence"
            evidence.mkdir(exist_ok=True)
            text = yaml.safe_dump({**settled, **changes})
            (evidence / "settings.yaml").write_text(text, encoding="utf-8")
            publish(folder, evidence, study)

        tried({"sude": {"lora": about["arms"]["lora: chosen"]}}, {}, run.study)
        with pytest.raises(BadInputError, match="read lora at .2. steps"):
            tried({"hosts": {"lora": {"diseased": True, "n": 400}}}, {}, run.study)
        with pytest.raises(BadInputError, match="another setting of lora"):
            tried({"sude": {"lora": {"sude.weight": 7.0}}}, {}, run.study)
        with pytest.raises(BadInputError, match="other split than"):
            tried({}, {}, run.study.model_copy(update={"split": "T"}))

    def test_a_page_is_made_from_committed_tables_again_and_again(
        self, make: Make, tmp_path: Path
    ) -> None:
        run = make("f_")
        run.run()
        folder, _ = write_results(run, settings_of(run))
        about = {**read_about(folder), "trial": False}
        (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
        evidence, page = tmp_path / "docs" / "evidence", tmp_path / "docs" / "evidence.md"
        publish(folder, evidence, run.study)
        mark = "SUMMARY (written by report_studies.py)"
        page.write_text(f"# Evidence\n\n<!-- BEGIN {mark} -->\n<!-- END SUMMARY -->\n\nBy hand.\n",
                        encoding="utf-8")  # fmt: skip
        fill_page(page, RECIPES, evidence)
        text = page.read_text(encoding="utf-8")
        assert "By hand." in text and "1 of 14 studies have been run." in text
        assert "| f | SuDe raises alignment with both | shown in pictures |" in text
        assert text.count("not run yet |") > 20 and "too few subjects |" in text
        section = text.partition("## Study f: ")[2].partition("## Study g")[0]
        assert "1 subjects of split D" in section and "| bare base |" in section
        assert "![Study f" in section and (evidence / "f" / "chart.webp").is_file()
        assert "Not run yet." in text.partition("## Study g: ")[2]
        fill_page(page, RECIPES, evidence)
        assert page.read_text(encoding="utf-8") == text

    def test_step_4_settles_the_settings(self, tmp_path: Path) -> None:
        from tests.unit.studies.helpers import made_up_table

        table = made_up_table(
            {("lora", "weak"): (0.1, 0.0), ("lora", "strong"): (0.3, -0.2)}, spread=0.001
        )
        about: dict[str, Any] = {
            "hosts": ["lora"],
            "study": {"arms": [{"name": "host"}, {"name": "weak"}, {"name": "strong"}]},
            "arms": {"lora: weak": {"sude.weight": 1.5}, "lora: strong": {"sude.weight": 6.0}},
        }
        path = tmp_path / "settings.yaml"
        assert settle(table, about, path) == {"lora": "weak"}
        assert read_settings(path).chosen("lora") == {"sude.weight": 1.5}
        other = [{**row, "host": "full"} for row in table]
        arms = {name.replace("lora", "full"): own for name, own in about["arms"].items()}
        settle(other, {**about, "hosts": ["full"], "arms": arms}, path)
        assert read_settings(path).chosen("lora") == {"sude.weight": 1.5}, "it was not run now"
        assert read_settings(path).chosen("full") == {"sude.weight": 1.5}

    def test_some_hosts_of_a_study_may_run_first(self, tmp_path: Path) -> None:
        (recipe,) = RECIPES.glob("a_*.yaml")
        hosts = command.parse_hosts("full, lora")
        order = command.StudyOrder(str(recipe), str(tmp_path), "", hosts=hosts)
        assert order.study().hosts == ["full", "lora"]
        assert load_study(recipe).hosts == "diseased"


def test_what_is_scored_or_trained_on_is_not_blacked_out(
    own_tiny_base: Callable[[], Path], tmp_path: Path
) -> None:
    """Pictures of the rungs, and of prior sets, by a base that brings a safety checker."""
    folder = own_tiny_base()
    add_safety_checker(folder, threshold=-2.0)  # it flags every picture
    order = command.StudyOrder("", str(tmp_path), "", base_model=str(folder))
    assert command.load_base_of(order).safety_checker is None


def test_of_photographs_only_animals_are_live_and_every_noun_is_read_by_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DreamBench has 9 animals (2 cats, 7 dogs); its plushies and its cartoon are things. And a
    picture that was asked for as "can" is no worse a dog for its prompt.
    """
    asked: list[Question] = []

    class Notes:
        left_out: ClassVar[dict[str, str]] = {}

        def __init__(self, *about: Any) -> None:
            pass

        def score(self, question: Question, images: Sequence[Any]) -> list[dict[str, Any]]:
            asked.append(question)
            return [{} for _ in images]

    monkeypatch.setattr(fields_module, "Judges", Notes)
    for name in protocol_file("dreambench")["subjects"]:
        write_photos(tmp_path / name, 1)
    (path,) = RECIPES.glob("h_*.yaml")
    study = quick(load_study(path, {"subjects": 30}))
    field = PhotographField(study, tmp_path, JudgeSpec(world=False))
    live = [own.subject_id for own in field.members() if own.live]
    assert len(field.members()) == 30 and len(live) == 9
    member = next(own for own in field.members() if own.subject_id == "dog")
    prompts = {}
    for noun in ("right", "wrong", "none"):
        arm = replace(BARE, noun=noun)
        jobs = [job for job in field.jobs(member, arm) if job.request.kind != "class"]
        asked.clear()
        field.score(member, arm, jobs, [Image.new("RGB", (8, 8))] * len(jobs))
        prompts[noun] = [question.prompt for question in asked]
        assert (" dog" in jobs[0].request.prompt) == (noun == "right")
    assert prompts["right"] == prompts["wrong"] == prompts["none"]
    assert "a photo of sks dog" in prompts["right"]


def test_photographs_on_a_real_base_s_path(tiny_base_folder: Path, tmp_path: Path) -> None:
    """DreamBench and published judges, all tiny: study b as it would run on Stable Diffusion."""
    data = tmp_path / "dataset"
    for name in ("dog", "vase"):
        write_photos(data / name, 2)
    write_tiny_clip(tmp_path / "clip", TOWER, image_size=64, projection_dim=12)
    judges = {
        "clip": str(tmp_path / "clip"),
        "dino": str(write_tiny_dino(tmp_path / "dino")),
        "blip": str(write_tiny_blip(tmp_path / "blip")),
    }
    (path,) = RECIPES.glob("b_*.yaml")
    order = command.StudyOrder(
        str(path), str(tmp_path / "runs"), str(write_trial_settings(tmp_path / "settings.yaml")),
        subjects=2, base_model=str(tiny_base_folder), data_dir=str(data), judges=judges,
    )  # fmt: skip
    study = quick(order.study())
    without = replace(order, judges={**judges, "blip": str(tmp_path / "nowhere")})
    with pytest.raises(BadInputError, match="BLIP: .*nowhere.*--blip"):
        PhotographField(study, data, command.published_judges(without))
    (data / "dog" / "02.jpg").write_bytes(b"no photo")  # of no use as a reference, and no matter
    field = PhotographField(study, data, command.published_judges(order))
    (data / "dog" / "02.jpg").unlink()
    run = command.study_run(order, lambda text: None, field)
    run.study = study
    run.run()
    folder, left = write_results(run, read_settings(order.settings))
    table = read_csv(folder / "table.csv")
    assert left == [] and len(table) == 2 * 6
    for row in table:
        assert {"alignment", "identity", "clip_t", "clip_i"} <= set(row)
        assert -1 <= row["alignment"] <= 1 and -1 <= row["identity"] <= 1
    assert read_about(folder)["complete"] and (folder / "sheet.webp").is_file()

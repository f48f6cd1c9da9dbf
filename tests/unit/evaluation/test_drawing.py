"""Pictures drawn and scored in this process: a tiny random base, random evaluators, real files."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dreamfleet.adapters.files import save_adapter
from dreamfleet.adapters.lora import add_lora, lora_parameters
from dreamfleet.bases import load_base
from dreamfleet.data.photos import to_png
from dreamfleet.engine.sampling import sample_images
from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.evaluation.drawing import (
    Arm,
    DrawingPlan,
    Drawn,
    Unit,
    _collected,
    draw_and_judge,
)
from dreamfleet.evaluation.evaluation_report import EvaluationPage, render_evaluation
from dreamfleet.evaluation.judges import NOT_NAMED, Judges, JudgeSpec, Question
from dreamfleet.evaluation.metrics import WorldIdentityBackbone, dino_i
from dreamfleet.evaluation.results import RESULTS, read_rows, write_rows
from dreamfleet.evaluation.scores import summarise_scores, summarise_world
from dreamfleet.evaluation.worldbench import frozen
from dreamfleet.evaluation.worldbench.plan import picture_seed, requests_for
from dreamfleet.evaluation.worldbench.summary import DIVERSITY, DRIFT, SELECTION
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.world.evaluators import load_identity_encoder
from dreamfleet.world.splits import benchmark_photo, subjects
from tests.tiny_bases import make_tiny_sd1
from tests.tiny_evaluators import make_tiny_evaluators

pytestmark = pytest.mark.heavy

SUBJECT = subjects("D")[0]
PHOTO = benchmark_photo(SUBJECT)


class Notes(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def info(self, text: str) -> None:
        self.lines.append(text)

    warn = info


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawing")


@pytest.fixture(scope="module")
def base(folder: Path) -> Path:
    return make_tiny_sd1(folder / "tiny")


@pytest.fixture(scope="module")
def evaluators(folder: Path) -> Path:
    return make_tiny_evaluators(folder / "evaluators")


@pytest.fixture(scope="module")
def adapter(base: Path, folder: Path) -> Path:
    """A LoRA that changes the pictures."""
    loaded = load_base(base)
    add_lora(loaded, rank=2, alpha=2.0, layers="attention", seed=0, train_text_encoder=False)
    for _, parameter in lora_parameters(loaded):
        torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    (folder / "adapter").mkdir()
    save_adapter(folder / "adapter", loaded)
    return folder / "adapter"


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return to_png(Image.fromarray(pixels))


def plan(base: Path, evaluators: Path | None, **changes: Any) -> DrawingPlan:
    values: dict[str, Any] = {
        "base_model": str(base),
        "base_hash": "base",
        "judges": JudgeSpec(world=True, oracle="A", evaluators=str(evaluators), required=True),
        "references": {SUBJECT.subject_id: (png(1), png(2))},
        "num_inference_steps": 1,
        "guidance_scale": 1.0,
        "scheduler": "ddim",
    }
    return DrawingPlan(**{**values, **changes})


def units(arms: list[Arm], kinds: tuple[str, ...] = ("subject", "state", "scene", "class")) -> Any:
    """One prompt of each kind for each arm."""
    requests = {r.kind: r for r in requests_for(SUBJECT, PHOTO, "sks")}
    return [
        Unit(
            arm,
            Question(
                SUBJECT.subject_id, "dog", "sks", requests[kind].prompt, kind,  # type: ignore[index]
                requests[kind].state, requests[kind].scene,  # type: ignore[index]
                (SUBJECT, PHOTO, requests[kind]),  # type: ignore[index]
            ),
            tuple(picture_seed(SUBJECT, requests[kind], i) for i in range(2)),  # type: ignore[index]
            {"photo_state": PHOTO.state},
        )
        for arm in arms
        for kind in kinds
    ]  # fmt: skip


@pytest.fixture(scope="module")
def drawn(base: Path, evaluators: Path, adapter: Path, folder: Path) -> Drawn:
    arms = [Arm(), Arm("lora", str(adapter), "hash", 7, 0)]
    # The bare base once more at the end: its adapter must be gone.
    again = units([Arm(host="base again")])
    return draw_and_judge(
        [*units(arms), *again], plan(base, evaluators), folder / "out", None, SilentProgress()
    )


def opened(folder: Path, row: Mapping[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(folder / "out" / row["picture"]))


class TestDrawing:
    def test_one_row_a_picture_with_every_judge_s_figures(self, drawn: Drawn, folder: Path) -> None:
        assert len(drawn.rows) == 3 * 4 * 2 and not drawn.failures and not drawn.left_out
        scene = next(row for row in drawn.rows if row["kind"] == "scene")
        named = ("clip_i[world-clip]", "clip_t[world-clip]", "dino_i[world-identity]", SELECTION)
        assert all(-1 <= scene[name] <= 1 for name in named)
        assert scene["aligned"] in (True, False) and "similarity" in scene
        of_class = next(row for row in drawn.rows if row["kind"] == "class")
        assert {DRIFT, DIVERSITY} <= set(of_class)
        assert not {name for name in of_class if name.startswith(("clip_", "dino_"))}
        write_rows(folder / RESULTS, drawn.rows)
        stored = read_rows(folder / RESULTS)
        assert len(stored) == len(drawn.rows)
        assert stored[0]["noise_seed"] == drawn.rows[0]["noise_seed"]

    def test_figures_are_those_of_the_metrics_themselves(
        self, drawn: Drawn, folder: Path, evaluators: Path
    ) -> None:
        rows = [row for row in drawn.rows if row["kind"] == "state" and row["host"] == "lora"]
        pictures = [Image.open(folder / "out" / row["picture"]) for row in rows]
        photos = [Image.open(io.BytesIO(png(seed))) for seed in (1, 2)]
        backbone = WorldIdentityBackbone(load_identity_encoder(evaluators))
        expected = dino_i(pictures, photos, backbone).parts
        assert [row["dino_i[world-identity]"] for row in rows] == pytest.approx(expected, abs=1e-5)

    def test_pictures_are_those_of_the_sampler(
        self, drawn: Drawn, folder: Path, base: Path
    ) -> None:
        row = drawn.rows[0]
        picture = sample_images(
            load_base(base), [row["prompt"]], [row["noise_seed"]],
            num_inference_steps=1, guidance_scale=1.0,
        )[0]  # fmt: skip
        assert np.abs(opened(folder, row).astype(int) - np.asarray(picture)).max() <= 1

    def test_the_adapter_acts_and_leaves_nothing_behind(self, drawn: Drawn, folder: Path) -> None:
        by_arm = {
            host: [opened(folder, row) for row in drawn.rows if row["host"] == host]
            for host in ("base", "lora", "base again")
        }
        assert (np.stack(by_arm["base"]) == np.stack(by_arm["base again"])).all()
        assert (np.stack(by_arm["base"]) != np.stack(by_arm["lora"])).any()

    def test_goes_on_where_it_stopped(
        self, drawn: Drawn, base: Path, evaluators: Path, folder: Path
    ) -> None:
        said = Notes()
        half = units([Arm()])
        again = draw_and_judge(half, plan(base, evaluators), folder / "out", None, said)
        assert said.lines == ["pictures: 4 of 4 prompts done before"]
        assert again.rows == drawn.rows[:8]
        part = next((folder / "out" / "parts").glob("*.json"))
        assert part.stat().st_size > 0

    def test_a_picture_that_is_gone_is_drawn_again(
        self, base: Path, evaluators: Path, tmp_path: Path
    ) -> None:
        """The report shows it: without it the same command would end in an error for ever."""
        half = units([Arm()], ("state", "class"))
        first = draw_and_judge(half, plan(base, evaluators), tmp_path, None, SilentProgress())
        picture, said = tmp_path / first.rows[0]["picture"], Notes()
        picture.unlink()
        again = draw_and_judge(half, plan(base, evaluators), tmp_path, None, said)
        assert picture.is_file() and again.rows == first.rows
        assert said.lines == ["pictures: 1 of 2 prompts done before"]

    def test_changed_settings_never_meet_old_results(self, base: Path, evaluators: Path) -> None:
        unit = units([Arm()])[0]
        first = plan(base, evaluators)
        others = [
            plan(base, evaluators, base_hash="other"),
            plan(base, evaluators, num_inference_steps=2),
            plan(base, evaluators, guidance_scale=2.0),
            plan(base, evaluators, references={SUBJECT.subject_id: (png(3),)}),
            plan(base, None),
        ]
        keys = {first.key(unit), *(other.key(unit) for other in others)}
        keys.add(first.key(units([Arm("lora", "x", "hash")])[0]))
        assert len(keys) == 7
        moved = units([Arm("lora", "elsewhere", "hash")])[0]  # the same weights in another folder
        assert first.key(moved) in keys

    def test_an_arm_without_a_picture_is_an_error(
        self, base: Path, evaluators: Path, tmp_path: Path
    ) -> None:
        arms = [Arm("gone", str(tmp_path / "gone"), "x", 9), Arm()]
        with pytest.raises(DreamfleetError, match=r"scored for gone, 9 steps: .*gone"):
            draw_and_judge(
                units(arms, ("state",)), plan(base, evaluators), tmp_path, None, SilentProgress()
            )

    def test_a_subject_that_an_arm_lost_is_dropped_from_all(
        self, base: Path, evaluators: Path, adapter: Path, tmp_path: Path
    ) -> None:
        good = units([Arm(), Arm("lora", str(adapter), "hash")], ("state",))
        lost = units([Arm(), Arm("lora", str(tmp_path / "gone"), "x")], ("state",))
        lost = [replace(u, question=replace(u.question, subject_id="other")) for u in lost]
        found = draw_and_judge(
            [*good, *lost], plan(base, evaluators), tmp_path, None, SilentProgress()
        )
        assert {(row["host"], row["subject"]) for row in found.rows} == {
            ("base", SUBJECT.subject_id), ("lora", SUBJECT.subject_id)
        }  # fmt: skip
        assert found.dropped == ("other",)
        assert list(found.failures) == [str(tmp_path / "gone")]

    def test_what_a_judge_could_not_see_is_done_again_once_it_can(
        self, base: Path, evaluators: Path, tmp_path: Path
    ) -> None:
        half = units([Arm()], ("state",))
        judges = plan(base, evaluators)
        draw_and_judge(half, judges, tmp_path, None, SilentProgress())
        (part,) = (tmp_path / "parts").glob("*.json")
        stored = json.loads(part.read_text())
        for left_out, done_before in (({"CLIP": "offline"}, 0), ({"DINO": NOT_NAMED}, 1)):
            part.write_text(json.dumps({**stored, "left_out": left_out}))
            said = Notes()
            draw_and_judge(half, judges, tmp_path, None, said)
            assert len(said.lines) == done_before

    def test_a_judge_that_one_actor_could_not_load_is_left_out_of_all_arms(
        self, base: Path, evaluators: Path, adapter: Path, tmp_path: Path
    ) -> None:
        both = units([Arm(), Arm("lora", str(adapter), "hash", 7)], ("state", "class"))
        judges = plan(base, evaluators)
        whole = draw_and_judge(both, judges, tmp_path, None, SilentProgress())
        keys, parts = [judges.key(unit) for unit in both], tmp_path / "parts"
        assert _collected(keys, both, parts, {}).rows == whole.rows
        stored = json.loads((parts / f"{keys[0]}.json").read_text())  # the bare base's states
        rows = [{n: v for n, v in r.items() if not n.startswith("clip_")} for r in stored["rows"]]
        edited = json.dumps({"rows": rows, "left_out": {"CLIP": "timed out"}})
        (parts / f"{keys[0]}.json").write_text(edited)
        found = _collected(keys, both, parts, {})
        assert found.left_out == {"CLIP": "timed out"} and len(found.rows) == len(whole.rows)
        first, *_ = summarise_scores(found.rows)["against_base"]
        assert not [name for name in first["differences"] if name.startswith("clip_")]
        assert {"dino_i[world-identity]", DRIFT, DIVERSITY} <= set(first["differences"])

    def test_a_lora_file_draws_as_its_folder(
        self, drawn: Drawn, base: Path, evaluators: Path, adapter: Path, folder: Path
    ) -> None:
        file = next(adapter.glob("*.safetensors"))
        arms = [Arm("file", str(file), "hash", 7, 0), Arm("lora", str(adapter), "hash", 7, 0)]
        found = draw_and_judge(
            units(arms, ("state",)), plan(base, evaluators), folder / "out", None, SilentProgress()
        )
        one, two = (opened(folder, found.rows[place]) for place in (0, 2))
        assert (one == two).all()

    def test_other_weights_in_a_judge_s_folder_are_another_judge(self, tmp_path: Path) -> None:
        prints = set()
        for content in (b"one", b"two"):
            (tmp_path / "model.safetensors").write_bytes(content)
            prints.add(JudgeSpec(world=False, clip=str(tmp_path)).fingerprint())
        assert len(prints) == 2

    def test_an_edited_world_is_another_judge(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = JudgeSpec(world=True).fingerprint()
        assert before == JudgeSpec(world=True).fingerprint()
        monkeypatch.setattr(frozen, "world_hash", lambda: "edited")
        assert before != JudgeSpec(world=True).fingerprint()


class TestJudges:
    def test_what_is_missing_is_left_out_and_said(self, tmp_path: Path) -> None:
        judges = Judges(JudgeSpec(world=True, oracle="A", evaluators=str(tmp_path)), {})
        assert set(judges.left_out) == {"CLIP", "identity encoder", "oracle"}
        assert "no model.safetensors" in judges.left_out["oracle"]

    def test_a_benchmark_refuses_to_go_without(self, tmp_path: Path) -> None:
        spec = JudgeSpec(world=True, oracle="B", evaluators=str(tmp_path), required=True)
        with pytest.raises(BadInputError, match="model.safetensors"):
            Judges(spec, {})

    def test_without_true_pictures_the_oracle_gives_alignment(self, evaluators: Path) -> None:
        judges = Judges(JudgeSpec(world=True, oracle="A", evaluators=str(evaluators)), {})
        question = Question("rex", "dog", "sks", "a photo of sks running dog", "state", "running")
        image = Image.open(io.BytesIO(png(1)))
        rows = judges.score(question, [image, image])
        assert {row["alignment[oracle-A]"] for row in rows} <= {0.0, 1.0}
        assert "dino_i[world-identity]" not in rows[0]  # no photos to compare with


class TestSummaryAndPage:
    def test_world_summary_has_the_protocol_s_figures(self, drawn: Drawn) -> None:
        rows = [row for row in drawn.rows if row["host"] != "base again"]
        summary = summarise_world(rows, None)
        base, lora = summary["table"]
        assert (base["host"], lora["host"], lora["steps"]) == ("base", "lora", 7)
        for name in ("alignment", "identity", "copy_rate", SELECTION, DIVERSITY, DRIFT):
            assert name in lora["means"], name
        assert "clip_t[world-clip]" in lora["means"]
        pairs = summary["against_base"][0]["differences"]
        assert pairs[DRIFT]["num_subjects"] == 1 and pairs[DRIFT]["interval"] is None

    def test_page_is_one_file_with_pictures_of_both(self, drawn: Drawn, folder: Path) -> None:
        rows = [row for row in drawn.rows if row["host"] != "base again"]
        html = render_evaluation(
            EvaluationPage(
                heading="<b>Biscuit</b>",
                kicker="attributes",
                lead="Five attributes.",
                summary=summarise_scores(rows),
                rows=rows,
                folder=folder / "out",
                photos={SUBJECT.subject_id: (png(1),)},
                warnings=("These figures mean nothing here.",),
                settings={"sampler": "ddim"},
            )
        )
        assert "&lt;b&gt;Biscuit" in html and "<b>Biscuit" not in html
        assert "These figures mean nothing here." in html
        # state and scene, two pictures each, with and without; and the photo
        assert html.count("data:image/webp") == 2 * 2 * 2 + 1
        assert 'class="chart"' in html and "too few for an interval" in html
        assert "<script" not in html and "http" not in html.replace("http-equiv", "")
        assert len(html) < 6e6

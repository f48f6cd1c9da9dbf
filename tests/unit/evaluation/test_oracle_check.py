"""The oracle's check against labels, and the evidence page, on made-up results."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import (
    RESULTS,
    SUMMARY,
    read_summary,
    write_rows,
    write_summary,
)
from dreamfleet.evaluation.worldbench.evidence import BEGIN, END, fill_page
from dreamfleet.evaluation.worldbench.guidance import write_gate
from dreamfleet.evaluation.worldbench.oracle_check import (
    KEY,
    LABELS,
    WORDS,
    draw_sample,
    import_labels,
    label_app,
    score_labels,
)

READING = {"seen_class": "dog", "seen_state": "running", "seen_scene": "snow"}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A benchmark's folder: 30 pictures of the base, 6 of a host."""
    folder = tmp_path / "run"
    folder.mkdir()
    rows = []
    for host, count in (("base", 30), ("lora", 6)):
        for i in range(count):
            name = f"{host}-{i}.png"
            Image.new("RGB", (8, 8), (i, 0, 0)).save(folder / name)
            rows.append({"host": host, "steps": i % 2 + 1 if host == "lora" else 0,
                         "subject": "D00-dog",
                         "kind": "state" if i % 2 else "scene", "picture": name,
                         **READING})  # fmt: skip
    rows.append({**rows[0], "kind": "class"})
    write_rows(folder / RESULTS, rows)
    return folder


def fill(folder: Path, **changes: dict[str, str]) -> None:
    """Label every picture as the oracle read it, but those in `changes`."""
    rows = [{"id": row["id"], "class": "dog", "state": "running", "scene": "snow",
             **changes.get(row["id"], {})} for row in read(folder / KEY)]  # fmt: skip
    with (folder / LABELS).open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "class", "state", "scene"])
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> list[dict[str, Any]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestSample:
    def test_arms_take_equal_parts_and_pictures_tell_nothing(
        self, run: Path, tmp_path: Path
    ) -> None:
        assert draw_sample([run], tmp_path / "check", 12) == 12
        key = read(tmp_path / "check" / KEY)
        assert sorted(row["host"] for row in key) == ["base"] * 6 + ["lora"] * 6
        assert [row["host"] for row in key] != sorted(row["host"] for row in key)
        assert (tmp_path / "check" / "sheet-00.png").is_file()
        assert all(not row["class"] for row in read(tmp_path / "check" / LABELS))
        with pytest.raises(BadInputError, match="there already"):
            draw_sample([run], tmp_path / "check", 12)

    def test_the_same_lots_are_drawn_again(self, run: Path, tmp_path: Path) -> None:
        for name in ("one", "two"):
            draw_sample([run], tmp_path / name, 20, seed=3)
        assert read(tmp_path / "one" / KEY) == read(tmp_path / "two" / KEY)
        draw_sample([run], tmp_path / "three", 20, seed=4)
        assert read(tmp_path / "one" / KEY) != read(tmp_path / "three" / KEY)


class TestScore:
    @pytest.fixture
    def check(self, run: Path, tmp_path: Path) -> Path:
        draw_sample([run], tmp_path / "check", 12)
        return tmp_path / "check"

    def test_full_agreement_passes(self, check: Path) -> None:
        fill(check)
        result = score_labels(check)
        assert (result["agreement"], result["spread"], result["passed"]) == (1.0, 0.0, True)

    def test_errors_of_one_arm_fail_though_agreement_is_high(self, check: Path) -> None:
        wrong = next(row["id"] for row in read(check / KEY) if row["host"] == "lora")
        fill(check, **{wrong: {"class": "unreadable"}})
        result = score_labels(check)
        assert result["agreement"] == pytest.approx(11 / 12)  # above 90 %
        assert result["error_rate_by_arm"] == {"base": 0.0, "lora": pytest.approx(1 / 6)}
        assert result["passed"] is False
        assert result["confusions"][0]["label"] == "unreadable"

    def test_drawings_are_scored_together(self, run: Path, check: Path, tmp_path: Path) -> None:
        draw_sample([run], tmp_path / "more", 4, seed=1)
        wrong = next(row["id"] for row in read(tmp_path / "more" / KEY) if row["host"] == "lora")
        fill(check)
        fill(tmp_path / "more", **{wrong: {"class": "unreadable"}})
        result = score_labels(check, tmp_path / "more")
        assert result["num_by_arm"] == {"base": 8, "lora": 8}
        assert result["error_rate_by_arm"] == {"base": 0.0, "lora": pytest.approx(1 / 8)}
        assert (tmp_path / "more" / "agreement.json").is_file()

    def test_only_what_was_asked_must_agree(self, check: Path) -> None:
        by_kind = {row["kind"]: row["id"] for row in read(check / KEY)}
        fill(check, **{by_kind["scene"]: {"state": "sitting"}, by_kind["state"]: {"scene": "city"}})
        result = score_labels(check)
        assert result["agreement"] == 1.0
        assert result["by_question"]["state"] == pytest.approx(11 / 12)

    def test_missing_and_unknown_labels_are_named(self, check: Path) -> None:
        with pytest.raises(BadInputError, match="expected one of dog"):
            score_labels(check)
        name = next(row["id"] for row in read(check / KEY) if row["kind"] == "state")
        fill(check, **{name: {"state": "flying"}})
        with pytest.raises(BadInputError, match=f"picture {name}: state 'flying'"):
            score_labels(check)


class TestLabelsFromAFile:
    """Labels given from the sheets, without the page."""

    @pytest.fixture
    def check(self, run: Path, tmp_path: Path) -> Path:
        draw_sample([run], tmp_path / "check", 12)
        return tmp_path / "check"

    def given(self, tmp_path: Path, *lines: str, head: str = "id,class,state,scene") -> Path:
        path = tmp_path / "given.csv"
        path.write_text("\n".join([head, *lines]) + "\n")
        return path

    def test_some_then_the_rest(self, check: Path, tmp_path: Path) -> None:
        first = self.given(tmp_path, "0,dog,running,snow", "001,unreadable,,", "2,,,")
        assert import_labels(check, first) == (2, 10)
        with pytest.raises(BadInputError, match="picture 002: class ''"):
            score_labels(check)
        rest = self.given(tmp_path, *(f"{n}, dog, running, snow" for n in range(1, 12)))
        assert import_labels(check, rest) == (11, 0)
        assert score_labels(check)["agreement"] == 1.0

    def test_every_wrong_line_is_named_and_none_is_taken(self, check: Path, tmp_path: Path) -> None:
        wrong = self.given(
            tmp_path, "0,dog,running,snow", "0,dog,running,snow", "1,dog,flying,snow",
            "2,dog,running,", "3,dog,,snow", "99,dog,running,snow", "4,hound,running,snow",
        )  # fmt: skip
        with pytest.raises(BadInputError) as error:
            import_labels(check, wrong)
        lines = str(error.value).splitlines()
        assert [line.partition(":")[0] for line in lines] == [f"line {n}" for n in range(3, 9)]
        assert "given twice" in lines[0] and "no such picture" in lines[4]
        assert all(not row["class"] for row in read(check / LABELS))

    def test_files_that_are_no_labels(self, check: Path, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="expected the columns id, class"):
            import_labels(check, self.given(tmp_path, "1,dog", head="number,class"))
        with pytest.raises(BadInputError, match="give a CSV file of labels"):
            import_labels(check, tmp_path / "nothing.csv")

    def test_sheets_show_every_picture_large_and_the_words_are_told(self, check: Path) -> None:
        with Image.open(check / "sheet-00.png") as sheet:
            assert sheet.size == (5 * 256, 5 * (256 + 24))
        words = (check / WORDS).read_text()
        assert "dog: standing" in words and "beach" in words and "unreadable" in words


class TestPage:
    def test_labels_go_into_the_file_one_by_one(self, run: Path, tmp_path: Path) -> None:
        check = tmp_path / "check"
        draw_sample([run], check, 2)
        with TestClient(label_app(check)) as client:
            assert "0 of 2 labelled" in client.get("/").text
            assert client.get("/picture/000").headers["content-type"] == "image/png"
            assert client.get("/picture/..%2fkey.csv").status_code == 404
            wrong = {"id": "000", "seen": "dog/flying", "scene": "snow"}
            assert client.post("/label", data=wrong).status_code == 400
            for scene in ("", "unreadable"):
                no_scene = {"id": "000", "seen": "dog/running", "scene": scene}
                assert client.post("/label", data=no_scene).status_code == 400
            assert 'name="scene" required' in client.get("/").text
            right = {"id": "000", "seen": "dog/running", "scene": "snow"}
            assert "1 of 2 labelled" in client.post("/label", data=right).text
            last = client.post("/label", data={"id": "001", "seen": "unreadable", "scene": ""}).text
            assert "All labelled" in last and "lora" not in last
        assert [row["class"] for row in read(check / LABELS)] == ["dog", "unreadable"]
        assert score_labels(check)["num_pictures"] == 2


class TestEvidencePage:
    def test_the_measured_block_is_replaced(self, tmp_path: Path) -> None:
        write_gate(
            {"guidance": 3.0, "scored_states": {"dog": ["running"]}, "images_per_state": 16,
             "alignment_by_guidance": {"1.5": 0.5, "3.0": 0.9},
             "alignment_by_state": {"dog": {"running": 0.9, "ball": 0.2}},
             "frozen": {"base": "a" * 64, "sampler": "ddim, 25 steps"}},
            tmp_path / "base.json",
        )  # fmt: skip
        ladder = tmp_path / "ladder"
        (ladder / "grids").mkdir(parents=True)
        Image.new("RGB", (40, 20)).save(ladder / "grids" / "D00-dog-lora.png")
        means = {"alignment": 0.5, "identity": float("nan")}
        write_summary(
            ladder / SUMMARY,
            {"subjects": ["D00-dog"], "settings": {"split": "D", "training_seed": 0,
             "images_per_prompt": 4},
             "table": [{"host": "base", "steps": 0, "means": {"alignment": 0.9}},
                       {"host": "lora", "steps": 200, "means": means}],
             "ladders": {"lora": {"learnt_at": 200, "diseased": True, "at": 200,
                                  "losses": {"200": 0.4}}}},
        )  # fmt: skip
        page = tmp_path / "docs" / "evidence.md"
        page.parent.mkdir()
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        fill_page(page, tmp_path / "base.json", ladder)
        text = page.read_text()
        assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
        assert f"Frozen: base `{'a' * 16}`, sampler `ddim, 25 steps`." in text
        assert "Chosen: 3." in text and "Not scored: dog: ball." in text
        assert "| lora | 200 | 0.500 |" in text
        assert "N* = 200; diseased, N = 200. Alignment lost: 0.400 at 200." in text
        assert (page.parent / "images" / "evidence" / "D00-dog-lora.webp").is_file()
        fill_page(page, tmp_path / "base.json", ladder)
        assert page.read_text() == text
        summary = read_summary(ladder / SUMMARY)
        write_summary(ladder / SUMMARY, {**summary, "frozen": {"base": "b" * 64}})
        with pytest.raises(BadInputError, match="measured with other things"):
            fill_page(page, tmp_path / "base.json", ladder)

    def test_a_page_without_marks_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(BadInputError, match="BEGIN MEASURED"):
            fill_page(tmp_path / "no.md", tmp_path / "b.json", tmp_path)

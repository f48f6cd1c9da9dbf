"""The page of the confirmation, made from a made-up table."""

from __future__ import annotations

import json
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.studies.figures import draw_chart
from dreamfleet.evaluation.studies.page import Evidence, fill_page, section_lines
from dreamfleet.evaluation.studies.recipe import Claim, load_study
from dreamfleet.evaluation.studies.report import publish
from dreamfleet.evaluation.studies.settings import write_settings
from dreamfleet.evaluation.studies.tables import write_csv
from tests.unit.studies.helpers import RECIPES, ROOT, made_up_table

EFFECTS = {
    ("lora-prior", "chosen"): (0.10, 0.0),
    ("lora-prior", "official"): (0.10, -0.2),
    ("full-prior", "chosen"): (0.0, 0.0),
    ("full-prior", "official"): (-0.1, 0.0),
}
PAPERS = {"sude.weight": 0.4, "sude.teacher": "current", "sude.weighting": "official"}


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    """Study a as if it had been run."""
    folder = tmp_path / "runs" / "a"
    hosts = ["lora-prior", "full-prior"]
    write_csv(folder / "table.csv", made_up_table(EFFECTS, spread=0.02, seed=1))
    write_csv(
        folder / "rho.csv",
        [{"host": "lora-prior", "arm": "chosen", "steps": step, "t_from": t, "rho": rho,
          "hinge_share": share, "samples": count}
         for step, t, rho, share, count in [(50, 0, 0.5, 1.0, 3), (100, 0, 0.9, 0.6, 1),
                                            (50, 250, 1.5, 0.0, 2)]],
    )  # fmt: skip
    study = load_study(RECIPES / "a_primary_claim.yaml")
    arms = {f"{host}: official": PAPERS for host in hosts}
    arms |= {f"{host}: chosen": {**PAPERS, "sude.teacher": "pretrained"} for host in hosts}
    about: dict[str, Any] = {
        "study": study.model_dump(mode="json", by_alias=True), "trial": False, "complete": True,
        "photographs": False, "hosts": hosts, "arms": arms, "sheets": {},
        "rungs": {host: [400] for host in hosts}, "hardware": "2 CPU cores", "date": "2026-12-01",
        "cpu_s": [{"host": "base", "train_s": 60.0, "draw_s": 30.0, "score_s": 30.0}] * 6,
        "failures": [{"subject": "C03", "host": "lora-prior", "arm": "x", "steps": 4,
                      "error": "NaN"}],
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def published(finished: Path, tmp_path: Path) -> str:
    """The project's page with study a taken in."""
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(ROOT / "docs" / "evidence.md", docs / "evidence.md")
    publish(finished, docs / "evidence", load_study(RECIPES / "a_primary_claim.yaml"))
    fill_page(docs / "evidence.md", RECIPES, docs / "evidence")
    return (docs / "evidence.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("count", [0, 1, 2, 3])
def test_a_chart_has_a_panel_for_each_host(tmp_path: Path, count: int) -> None:
    hosts = ["lora", "full", "lora-prior"][:count]
    table = made_up_table({(host, "chosen"): (0.1, 0.0) for host in hosts})
    base = {**made_up_table({("x", "chosen"): (0.0, 0.0)})[0], "host": "base", "arm": "base"}
    rho = [{"host": host, "arm": "chosen", "steps": 50, "t_from": 0, "rho": 0.5} for host in hosts]
    study = load_study(RECIPES / "a_primary_claim.yaml")
    draw_chart(study, [base, *table], rho, tmp_path / "chart.webp")
    with Image.open(tmp_path / "chart.webp") as image:
        assert image.height > 300 * -(-(max(1, count) + bool(rho)) // 2)


def test_what_sweeps_read_by_how_much_likeness_may_be_lost(finished: Path, tmp_path: Path) -> None:
    rows = [("A", 1, 0.0, 0.9), ("A", 0, 0.4, 0.85), ("A", 0, 1.0, 0.5), ("B", 1, 0.2, 0.8),
            ("B", 0, 0.8, 0.5)]  # fmt: skip
    names = ("subject", "is_end_of_host", "alignment", "fidelity")
    readings = [{"arm": "S", **dict(zip(names, row, strict=True))} for row in rows]
    write_csv(finished / "readings.csv", readings)
    text = published(finished, tmp_path)
    assert "| sweep | host | 0.03 lost | 0.1 lost | 0.2 lost | 0.3 lost | 0.5 lost |" in text
    assert "| S | 0.100 | 0.100 | 0.300 | 0.300 | 0.600 | 0.900 |" in text


def test_the_primary_claim_on_top_and_in_its_section(finished: Path, tmp_path: Path) -> None:
    text = published(finished, tmp_path)
    summary = text.partition("<!-- BEGIN SUMMARY")[2].partition("<!-- END SUMMARY")[0]
    lines = [line for line in summary.splitlines() if line.startswith("| a |")]
    verdicts = {line.split("|")[2].split(" raises")[0].strip(): line.split("|")[6].strip()
                for line in lines if "raises alignment, at" in line}  # fmt: skip
    assert verdicts == {
        "a variant of SuDe (chosen) on lora-prior": "holds",
        "SuDe (official) on lora-prior": "refuted",
        "a variant of SuDe (chosen) on full-prior": "undecided",
        "SuDe (official) on full-prior": "refuted",
    }
    section = text.partition("## Study a: ")[2].partition("## Study b")[0]
    assert "24 subjects of split C, 2 training seeds, oracle B, confirmation" in section
    assert "| lora-prior | chosen (variant) | +0.1" in section
    assert "12.0 CPU minutes a subject and seed" in section
    assert "| lora-prior: chosen | 0.60, 90% | 1.50, 0% |" in section
    assert "C03, lora-prior: x broke down before 4 steps: NaN" in section
    assert (tmp_path / "docs" / "evidence" / "a" / "chart.webp").stat().st_size < 100_000


def test_a_host_whose_likeness_no_setting_kept(finished: Path, tmp_path: Path) -> None:
    effects = {name: own for name, own in EFFECTS.items() if name != ("full-prior", "chosen")}
    table = made_up_table(effects, spread=0.02, seed=1)
    lost = next(r for r in table if (r["host"], r["arm"]) == ("lora-prior", "official"))
    table.remove(lost)  # its training broke down
    write_csv(finished / "table.csv", table)
    text = published(finished, tmp_path)
    section = text.partition("## Study a: ")[2].partition("## Study b")[0]
    assert "no setting of SuDe kept the likeness in step 4: full-prior: chosen." in section
    assert "| lora-prior | official, without 1 subjects |" in section
    assert "nothing to compare" in section and "not run yet" not in section.lower()


def test_step_4_says_what_it_chose(tmp_path: Path) -> None:
    study = load_study(RECIPES / "step4.yaml")
    names = [arm.name for arm in study.arms]
    table = made_up_table({("lora", names[1]): (0.1, 0.0), ("full", names[2]): (0.3, -0.2)},
                          spread=0.001)  # fmt: skip
    about = {"study": study.model_dump(mode="json", by_alias=True), "hosts": ["lora", "full"],
             "rungs": {}, "cpu_s": [], "hardware": "", "date": ""}  # fmt: skip
    own = Evidence(study, RECIPES / "step4.yaml", tmp_path, table, about)
    assert f"**Chosen.** lora: {names[1]}; full: no setting keeps the likeness." in section_lines(
        own, tmp_path
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"trial": True}, "trial settings"),
        ({"complete": False}, "not finished"),
        ({"photographs": True}, "photographs"),
        ({"study": {"subjects": 3, "seeds": 2}}, "3 subjects of 24"),
        ({"overrides": {"train.rank": "4"}}, "was run with --set train.rank"),
        ({"base": "another"}, "on a base that is not the one that .*settings.yaml has frozen"),
        ({"guidance": 7.5}, "at guidance 7.5, and .*settings.yaml says 3"),
        (
            {"study": {"subjects": 24, "seeds": 2, "hosts": "diseased", "oracle": "A"}},
            "with other oracle than the recipe has now",
        ),
    ],
)
def test_what_may_not_be_published(
    finished: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    about = json.loads((finished / "about.json").read_text()) | change
    (finished / "about.json").write_text(json.dumps(about), encoding="utf-8")
    hosts = {host: {"diseased": True, "n": steps[0]} for host, steps in about["rungs"].items()}
    frozen = {"base": "the frozen one"}
    write_settings(tmp_path / "settings.yaml", guidance=3.0, frozen=frozen, hosts=hosts)
    with pytest.raises(BadInputError, match=said):
        publish(finished, tmp_path, load_study(RECIPES / "a_primary_claim.yaml"))


def test_a_claim_says_how_few_subjects_it_rests_on(tmp_path: Path) -> None:
    loaded = load_study(RECIPES / "f_state_and_scene.yaml")
    study = loaded.model_copy(update={"claims": [
        Claim(claim="c", figure="alignment", arm="chosen", against="host"),
        Claim(claim="l", figure="alignment", arm="chosen", against="host", subjects="live"),
    ]})  # fmt: skip
    table = made_up_table({("lora", "chosen"): (0.2, 0.0)}, subjects=12, spread=0.001)
    about = {"study": {**study.model_dump(), "subjects": 12}, "hosts": ["lora"], "rungs": {},
             "cpu_s": [], "hardware": "", "date": ""}  # fmt: skip
    lines = section_lines(Evidence(study, RECIPES / "f.yaml", tmp_path, table, about), tmp_path)
    whole, live = (next(line for line in lines if line.startswith(f"| {name} |")) for name in "cl")
    assert "| +0.2" in whole and "subjects |" not in whole
    assert "| < 0.001 |" in whole, "no p value is 0"
    assert " (6 subjects) |" in live


def test_a_folder_to_take_in_from_needs_a_study(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "pipelines" / "report_studies.py"))
    page = tmp_path / "page.md"  # not there: nothing of the shipped one is touched
    found = CliRunner().invoke(script["main"], ["--from", str(tmp_path), "--docs", str(page)])
    assert found.exit_code == 2 and "name the studies to take in (--study), too" in found.output


def test_a_page_without_marks_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("# Evidence\n", encoding="utf-8")
    with pytest.raises(BadInputError, match="BEGIN SUMMARY"):
        fill_page(tmp_path / "page.md", RECIPES, tmp_path)


def test_the_shipped_page_is_what_its_tables_make(tmp_path: Path) -> None:
    """Nothing between the marks is written by hand."""
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    fill_page(tmp_path / "docs" / "evidence.md", RECIPES, tmp_path / "docs" / "evidence")
    made = (tmp_path / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert made == (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")

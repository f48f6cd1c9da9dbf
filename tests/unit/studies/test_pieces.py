"""The confirmation taken in piece by piece: the same page in the end, and honest before."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.statistics import holm
from dreamfleet.evaluation.studies.claims import primary_results
from dreamfleet.evaluation.studies.page import begin, end, fill_page
from dreamfleet.evaluation.studies.pieces import read_piece
from dreamfleet.evaluation.studies.recipe import load_study
from dreamfleet.evaluation.studies.report import publish
from dreamfleet.evaluation.studies.settings import write_settings
from dreamfleet.evaluation.studies.tables import write_csv
from tests.unit.studies.helpers import RECIPES, made_up_table

HOSTS = ("lora", "full", "lora-prior")
TABLE = made_up_table(
    {(host, arm): (0.03, 0.0) for host in HOSTS for arm in ("chosen", "official")}, seed=3
)
BASE = [
    {**row, "host": "base", "arm": "base", "rung": 0, "steps": 0, "seeds": 1}
    for row in TABLE
    if (row["host"], row["arm"]) == ("lora", "host")
]
EVEN, ODD = [f"C{i:02d}" for i in range(0, 24, 2)], [f"C{i:02d}" for i in range(1, 24, 2)]
RECIPE = load_study(RECIPES / "a_primary_claim.yaml")


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """Below docs, with settings and an empty page."""
    place = tmp_path / "docs" / "evidence"
    place.mkdir(parents=True)
    hosts = {host: {"diseased": True, "n": 400} for host in HOSTS}
    write_settings(place / "settings.yaml", guidance=3.0, frozen={}, hosts=hosts)
    (tmp_path / "docs" / "evidence.md").write_text(f"{begin('SUMMARY')}\n{end('SUMMARY')}\n")
    return place


def take_in(
    evidence: Path, hosts: Sequence[str], subjects: Sequence[str] = (*EVEN, *ODD), **said: Any
) -> None:
    """Publish what a run of these hosts and subjects would leave."""
    folder = evidence.parents[1] / "-".join(hosts) / str(len(subjects)) / subjects[0]
    rows = [row for row in (*BASE, *TABLE)
            if row["host"] in ("base", *hosts) and row["subject"] in subjects]  # fmt: skip
    write_csv(folder / "table.csv", rows)
    rho = [
        {"host": host, "arm": "chosen", "steps": 50, "t_from": 0, "rho": len(subjects) / 10,
         "hinge_share": 0.5, "samples": 50 * len(subjects)}
        for host in hosts
    ]  # fmt: skip
    write_csv(folder / "rho.csv", rho)
    about: dict[str, Any] = {
        "study": {**RECIPE.model_dump(mode="json", by_alias=True), "hosts": list(hosts)},
        "trial": False, "complete": True, "photographs": False, "hosts": list(hosts),
        "arms": {f"{host}: {arm}": {"sude.weight": 0.4} for host in hosts
                 for arm in ("chosen", "official")},
        "rungs": {host: [400] for host in hosts}, "base": "b", "judges": "j", "guidance": 3.0,
        "hardware": "2 CPU cores", "date": "2026-12-01",
        "cpu_s": [{"host": host, "arm": "host", "train_s": float(len(subjects)), "draw_s": 0.0,
                   "score_s": 0.0} for host in ("base", *hosts)],
        "failures": [],
    }  # fmt: skip
    (folder / "about.json").write_text(json.dumps({**about, **said}), encoding="utf-8")
    if "C00" in subjects:
        Image.new("RGB", (4, 4)).save(folder / "sheet.webp")
    settings = evidence / "settings.yaml"
    write_settings(settings, sude={host: {"sude.weight": 0.4} for host in HOSTS})
    publish(folder, evidence, RECIPE)


def page_of(evidence: Path) -> str:
    """The section of study a."""
    page = evidence.parent / "evidence.md"
    fill_page(page, RECIPES, evidence)
    return page.read_text(encoding="utf-8").partition("## Study a: ")[2].partition("## ")[0]


def test_pieces_make_what_one_run_makes(evidence: Path) -> None:
    take_in(evidence, HOSTS)
    whole, page = read_piece(evidence / "a"), page_of(evidence)
    for path in (evidence / "a").iterdir():
        path.unlink()
    take_in(evidence, ["lora"])
    take_in(evidence, ["lora-prior"], ODD)
    take_in(evidence, ["full"])
    take_in(evidence, ["lora-prior"], EVEN)
    pieces = read_piece(evidence / "a")
    assert {str(sorted(row.items())) for row in pieces.table} == {
        str(sorted(row.items())) for row in whole.table
    }
    assert len(pieces.table) == len(whole.table), "the bare base is there once"
    assert [row["host"] for row in pieces.rho] == ["lora", "lora-prior", "full"]
    assert pieces.rho[1]["samples"] == 1200 and pieces.rho[1]["rho"] == pytest.approx(1.2)
    assert {row["host"]: row["train_s"] for row in pieces.about["cpu_s"]} == {
        "base": 24.0, "lora": 24.0, "lora-prior": 12.0, "full": 24.0
    }  # fmt: skip
    lines, now = page.splitlines(), page_of(evidence).splitlines()
    tested = [line for line in lines if line.startswith("| lora-prior | chosen")]
    assert tested and tested[0] in now
    assert not any("ot run yet" in line or "not shown" in line for line in now)
    assert sorted(path.name for path in (evidence / "a").glob("sheet*")) == [
        "sheet-full.webp", "sheet-lora-prior.webp", "sheet.webp"
    ]  # fmt: skip


def test_until_then_hosts_to_come_count_and_halves_are_not_shown(evidence: Path) -> None:
    take_in(evidence, ["lora-prior"], EVEN)
    text = page_of(evidence)
    assert "Not run yet on lora, full.\nOn lora-prior 12 subjects are done, and not shown" in (
        text.replace(" On lora-prior", "\nOn lora-prior")
    )
    assert "| alignment |" not in text
    take_in(evidence, ["full"])
    text = page_of(evidence)
    assert "Not run yet on lora. On lora-prior 12 subjects are done" in text
    assert "| full | chosen (variant) | +0." in text and "| lora-prior | chosen |  |  |" in text
    assert text.count("| not run yet |") == 4 + 2 * len(RECIPE.claims)
    piece = read_piece(evidence / "a").whole()
    alone = primary_results(piece.table, ["full"])
    counted = primary_results(piece.table, ["full", "lora", "lora-prior"])
    ps = {own.setting: own.p for own in alone if own.p is not None}
    expected = holm({**ps, "b": 1.0, "c": 1.0, "d": 1.0, "e": 1.0})
    assert [own.p_holm for own in counted[:2]] == [expected["chosen"], expected["official"]]
    assert all(own.verdict == "not run yet" for own in counted[2:])
    assert [own.p_holm for own in alone] != [own.p_holm for own in counted[:2]]


def test_a_host_run_again_takes_its_place(evidence: Path) -> None:
    take_in(evidence, ["lora", "full"])
    take_in(evidence, ["lora"], date="2026-12-05")
    found = read_piece(evidence / "a")
    assert found.hosts == ["lora", "full"] and len(found.subjects("lora")) == 24
    assert len([row for row in found.table if row["host"] == "lora"]) == 72
    assert [row["samples"] for row in found.rho] == [1200, 1200]


@pytest.mark.parametrize(
    ("subjects", "said", "message"),
    [
        (EVEN[:3], {}, "C00, C02, C04 … are committed already, and others that this piece has not"),
        (ODD, {"base": "other"}, "what is committed has other base than this piece"),
        (
            ODD,
            {"arms": {"lora: chosen": {"sude.weight": 0.4}, "lora: official": {}}},
            r"other arms \(lora: official\)",
        ),
    ],
)
def test_what_does_not_fit_what_is_there(
    evidence: Path, subjects: list[str], said: dict[str, Any], message: str
) -> None:
    take_in(evidence, ["lora"], EVEN)
    before = (evidence / "a" / "table.csv").read_bytes()
    with pytest.raises(BadInputError, match=message):
        take_in(evidence, ["lora"], subjects, **said)
    assert (evidence / "a" / "table.csv").read_bytes() == before

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
FIRST, REST = [f"C{i:02d}" for i in range(8)], [f"C{i:02d}" for i in range(8, 24)]
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
    evidence: Path, hosts: Sequence[str], subjects: Sequence[str] = (*FIRST, *REST), **said: Any
) -> None:
    """Publish what a run of these hosts and subjects would leave."""
    folder = evidence.parents[1] / "-".join(hosts) / str(len(subjects)) / subjects[0]
    shift = said.pop("shift", 0.0)
    rows = [{**row, "alignment": row["alignment"] + shift} for row in (*BASE, *TABLE)
            if row["host"] in ("base", *hosts) and row["subject"] in subjects]  # fmt: skip
    write_csv(folder / "table.csv", rows)
    rho = [
        {"host": host, "arm": "chosen", "steps": 50, "t_from": 0, "rho": len(subjects) / 10,
         "hinge_share": 0.5, "samples": 50 * len(subjects)}
        for host in hosts
    ]  # fmt: skip
    write_csv(folder / "rho.csv", rho)
    said_hosts = "diseased" if list(hosts) == list(HOSTS) else list(hosts)
    about: dict[str, Any] = {
        "study": {**RECIPE.model_dump(mode="json", by_alias=True), "hosts": said_hosts},
        "trial": False, "complete": True, "photographs": False, "hosts": list(hosts),
        "arms": {f"{host}: {arm}": {"sude.weight": 0.4} for host in hosts
                 for arm in ("chosen", "official")},
        "rungs": {host: [400] for host in hosts}, "base": "b", "judges": "j", "guidance": 3.0,
        "hardware": "2 CPU cores", "date": "2026-12-01",
        "cpu_s": [{"host": host, "arm": "host", "train_s": float(len(subjects)), "draw_s": 0.0,
                   "score_s": 0.0} for host in ("base", *hosts)],
        "failures": [], "sheets": {},
    }  # fmt: skip
    if "C00" in subjects:
        about["sheets"] = {"sheet.webp": list(hosts)}
        Image.new("RGB", (4, 4)).save(folder / "sheet.webp")
    (folder / "about.json").write_text(json.dumps({**about, **said}), encoding="utf-8")
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
    take_in(evidence, ["lora-prior"], REST)
    take_in(evidence, ["full"])
    take_in(evidence, ["lora-prior"], FIRST, hardware="64 CPU cores", date="2026-12-03")
    pieces = read_piece(evidence / "a")
    assert {str(sorted(row.items())) for row in pieces.table} == {
        str(sorted(row.items())) for row in whole.table
    }
    assert len(pieces.table) == len(whole.table), "the bare base is there once"
    assert [row["host"] for row in pieces.rho] == ["lora", "lora-prior", "full"]
    weighted = (16 * 1.6 + 8 * 0.8) / 24
    assert pieces.rho[1]["samples"] == 1200
    assert pieces.rho[1]["rho"] == pytest.approx(weighted, rel=1e-4)
    assert {row["host"]: row["train_s"] for row in pieces.about["cpu_s"]} == {
        "base": 24.0, "lora": 24.0, "full": 24.0,
        "lora-prior": pytest.approx((16 * 16 + 8 * 8) / 24),
    }  # fmt: skip
    lines, now = page.splitlines(), page_of(evidence).splitlines()
    tested = [line for line in lines if line.startswith("| lora-prior | chosen")]
    assert tested and tested[0] in now
    assert not any("ot run yet" in line or "not shown" in line for line in now)
    assert any("2 CPU cores, 64 CPU cores, 2026-12-01, 2026-12-03: " in line for line in now)
    for host in HOSTS:
        assert (
            f"![Study a: the first pictures of one subject on {host}, the same noise in all "
            + (f"arms](evidence/a/sheet-{host}.webp)")
            in now
        ), "each host's pictures by themselves"
    take_in(evidence, HOSTS)
    assert [path.name for path in (evidence / "a").glob("sheet*")] == ["sheet.webp"]


def test_until_then_hosts_to_come_count_and_halves_are_not_shown(evidence: Path) -> None:
    take_in(evidence, ["lora-prior"], FIRST, hardware="64 CPU cores")
    text = page_of(evidence)
    assert "Not run yet on lora, full.\nOn lora-prior 8 subjects are done, and not shown" in text
    assert "| alignment |" not in text and "webp" not in text
    take_in(evidence, ["full"])
    text = page_of(evidence)
    assert "Not run yet on lora. On lora-prior 8 subjects are done" in text
    assert "64 CPU cores" not in text and "sheet-full.webp" in text
    assert "sheet-lora-prior" not in text, "its pictures are not shown, either"
    page = (evidence.parent / "evidence.md").read_text(encoding="utf-8")
    assert "0 of 14 studies have been run, and a on some of its hosts." in page
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
    study = {**RECIPE.model_dump(mode="json", by_alias=True), "primary": False}
    take_in(evidence, ["lora", "full"], study=study)
    take_in(evidence, ["lora"], study=study, shift=1.0)
    found = read_piece(evidence / "a")
    assert found.hosts == ["lora", "full"] and len(found.subjects("lora")) == 24
    before = sorted(row["alignment"] for row in TABLE if row["host"] == "lora")
    now = sorted(row["alignment"] for row in found.table if row["host"] == "lora")
    assert now == pytest.approx([value + 1.0 for value in before], abs=1e-3)
    assert [row["samples"] for row in found.rho] == [1200, 1200]
    take_in(evidence, ["lora", "full"], study=study, base="another")
    assert read_piece(evidence / "a").about["base"] == "another", "all of it is new"


def test_the_confirmation_is_run_once(evidence: Path) -> None:
    take_in(evidence, ["lora"])
    take_in(evidence, ["lora"], date="2026-12-09")
    with pytest.raises(BadInputError, match="lora: host: was published with other figures"):
        take_in(evidence, ["lora"], shift=0.01)


@pytest.mark.parametrize(
    ("subjects", "said", "message"),
    [
        (
            FIRST[:3],
            {},
            "C00, C01, C02 … are committed already, and others that this piece has not",
        ),
        (REST, {"base": "other"}, "what is committed has other base than this piece"),
        (
            REST,
            {"arms": {"lora: chosen": {"sude.weight": 0.4}, "lora: official": {}}},
            r"other arms \(lora: official\)",
        ),
    ],
)
def test_what_does_not_fit_what_is_there(
    evidence: Path, subjects: list[str], said: dict[str, Any], message: str
) -> None:
    take_in(evidence, ["lora"], FIRST)
    before = (evidence / "a" / "table.csv").read_bytes()
    with pytest.raises(BadInputError, match=message):
        take_in(evidence, ["lora"], subjects, **said)
    assert (evidence / "a" / "table.csv").read_bytes() == before

"""The measures of the base's reach: right on known answers, and they run on any exported base."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamfleet.bases import load_base
from dreamfleet.errors import BadInputError
from dreamfleet.evaluation import embedded_reach, embedded_reach_report
from dreamfleet.evaluation.embedded_reach import ReachPlan, colour_spread, hue_spread, load_bench
from dreamfleet.evaluation.embedded_reach_report import BEGIN, END, markdown, measure, write_docs
from dreamfleet.evaluation.sheets import labelled_sheet
from dreamfleet.world.classes import CLASSES
from dreamfleet.world.splits import split_of
from tests.unit.pretraining.conftest import Exported

pytestmark = pytest.mark.heavy


def test_held_out_pictures_show_no_training_identity() -> None:
    specs = [embedded_reach.held_out_spec(i) for i in range(20)]
    assert {split_of(spec.identity_seed) for spec in specs} == {"D"}
    assert len({spec.identity_seed for spec in specs}) == 20


def test_spreads_of_known_colours() -> None:
    red, cyan, grey = [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.5, 0.5, 0.5]
    assert hue_spread(np.array([red, red, grey])) == pytest.approx(0.0, abs=1e-6)
    assert hue_spread(np.array([red, cyan])) == pytest.approx(1.0, abs=1e-6)
    assert colour_spread(np.array([red, red])) == 0.0
    assert colour_spread(np.array([red, cyan])) == pytest.approx(np.sqrt(3) / 2)


def test_sheet_holds_every_picture() -> None:
    cell = Image.new("RGB", (64, 64), (10, 200, 30))
    sheet = labelled_sheet(
        [[cell] * 3, [cell]], row_labels=["a", "b"], cell_labels=[[""] * 3, [""]]
    )
    green = (np.asarray(sheet) == (10, 200, 30)).all(axis=2).sum()
    assert green == 4 * 96 * 96


def test_measuring_writes_figures_table_sheets_and_page(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With two classes, and weights that know nothing."""
    two = {name: CLASSES[name] for name in ("dog", "vase")}
    monkeypatch.setattr(embedded_reach, "CLASSES", two)
    plan = ReachPlan((1.0, 2.0), 1, 6, 6, 3, 2, num_inference_steps=1)
    said: list[str] = []
    bench = load_bench(load_base(exported.base), plan, exported.evaluators, said.append)
    figures = measure(bench, [], tmp_path / "reach")
    assert json.loads((tmp_path / "reach" / "reach.json").read_text()) == figures
    assert set(figures["samples"]["guidance_scan"]) == {"1", "2"}
    assert len(figures["samples"]["per_state"]) == 16
    table = (tmp_path / "reach" / "reach.md").read_text()
    for row in embedded_reach_report.TABLE_ROWS:
        assert row.what in table
    for name in embedded_reach_report.SHEETS:
        assert (tmp_path / "reach" / f"{name}.png").is_file()
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_docs(page, tmp_path / "reach")
    text = page.read_text()
    assert "old" not in text and text.startswith("before") and text.endswith("after\n")
    assert "images/embedded_base/states.webp" in text
    with pytest.raises(BadInputError, match="'portraits' is none of"):
        measure(bench, ["portraits"], tmp_path / "reach")


def test_table_marks_what_is_wanted() -> None:
    table = markdown({"oracle_a": {"class": 0.991}, "vae": {"psnr_db": 29.44}})
    assert "| oracle A on renders: class | 99.1 % | ≥ 98 % |" in table
    assert "| VAE: PSNR of held-out renders | 29.4 dB | ≥ 29 dB |" in table
    assert "samples" not in table

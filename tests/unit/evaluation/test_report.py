"""The report is one safe, self-contained file, whatever it is given."""

from __future__ import annotations

import re
from datetime import datetime
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dreamfleet.config import RunConfig, load_config
from dreamfleet.evaluation.curves import curves, number, smoothed, ticks
from dreamfleet.evaluation.report import (
    Grid,
    Metric,
    ReportData,
    as_figures,
    diffusers_code,
    duration,
    highlighted,
    prompt_group,
    render_report,
    write_report,
)

SIX_MB = 6_000_000


def small(colour: str = "red") -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def config(**values: object) -> RunConfig:
    given = {"subject.class_word": "dog", "train.rank": 4, "train.lora_layers": "all"}
    return load_config(None, {**given, **values})


def report_data(**values: object) -> ReportData:
    prompts = ("a photo of sks dog", "a photo of sks dog in the snow", "a photo of sks running dog")
    defaults: dict[str, object] = {
        "subject": "Biscuit",
        "subject_id": "dog-biscuit",
        "class_word": "dog",
        "token": "sks",
        "config": config(**{"sude.weight": 0.4}),
        "photos": [small("green")],
        "grids": [
            Grid(p, [small(), small("blue")], [small("grey"), small("pink")], group)
            for p, group in zip(prompts, ("subject", "scenes", "states"), strict=True)
        ],
        "history": [{"step": s, "loss": 1 / s, "rho": 0.5 + s / 200} for s in range(1, 101)],
        "metrics": [Metric("identity", "Identity", 0.83, 0.41, "alike", "judge")],
        "timings": {"training": 74.2},
        "versions": {"dreamfleet": "0.1.0"},
        "output_dir": "runs/dog-biscuit",
        "steps": 100,
        "created": datetime(2026, 1, 2, 3, 4),
    }
    return ReportData(**{**defaults, **values})  # type: ignore[arg-type]


class _Tags(HTMLParser):
    """All tags, and whether each is closed in order."""

    VOID = frozenset({"meta", "img", "link", "br", "path"})

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()


def tags_of(html: str) -> _Tags:
    parser = _Tags()
    parser.feed(html)
    assert parser.open == []
    return parser


def test_everything_is_inside_the_file(tmp_path: Path) -> None:
    path = write_report(tmp_path, report_data())
    html = path.read_text(encoding="utf-8")
    found = tags_of(html).found
    assert [path.name] == [entry.name for entry in tmp_path.iterdir()]
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in found}
    images = [attrs for tag, attrs in found if tag == "img"]
    assert all((attrs["src"] or "").startswith("data:image/webp;base64,") for attrs in images)
    assert all(attrs["alt"] for attrs in images)
    assert len(images) == 1 + 3 + 12  # the photo, the top, 2 with and 2 without for 3 prompts
    assert not re.search(r"(src|href)=\"(?!data:)|url\(|@import", html)
    assert html.count("<svg") == 2


def test_it_says_what_happened() -> None:
    html = render_report(report_data())
    for text in ("Biscuit", "0.83", "+0.42 against 0.41", "1 min 14 s", "In other scenes"):
        assert text in html
    for text in ("In other states", "weight 0.4", "pipe.load_lora_weights", "dreamfleet generate"):
        assert text in html
    assert '<mark class="token">sks</mark>' in html


def test_hostile_names_stay_text() -> None:
    evil = "<script>alert(1)</script>\"'{{ 7*7 }}"
    data = report_data(
        subject=evil,
        class_word=evil,
        token=evil,
        photo_notes=[evil],
        grids=[Grid(evil, [small()], [], "scenes")],
        run_id=evil,
        command=evil,
        base_name=evil,
    )
    html = render_report(data)
    assert "<script" not in html
    assert "{{ 7*7 }}" in html
    tags_of(html)


def test_large_pictures_are_reduced_to_a_file_of_bounded_size() -> None:
    rng = np.random.default_rng(0)

    def noise() -> Image.Image:  # the worst that can be compressed
        return Image.fromarray(rng.integers(0, 255, (512, 512, 3), dtype=np.uint8))

    grids = [
        Grid(f"prompt {i}", [noise() for _ in range(4)], [noise()], "scenes") for i in range(4)
    ]
    html = render_report(report_data(grids=grids, photos=[noise()]))
    assert len(html.encode()) < SIX_MB


def test_small_pictures_are_kept_exactly() -> None:
    import base64
    import io

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
    html = render_report(report_data(photos=[Image.fromarray(pixels)], grids=[]))
    encoded = re.search(r"base64,([^\"]+)", html)
    assert encoded is not None
    back = Image.open(io.BytesIO(base64.b64decode(encoded[1])))
    assert np.array_equal(np.asarray(back.convert("RGB")), pixels)


@pytest.mark.parametrize(
    "left_out",
    ["photos", "grids", "history", "metrics", "timings", "versions"],
)
def test_any_part_may_be_missing(left_out: str) -> None:
    empty: object = {} if left_out in ("timings", "versions") else []
    tags_of(render_report(report_data(**{left_out: empty})))


def test_groups_follow_the_prompts() -> None:
    instance = "a photo of sks dog"
    assert prompt_group(instance, instance) == "subject"
    assert prompt_group("a photo of sks dog in the jungle", instance) == "scenes"
    assert prompt_group("a photo of sks dog on top of a mountain", instance) == "scenes"
    assert prompt_group("sks dog with the Eiffel Tower in the background", instance) == "scenes"
    assert prompt_group("a photo of sks running dog", instance) == "states"
    assert prompt_group("a photo of a red sks dog", instance) == "states"


def test_only_the_token_itself_is_marked() -> None:
    assert str(highlighted("sks asks <b> sks", "sks")) == (
        '<mark class="token">sks</mark> asks &lt;b&gt; <mark class="token">sks</mark>'
    )
    assert str(highlighted("a dog", "")) == "a dog"


def test_code_fits_base_and_mode() -> None:
    embedded = diffusers_code(report_data())
    assert "embedded_path()" in embedded
    compile(embedded, "snippet", "exec")
    real = diffusers_code(report_data(base_name="stabilityai/x", base_location="stabilityai/x"))
    assert '"stabilityai/x"' in real and "load_lora_weights" in real
    full = diffusers_code(report_data(config=config(**{"train.mode": "full"})))
    assert 'from_pretrained("runs/dog-biscuit"' in full and "lora" not in full
    compile(diffusers_code(report_data(output_dir='a"b\\c')), "snippet", "exec")


def test_figures_for_machines() -> None:
    metrics = [Metric("identity", "I", 0.8, 0.4), Metric("diversity", "D", 0.2)]
    expected = {"identity": 0.8, "identity.without_adapter": 0.4, "diversity": 0.2}
    assert as_figures(metrics) == expected


def test_curves_leave_out_what_is_not_there() -> None:
    history = [{"step": s, "loss": 1.0, "rho": float("nan"), "loss_prior": None} for s in (3, 1, 2)]
    (only,) = curves(history)  # type: ignore[arg-type]
    assert only.title == "Loss" and only.last == "1"
    assert curves([]) == []
    assert curves([{"step": 1, "loss": 0.5}]) == []


def test_long_curves_are_thinned_and_keep_their_spikes() -> None:
    history = [{"step": s, "loss": 5.0 if s == 7777 else 1.0} for s in range(1, 20_001)]
    (panel,) = curves(history)
    assert len(panel.svg) < 20_000
    flat = [{"step": s, "loss": 1.0} for s in range(1, 20_001)]
    assert curves(flat)[0].svg != panel.svg


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-9, 1e9])
def test_constant_curves_can_be_drawn(value: float) -> None:
    history = [{"step": s, "loss": value, "grad_norm": abs(value), "rho": value} for s in range(5)]
    assert "nan" not in "".join(panel.svg for panel in curves(history))


def test_smoothing_starts_at_the_first_value_and_forgets() -> None:
    values = [10.0, *([1.0] * 99)]
    line = smoothed(values)
    assert line[0] == 10.0
    assert line[-1] == pytest.approx(1.0, abs=0.01)


def test_numbers_and_times_are_short() -> None:
    assert [number(v) for v in (0, 0.5, 1e-3, 1e-4, 123456, 1.23456)] == [
        "0",
        "0.5",
        "0.001",
        "1e-4",
        "1.23e5",
        "1.23",
    ]
    assert [duration(s) for s in (1.25, 42.4, 190, 7500)] == [
        "1.2 s",
        "42 s",
        "3 min 10 s",
        "2 h 5 min",
    ]
    assert ticks(0, 1, 4) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(2, 2) == [2]

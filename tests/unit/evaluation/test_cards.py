"""adapter.json can be trusted, the model card is what diffusers' own look like."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from dreamfleet.errors import AdapterFileError
from dreamfleet.evaluation.cards import (
    adapter_info,
    model_card,
    read_adapter_json,
    write_adapter_json,
    write_model_card,
)
from tests.unit.evaluation.test_report import config, report_data


def _folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    (out / "checkpoints").mkdir()
    (out / "pytorch_lora_weights.safetensors").write_bytes(b"weights")
    (out / "samples" / "a.png").write_bytes(b"png")
    (out / "checkpoints" / "state.pt").write_bytes(b"state")
    (out / "report.html").write_text("later")
    (out / ".lock").write_text("")
    write_adapter_json(out, adapter_info(report_data(base_hash="ab" * 32), family="sd1"))
    return out


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    info = read_adapter_json(_folder(tmp_path), verify=True)
    assert (info.name, info.class_word, info.token) == ("dog-biscuit", "dog", "sks")
    assert info.instance_prompt == "a photo of sks dog"
    assert info.class_prompt == "a photo of dog"
    assert info.base.hash == "ab" * 32 and info.base.family == "sd1"
    assert info.lora is not None and (info.lora.rank, info.lora.alpha) == (4, 4)
    assert info.metrics == {"identity": 0.83, "identity.without_adapter": 0.41}
    assert info.judges == {"identity": "judge"}
    assert info.sude_weight == 0.4 and info.prior_weight == 0
    assert [entry.name for entry in info.files] == [
        "pytorch_lora_weights.safetensors",
        "samples/a.png",
    ]
    assert info.file("samples/a.png") is not None and info.file("x") is None


def test_full_fine_tuning_has_no_lora() -> None:
    info = adapter_info(report_data(config=config(**{"train.mode": "full"})))
    assert info.mode == "full" and info.lora is None


def test_changed_and_missing_files_are_found_on_request(tmp_path: Path) -> None:
    out = _folder(tmp_path)
    (out / "samples" / "a.png").write_bytes(b"other")
    read_adapter_json(out)
    with pytest.raises(AdapterFileError, match=r"a\.png.*changed or damaged"):
        read_adapter_json(out, verify=True)
    (out / "samples" / "a.png").unlink()
    with pytest.raises(AdapterFileError, match="not there"):
        read_adapter_json(out, verify=True)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"schema_version": 99}, "schema_version is 99"),
        ({"name": ""}, "name"),
        ({"lora": {"rank": 0, "alpha": 1, "layers": "all"}}, "lora.rank"),
        ({"files": [{"name": "../x", "sha256": "0" * 64, "bytes": 1}]}, "leaves the adapter"),
        ({"files": [{"name": "/etc/passwd", "sha256": "0" * 64, "bytes": 1}]}, "leaves"),
        ({"files": [{"name": "x", "sha256": "zz", "bytes": 1}]}, "sha256"),
        ({"metrics": {"a": "high"}}, "metrics.a"),
    ],
)
def test_wrong_descriptions_are_refused_by_name(
    tmp_path: Path, change: dict[str, object], words: str
) -> None:
    out = _folder(tmp_path)
    tree = json.loads((out / "adapter.json").read_text())
    (out / "adapter.json").write_text(json.dumps({**tree, **change}))
    with pytest.raises(AdapterFileError, match=words):
        read_adapter_json(out)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00", "[" * 5000])
def test_junk_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "adapter.json").write_text(text)
    with pytest.raises(AdapterFileError, match=r"adapter\.json"):
        read_adapter_json(tmp_path)


def test_a_missing_description_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="dreamfleet personalize"):
        read_adapter_json(tmp_path)


def test_unknown_keys_of_the_same_schema_are_passed_over(tmp_path: Path) -> None:
    out = _folder(tmp_path)
    tree = json.loads((out / "adapter.json").read_text())
    (out / "adapter.json").write_text(json.dumps({**tree, "new": 1}))
    assert read_adapter_json(out).name == "dog-biscuit"


def test_card_has_the_front_matter_of_diffusers(tmp_path: Path) -> None:
    path = write_model_card(
        tmp_path, report_data(), [("a photo of sks dog", "samples/00_0.png")], license_id=None
    )
    text = path.read_text(encoding="utf-8")
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "apache-2.0"
    assert front["base_model"] == "dreamfleet/embedded"
    assert front["instance_prompt"] == "a photo of sks dog"
    assert {"text-to-image", "diffusers", "lora", "dreambooth", "sude"} <= set(front["tags"])
    assert front["widget"][0]["output"]["url"] == "samples/00_0.png"
    assert "pipe.load_lora_weights" in text and "| Identity | 0.830 | 0.410 | judge |" in text


@pytest.mark.parametrize("name", ["some/base", "some/base@v1#fp16"])
def test_card_of_another_base_claims_no_licence(name: str) -> None:
    text = model_card(report_data(base_name=name))
    front = yaml.safe_load(text.split("---\n")[1])
    assert front["license"] == "other" and front["base_model"] == "some/base"
    assert "widget" not in front


def test_hostile_names_cannot_break_the_front_matter_or_become_html() -> None:
    evil = 'x"\n---\n<img src=x>: [a](b) `c`'
    text = model_card(report_data(subject=evil, class_word=evil))
    front = yaml.safe_load(text.split("\n---\n")[0].removeprefix("---\n"))
    assert front["license"] == "apache-2.0"
    body = text.split("## Use")[0].split("# x", 1)[1]
    assert "<img" not in body

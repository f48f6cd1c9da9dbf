"""A folder of adapters: what is offered, what aliases mean, what is refused and why."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file

from dreamfleet.errors import BadInputError
from dreamfleet.serving.api import _model
from dreamfleet.serving.backend import combined
from dreamfleet.serving.catalogue import (
    METADATA_KEY,
    Catalogue,
    Entry,
    FolderSource,
    Listing,
    registered_as,
)
from dreamfleet.serving.orders import RegistryFiles
from dreamfleet.serving.problems import ApiProblem
from dreamfleet.serving.server import base_of_adapters

pytestmark = pytest.mark.heavy

WEIGHTS = "pytorch_lora_weights.safetensors"


@pytest.fixture
def folder(adapters: Path, tmp_path: Path) -> Path:
    return shutil.copytree(adapters, tmp_path / "adapters")


def catalogue(folder: Path, base_hash: str | None = None) -> Catalogue:
    found = Catalogue(FolderSource(folder), lambda: base_hash)
    found.refresh()
    return found


def test_ids_are_the_folders_names(folder: Path) -> None:
    (folder / "notes.txt").touch()
    (folder / "empty").mkdir()
    entries = [entry for entry, _ in catalogue(folder).usable()]
    assert [entry.id for entry in entries] == ["ada", "bo", "cy"]
    assert len({entry.key for entry in entries}) == 3
    assert entries[0].rank == 4 and entries[0].text("token") == "sks"


def test_one_adapter_alone(folder: Path) -> None:
    (entry,) = [entry for entry, _ in catalogue(folder / "bo").usable()]
    assert entry.id == "bo"


def test_a_whole_model_is_named_and_left_out(folder: Path) -> None:
    (folder / "full").mkdir()
    (folder / "full" / "model_index.json").write_text("{}", encoding="utf-8")
    own = catalogue(folder)
    assert len(own.usable()) == 3 and "fully fine-tuned" in own.problems()["full@full"]


def test_an_alias_is_a_version_and_survives_a_restart(folder: Path) -> None:
    first = catalogue(folder)
    first.promote("ada", "champion", "bo")
    again = catalogue(folder)
    for own in (first, again):
        assert own.resolve("ada@champion").id == "bo" and own.resolve("ada").id == "ada"
        assert {entry.id: names for entry, names in own.usable()}["ada"] == {"champion": "bo"}
    first.promote("ada", "champion", "cy")
    again.refresh()
    assert again.resolve("ada@champion").id == "cy"
    for model_id, version, told in (("ada", "nobody", (400, "version")),
                                    ("nobody", "ada", (404, "model"))):  # fmt: skip
        with pytest.raises(ApiProblem, match="'nobody'") as error:
            first.promote(model_id, "champion", version)
        assert (error.value.status, error.value.param) == told


@pytest.mark.parametrize("content", ['{"ada": {"champion": "bo"},', "[]", '{"ada": "bo"}'])
def test_a_file_of_aliases_that_cannot_be_read_is_not_written_over(
    folder: Path, content: str
) -> None:
    (folder / "aliases.json").write_text(content, encoding="utf-8")
    own = catalogue(folder)
    assert len(own.usable()) == 3 and own.usable()[0][1] == {}
    with pytest.raises(BadInputError, match="aliases.json: cannot be read"):
        own.promote("ada", "champion", "cy")
    assert (folder / "aliases.json").read_text(encoding="utf-8") == content


@pytest.mark.parametrize(
    "name", ["dan", "ada@", "ada@nobody", "@champion", "../ada", "", "ada@bo@"]
)
def test_unknown_names_are_404(folder: Path, name: str) -> None:
    with pytest.raises(ApiProblem) as error:
        catalogue(folder).resolve(name)
    assert error.value.status == 404


def test_retired_ones_are_gone_and_their_files_stay(folder: Path) -> None:
    own = catalogue(folder)
    own.retire("ada")
    assert [entry.id for entry, _ in own.usable()] == ["bo", "cy"]
    assert (folder / "ada" / WEIGHTS).is_file()


def test_one_that_cannot_be_used_can_be_retired(folder: Path) -> None:
    (folder / "bo" / WEIGHTS).write_bytes(b"")
    own = catalogue(folder)
    own.retire("bo")
    assert own.problems() == {} and len(own) == 2
    with pytest.raises(ApiProblem) as error:
        own.retire("bo")
    assert error.value.status == 404


def test_a_look_begun_earlier_does_not_hide_what_was_changed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = catalogue(folder)
    read, looked, go_on = own._source.read, threading.Event(), threading.Event()

    def slowly() -> Listing:
        found = read()
        looked.set()
        go_on.wait(300)
        return found

    monkeypatch.setattr(own._source, "read", slowly)
    background = threading.Thread(target=own.refresh)
    background.start()
    assert looked.wait(300)
    monkeypatch.setattr(own._source, "read", read)
    retiring = threading.Thread(target=own.retire, args=("ada",))
    retiring.start()
    while not (folder / "ada" / ".retired").exists() and retiring.is_alive():
        time.sleep(0.01)
    go_on.set()
    background.join(300)
    retiring.join(300)
    assert [entry.id for entry, _ in own.usable()] == ["bo", "cy"]


def test_only_a_known_registration_is_a_link(folder: Path) -> None:
    told = {"name": "ada-1", "tracking": {"model_version": "3"}}
    (folder / "ada" / "adapter.json").write_text(json.dumps(told), encoding="utf-8")
    links = {entry.id: registered_as(entry) for entry, _ in catalogue(folder).usable()}
    assert links == {"ada": "models:/ada-1/3", "bo": "", "cy": ""}
    origin = RegistryFiles("http://mlflow", "ada", "2", "runs:/1", "/cache")
    assert registered_as(Entry("ada", "2", "/cache", origin=origin)) == "models:/ada/2"


def test_figures_of_several_engines_are_one() -> None:
    engines = [{"drawing": 1.0, "sampling_step_s": 0.1}, {"drawing": 2.0, "sampling_step_s": 0.3}]
    assert combined(engines) == {"drawing": 3.0, "sampling_step_s": pytest.approx(0.2)}


def test_a_changed_file_is_another_content(folder: Path) -> None:
    own = catalogue(folder)
    before = own.resolve("ada").key
    shutil.copy(folder / "bo" / WEIGHTS, folder / "ada" / WEIGHTS)
    own.refresh()
    assert own.resolve("ada").key != before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no safetensors"),
        (b"x" * 100, "no safetensors"),
        ((2**40).to_bytes(8, "little") + b"{}", "no safetensors"),
        ((2).to_bytes(8, "little") + b"{}", "no LoRA"),
        ((8).to_bytes(8, "little") + b"not json", "damaged"),
    ],
)
def test_a_damaged_one_is_refused_alone(folder: Path, content: bytes, reason: str) -> None:
    (folder / "bo" / WEIGHTS).write_bytes(content)
    own = catalogue(folder)
    assert [entry.id for entry, _ in own.usable()] == ["ada", "cy"]
    with pytest.raises(ApiProblem, match=reason) as error:
        own.resolve("bo")
    assert error.value.status == 503 and reason in own.problems()["bo@bo"]


def test_what_could_not_be_read_once_is_looked_at_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(weights: Path) -> object:
        raise OSError(116, "Stale file handle")

    with monkeypatch.context() as patched:
        patched.setattr("dreamfleet.serving.catalogue._header", down)
        own = catalogue(folder)
        assert own.usable() == [] and "Stale" in own.problems()["ada@ada"]
    own.refresh()
    assert len(own.usable()) == 3


def test_a_name_that_reads_as_an_alias_is_a_problem(folder: Path) -> None:
    (folder / "bo").rename(folder / "bo@fast")
    own = catalogue(folder)
    assert [entry.id for entry, _ in own.usable()] == ["ada", "cy"]
    (problem,) = own.problems().values()
    assert "@" in problem


def test_an_adapter_of_another_base_is_refused(folder: Path) -> None:
    own = catalogue(folder, base_hash="0" * 64)
    assert own.usable() == []
    with pytest.raises(ApiProblem, match="another|hash"):
        own.resolve("ada")
    tensors = load_file(folder / "ada" / WEIGHTS)
    save_file(tensors, folder / "ada" / WEIGHTS, {METADATA_KEY: '{"base_hash": null}'})
    own.refresh()
    assert own.resolve("ada").base_hash == "", "it does not say"


def test_an_adapter_of_too_large_a_rank_is_refused(folder: Path) -> None:
    own = Catalogue(FolderSource(folder), lambda: None, max_rank=3)
    own.refresh()
    with pytest.raises(ApiProblem, match="rank is 4"):
        own.resolve("ada")


def test_an_adapter_json_that_lies_about_types_does_no_harm(folder: Path) -> None:
    for name, content in (("ada", "[]"), ("bo", "{"), ("cy", json.dumps({"token": 7}))):
        (folder / name / "adapter.json").write_text(content, encoding="utf-8")
    entries = [entry for entry, _ in catalogue(folder).usable()]
    assert [entry.text("token") for entry in entries] == ["", "", ""]


def test_an_adapter_json_that_no_answer_could_hold_does_no_harm(folder: Path) -> None:
    contents = {
        "ada": "[" * 100_000,
        "bo": '{"display_name": "\\ud800", "metrics": {"a": %s, "b": 1e999, "c": 0.5}}' % (10**400),
        "cy": '{"a": ' * 5000 + "1" + "}" * 5000,
    }
    for name, content in contents.items():
        (folder / name / "adapter.json").write_text(content, encoding="utf-8")
    models = {entry.id: _model(entry, {}) for entry, _ in catalogue(folder).usable()}
    assert list(models) == ["ada", "bo", "cy"] and models["bo"].metrics == {"c": 0.5}
    assert all(model.model_dump_json().encode() for model in models.values())
    assert base_of_adapters(folder) == "embedded"


def test_a_folder_that_cannot_be_looked_at_fails_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folder / "bo", folder / os.fsdecode(b"\xff"))
    exists = Path.exists

    def refused(path: Path) -> bool:
        if path.parent.name == "ada":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", refused)
    own = catalogue(folder)
    assert [entry.id for entry, _ in own.usable()] == ["bo", "cy"]
    assert "denied" in own.problems()["ada@ada"] and len(own.problems()) == 2
    assert "\n".join(own.problems()).encode()


def test_the_base_that_most_adapters_were_made_for(folder: Path, tiny_base: Path) -> None:
    assert base_of_adapters(folder) == base_of_adapters(folder / "ada") == str(tiny_base)
    (tmp := folder / "new").mkdir()
    assert base_of_adapters(tmp) == "embedded"
    with pytest.raises(BadInputError, match="no such folder"):
        FolderSource(folder / "gone")

"""Subject requests, lists of subjects, and safe ids."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreamfleet.data.names import safe_id, unique_ids
from dreamfleet.data.subjects import requested_subjects
from dreamfleet.errors import BadInputError, SubjectSetError
from tests.unit.data.helpers import config_for, write_photos


@pytest.mark.parametrize(
    "name",
    [
        "Biscuit",
        "../../etc",
        "a b  c",
        "犬",
        "🐕",
        "x" * 300,
        "con",
        "",
        ".",
        "é",
        "A/B",
        "a\0b",
        "-",
        "\ud800",
    ],
)
def test_any_name_becomes_a_safe_id(name: str) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", safe_id(name))
    assert len(safe_id(name)) <= 48


@given(st.text(max_size=60), st.text(max_size=60))
def test_ids_are_safe_and_unique_for_all_names(one: str, other: str) -> None:
    ids = unique_ids([one, other], ["a", "b"])
    assert len(set(ids)) == 2
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", identity) for identity in ids)


def test_plain_names_stay_readable() -> None:
    assert safe_id("Biscuit") == "biscuit"
    assert unique_ids(["Rex", "rex", "Ada"], ["1", "2", "3"])[2] == "ada"
    assert len(set(unique_ids(["Rex", "rex"], ["1", "1"]))) == 2


def test_one_folder_is_one_subject(tmp_path: Path) -> None:
    (request,) = requested_subjects(config_for(write_photos(tmp_path / "Biscuit")))
    assert (request.id, request.display_name) == ("biscuit", "Biscuit")
    assert request.prompt == "a photo of sks dog"
    assert Path(request.config.subject.images[0]).is_absolute()


def test_file_lists_are_one_subject_and_mixtures_are_refused(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    (request,) = requested_subjects(config_for(folder / "0.png", folder / "1.png"))
    assert request.found is not None and len(request.found.photos) == 2
    with pytest.raises(SubjectSetError, match="not both"):
        requested_subjects(config_for(folder, folder / "1.png"))


def test_several_folders_are_several_subjects_and_a_bad_one_is_kept_apart(tmp_path: Path) -> None:
    good, bad = write_photos(tmp_path / "good"), tmp_path / "bad"
    bad.mkdir()
    requests = requested_subjects(config_for(good, bad))
    assert [request.error is None for request in requests] == [True, False]
    assert "bad" in str(requests[1].error)


def test_missing_class_word_and_photos_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="class word"):
        requested_subjects(config_for(write_photos(tmp_path), class_word=" "))
    with pytest.raises(SubjectSetError, match="no photos given"):
        requested_subjects(config_for())
    with pytest.raises(SubjectSetError, match="an unset variable"):
        requested_subjects(config_for(""))


def test_csv_and_yaml_lists(tmp_path: Path) -> None:
    write_photos(tmp_path / "a")
    write_photos(tmp_path / "b")
    (tmp_path / "list.csv").write_text("images,class_word,id\na,dog,Rex\nb,cat,\n")
    requests = requested_subjects(config_for(tmp_path / "list.csv", class_word=""))
    assert [(request.id, request.config.subject.class_word) for request in requests] == [
        ("rex", "dog"),
        ("b", "cat"),
    ]
    with pytest.raises(BadInputError, match="'Max' with several subjects.* column id"):
        requested_subjects(config_for(tmp_path / "list.csv", subject={"id": "Max"}))
    (tmp_path / "list.csv").write_bytes(b"images,class_word\ra,dog\rb,cat\r")  # as old Macs do
    assert len(requested_subjects(config_for(tmp_path / "list.csv"))) == 2
    (tmp_path / "list.yaml").write_text(
        "subjects:\n  - {images: [a/0.png, a/1.png], class_word: dog, token: ohwx}\n"
    )
    (request,) = requested_subjects(config_for(tmp_path / "list.yaml"))
    assert request.prompt == "a photo of ohwx dog"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.csv", "images,colour\na,red\n", "unknown key 'colour'"),
        ("l.csv", "class_word\ndog\n", "must name"),
        ("l.csv", "images,class_word\na,dog,small\n", "subject 1: more cells than the header"),
        ("l.csv", "images\n", "no subject in it"),
        pytest.param("l.csv", f"images\n{'x' * 200_000}\n", "not valid CSV: field", id="long"),
        ("l.yaml", "a: [1", "not valid YAML"),
        ("l.yaml", "just text", "expected a list"),
        ("l.yaml", "- 3\n", "expected keys and values"),
    ],
)
def test_bad_lists_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SubjectSetError, match=message):
        requested_subjects(config_for(tmp_path / name))

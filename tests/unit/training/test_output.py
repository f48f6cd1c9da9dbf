"""The output folder: what is refused, and that overwriting deletes only what a run wrote."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.adapters.files import save_full
from dreamfleet.bases import load_base
from dreamfleet.config import RunConfig
from dreamfleet.errors import BadInputError, ResumeError
from dreamfleet.runtime.storage import Folder
from dreamfleet.serving.catalogue import RETIRED
from dreamfleet.training.fingerprint import check_same_run, run_fingerprint
from dreamfleet.training.output import WRITTEN, OutputFolder
from tests.tiny_bases import add_safety_checker


def folder_at(path: Path) -> OutputFolder:
    return OutputFolder.of(Folder(str(path)), None, "rex")


def test_missing_and_empty_folders_are_fine(tmp_path: Path) -> None:
    for path in (tmp_path / "new" / "deep", tmp_path):
        for flags in ({}, {"resume": True}, {"overwrite": True}):
            folder_at(path).check(**{"resume": False, "overwrite": False, **flags})


def test_used_folder_needs_a_decision(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.begin(overwrite=False, info={"subject": "rex"})
    with pytest.raises(BadInputError, match="--resume to go on, --overwrite"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.check(resume=False, overwrite=True)
    assert folder.info() == {"subject": "rex"}


def test_foreign_folders_are_never_touched(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("my own")
    with pytest.raises(BadInputError, match="other files"):
        folder_at(tmp_path).check(resume=False, overwrite=True)
    with pytest.raises(ResumeError):
        folder_at(tmp_path).check(resume=True, overwrite=False)
    with pytest.raises(BadInputError, match="a file of that name"):
        folder_at(tmp_path / "README.md").check(resume=False, overwrite=False)


def test_overwrite_keeps_files_that_no_run_writes(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.begin(overwrite=False, info={})
    (tmp_path / "pytorch_lora_weights.safetensors").write_bytes(b"x")
    (tmp_path / "samples").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    folder.begin(overwrite=True, info={"subject": "rex"})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "notes.txt"]


def test_what_a_whole_model_is_made_of_goes_with_overwrite(
    family_folder: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(family_folder, base)
    add_safety_checker(base, threshold=2.0)
    saved = tmp_path / "saved"
    save_full(saved, load_base(base))
    assert (saved / "safety_checker").is_dir()
    assert {path.name for path in saved.iterdir()} <= set(WRITTEN)


def test_a_retired_adapter_that_is_trained_anew_is_offered_again(tmp_path: Path) -> None:
    folder = folder_at(tmp_path)
    folder.begin(overwrite=False, info={})
    (tmp_path / RETIRED).touch()
    folder.begin(overwrite=True, info={})
    assert not (tmp_path / RETIRED).exists()


def test_checkpoints_may_lie_in_shared_storage(tmp_path: Path) -> None:
    folder = OutputFolder.of(Folder(str(tmp_path / "out")), "s3://bucket/fleet/", "rex")
    assert folder.checkpoints.location == "s3://bucket/fleet/rex"


@pytest.mark.parametrize("storage", ["{}/shared", "file://{}/shared"])
def test_shared_storage_is_part_of_the_folder(tmp_path: Path, storage: str) -> None:
    """On a disk as at a URI: what is there is asked about, and goes with --overwrite."""
    kept = tmp_path / "shared" / "rex" / "step-00000010"
    mine = tmp_path / "shared" / "rex" / "mine"
    for made in (kept, mine):
        made.mkdir(parents=True)
    folder = OutputFolder.of(Folder(str(tmp_path / "out")), storage.format(tmp_path), "rex")
    with pytest.raises(BadInputError, match="not empty"):
        folder.check(resume=False, overwrite=False)
    folder.check(resume=True, overwrite=False)
    folder.begin(overwrite=True, info={})
    assert mine.exists() and not kept.exists()


def fingerprint(world_size: int = 1, **values: Any) -> dict[str, Any]:
    config = RunConfig.model_validate({"train": {"max_train_steps": 10, **values}})
    return run_fingerprint(
        config, world_size=world_size, subject_key="s", prior_key="", base_hash="b"
    )


def test_fingerprint_ignores_what_does_not_change_the_adapter() -> None:
    check_same_run(fingerprint(), fingerprint(checkpointing_steps=7, max_train_steps=99), "OUT")
    check_same_run(fingerprint(train_batch_size=2), fingerprint(world_size=2), "OUT")
    elsewhere = RunConfig.model_validate({"data": {"cache_path": "elsewhere"}})
    keys = {"world_size": 1, "subject_key": "s", "prior_key": "", "base_hash": "b"}
    here = run_fingerprint(RunConfig(), **keys)  # type: ignore[arg-type]
    check_same_run(here, run_fingerprint(elsewhere, **keys), "OUT")  # type: ignore[arg-type]
    check_same_run({**here, "data.cache_path": "elsewhere"}, here, "OUT")


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"rank": 8}, {"train_batch_size": 2}, {"lr_scheduler": "cosine"}]
)
def test_fingerprint_names_what_does(change: dict[str, Any]) -> None:
    with pytest.raises(ResumeError, match="began under other settings"):
        check_same_run(fingerprint(), fingerprint(**change), "OUT")

"""The journal keeps every record until MLflow has it, whatever happens to the processes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from dreamfleet.tracking import journal as journal_module
from dreamfleet.tracking.base import RunHandle
from dreamfleet.tracking.journal import Journal, has_unsent, left_behind

HANDLE = RunHandle("sqlite:////nowhere.db", "dreamfleet", "biscuit-1")


def _texts(journal: Journal, limit: int = 20) -> list[object]:
    return [record.get("text") for record, _ in journal.next_records(limit)]


def test_records_come_back_in_order_and_are_marked_one_by_one(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HANDLE)
    texts = ["a", "b", "ü\n", os.fsdecode(b"\xff.jpg")]  # a file's name can be any bytes
    for text in texts:
        journal.append({"op": "note", "text": text})
    assert _texts(journal) == texts
    _, mark = journal.next_records(1)[0]
    journal.mark_sent(mark)
    assert _texts(journal) == texts[1:]
    journal.reject({"op": "note", "text": texts[3]}, "no")
    assert not journal.is_sent


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    """run.json holds the tracking address, which may hold a password."""
    (old := tmp_path / "old").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        folders = [Journal.begin(spool, HANDLE).folder for spool in (old, tmp_path / "spool")]
    finally:
        os.umask(before)
    private = [*folders, tmp_path / "spool"]
    assert [folder.stat().st_mode & 0o777 for folder in private] == [0o700] * 3


def test_metrics_are_batched_and_keep_their_place_among_other_records(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HANDLE)
    for step in range(3):
        journal.add_metrics({"loss": 0.5, "rho": 0.1}, step, time_ms=7)
    assert journal.next_records() == []  # still in memory
    journal.append({"op": "finish"})
    records = [record for record, _ in journal.next_records()]
    assert [record["op"] for record in records] == ["metrics", "finish"]
    assert records[0]["rows"][0] == ["loss", 0.5, 7, 0]
    assert len(records[0]["rows"]) == 6


def test_many_metrics_are_written_without_being_asked(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HANDLE)
    for step in range(journal_module.ROWS_PER_RECORD):
        journal.add_metrics({"loss": 0.5}, step, time_ms=7)
    assert len(journal.next_records()) == 1


def test_a_journal_in_use_cannot_be_adopted_and_a_released_one_can(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HANDLE)
    journal.append({"op": "note", "text": "a"})
    assert Journal.adopt(journal.folder) is None
    journal.release()
    adopted = Journal.adopt(journal.folder)
    assert adopted is not None
    assert adopted.handle == HANDLE
    assert _texts(adopted) == ["a"]


def test_a_killed_process_leaves_its_whole_records(tmp_path: Path) -> None:
    script = f"""
    import os, signal
    from pathlib import Path
    from dreamfleet.tracking.base import RunHandle
    from dreamfleet.tracking.journal import Journal
    journal = Journal.begin(Path({str(tmp_path)!r}), RunHandle("u", "e", "k", "id7"))
    journal.append({{"op": "note", "text": "whole"}})
    with (journal.folder / "ops.jsonl").open("ab") as file:
        file.write(b'{{"op": "note", "te')
    os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    (folder,) = left_behind(tmp_path)
    assert has_unsent(folder)
    adopted = Journal.adopt(folder)
    assert adopted is not None
    assert adopted.handle.run_id == "id7"
    assert _texts(adopted) == ["whole"]
    adopted.append({"op": "note", "text": "next"})  # over the half line
    assert _texts(adopted) == ["whole", "next"]


def test_left_behind_journals_come_oldest_first_and_broken_ones_are_passed_over(
    tmp_path: Path,
) -> None:
    first = Journal.begin(tmp_path, RunHandle("u", "e", "zebra"))
    second = Journal.begin(tmp_path, RunHandle("u", "e", "ant"))
    (tmp_path / "junk").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    first.set_run_id("later change of the header")
    assert left_behind(tmp_path) == [first.folder, second.folder]
    assert left_behind(tmp_path / "missing") == []


def test_a_sent_journal_is_deleted_and_one_with_rejected_records_stays(tmp_path: Path) -> None:
    done = Journal.begin(tmp_path, HANDLE)
    done.append({"op": "note"})
    done.mark_sent(done.next_records()[0][1])
    done.release()
    assert not done.folder.exists()

    refused = Journal.begin(tmp_path, HANDLE)
    refused.append({"op": "note"})
    record, mark = refused.next_records()[0]
    refused.reject(record, "no such thing")
    refused.mark_sent(mark)
    refused.release()
    assert "no such thing" in (refused.folder / "rejected.jsonl").read_text()


def test_kept_files_survive_their_originals(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "samples").mkdir(parents=True)
    (out / "checkpoints").mkdir()
    (out / "adapter.json").write_text("{}")
    (out / "samples" / "a.png").write_bytes(b"png")
    (out / "checkpoints" / "big").write_bytes(b"x" * 100)
    journal = Journal.begin(tmp_path / "spool", HANDLE)
    kept = journal.path_of(journal.keep_path(out, ["adapter.json", "samples", "missing"]))
    (out / "adapter.json").unlink()
    (out / "samples" / "a.png").unlink()
    found = sorted(path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file())
    assert found == ["adapter.json", "samples/a.png"]
    assert (kept / "samples" / "a.png").read_bytes() == b"png"


def test_files_too_large_to_copy_are_named_and_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    big = tmp_path / "unet.safetensors"
    big.write_bytes(b"x" * 1000)
    journal = Journal.begin(tmp_path / "spool", HANDLE)
    monkeypatch.setattr(journal_module, "COPY_LIMIT_BYTES", 10)
    monkeypatch.setattr(journal_module, "_linkable", lambda source, folder: False)
    assert journal.path_of(journal.keep_path(big)) == big
    monkeypatch.setattr(journal_module, "_linkable", lambda source, folder: True)
    assert journal.path_of(journal.keep_path(big)) != big


def test_a_spool_that_cannot_be_written_loses_records_but_never_raises(tmp_path: Path) -> None:
    journal = Journal.begin(tmp_path, HANDLE)
    (journal.folder / "ops.jsonl").mkdir()  # whatever the reason: the file cannot be opened
    journal.append({"op": "note"})
    assert journal.keep_path(tmp_path / "not there") == ""
    assert journal.lost == 2
    assert os.path.isdir(journal.folder)

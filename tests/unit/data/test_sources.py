"""Where photos lie: folders, files, zips; what is skipped, and what is refused before anything is
opened.
"""

from __future__ import annotations

import os
import stat
import zipfile
from pathlib import Path

import pytest

from dreamfleet.data.sources import find_photos
from dreamfleet.errors import SubjectSetError
from dreamfleet.runtime.storage import Entry, Folder
from tests.unit.data.helpers import encoded, picture, write_photos


def test_junk_is_skipped_and_listed(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    for name in (".DS_Store", "Thumbs.db", "desktop.ini", "notes.md", "raw.heic"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "0.txt").write_text("a photo of sks dog on grass")
    found = find_photos([str(tmp_path)], max_photos=200)
    assert [photo.name for photo in found.photos] == ["0.png", "1.png"]
    assert found.photos[0].caption == "a photo of sks dog on grass"
    reasons = {item.name: item.reason for item in found.skipped}
    assert reasons["0.txt"] == "caption file"
    assert "convert it" in reasons["raw.heic"]
    junk = {".DS_Store", "Thumbs.db", "desktop.ini", "notes.md", ".ipynb_checkpoints"}
    assert set(reasons) == junk | {"raw.heic", "sub", "0.txt"}


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda folder: None, "no such folder"),
        (lambda folder: folder.mkdir(), "it is empty"),
        (lambda folder: folder.write_bytes(b"x"), "neither a folder"),
    ],
)
def test_missing_and_empty_folders_are_named(tmp_path: Path, prepare, message: str) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "photos")
    with pytest.raises(SubjectSetError, match=message) as error:
        find_photos([str(tmp_path / "photos")], max_photos=200)
    assert "photos" in str(error.value)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    folder.chmod(0)
    try:
        with pytest.raises(SubjectSetError, match="permissions"):
            find_photos([str(folder)], max_photos=200)
    finally:
        folder.chmod(stat.S_IRWXU)


def test_folder_of_subject_folders_says_what_to_give(tmp_path: Path) -> None:
    write_photos(tmp_path / "biscuit")
    with pytest.raises(SubjectSetError, match="one subject is one folder"):
        find_photos([str(tmp_path)], max_photos=200)


def test_links_out_pipes_and_devices_are_never_opened(tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(encoded(picture()))
    folder = write_photos(tmp_path / "photos", 1)
    (folder / "out.png").symlink_to(outside)
    (folder / "dangling.png").symlink_to(folder / "nothing.png")
    (folder / "inside.png").symlink_to(folder / "0.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "round.png").symlink_to(folder / "round.png")
    write_photos(tmp_path / "others", 1)
    (folder / "sub").symlink_to(tmp_path / "others")
    (folder / "metadata.jsonl").write_text('{"file_name": "sub/0.png", "text": "a dog"}\n')
    os.mkfifo(folder / "pipe.png")
    (folder / "empty.png").write_bytes(b"")
    found = find_photos([str(folder)], max_photos=200)
    assert [photo.name for photo in found.photos] == ["0.png", "inside.png"]
    reasons = {item.name: item.reason for item in found.skipped}
    assert (
        "out of the folder" in reasons["out.png"] and "out of the folder" in reasons["device.png"]
    )
    assert "pipe" in reasons["pipe.png"]
    assert "0 bytes" in reasons["empty.png"]
    assert "dangling.png" in reasons and "itself" in reasons["round.png"]
    assert "out of the folder" in reasons["sub/0.png"], "by the folder that it is in"


def test_a_file_uri_is_looked_at_like_a_path(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 2)
    os.mkfifo(folder / "pipe.png")
    found = find_photos([f"file://{folder}"], max_photos=200)
    assert [photo.name for photo in found.photos] == ["0.png", "1.png"]
    assert "pipe" in found.skipped[0].reason
    assert len(find_photos([f"file://{folder}/0.png"], max_photos=200).photos) == 1
    with pytest.raises(SubjectSetError, match="no such folder"):
        find_photos([f"file://{tmp_path}/none"], max_photos=200)
    with pytest.raises(SubjectSetError, match="no such folder"):
        find_photos(["~nobody-here/photos"], max_photos=200)


def test_large_files_at_a_uri_are_refused_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"0.png": 10, "0.txt": 9, "1.png": 4 * 2**30, "1.txt": 4 * 2**30, "2.png": 0}
    entries = [Entry(name, size, 0.0) for name, size in sizes.items()]
    read: list[str] = []
    monkeypatch.setattr(Folder, "entries", lambda folder: entries)

    def read_text(folder: Folder, name: str) -> bytes:
        read.append(name)
        return b"a photo"

    monkeypatch.setattr(Folder, "read", read_text)
    found = find_photos(["s3://bucket/photos"], max_photos=200)
    assert [(photo.name, photo.caption) for photo in found.photos] == [("0.png", "a photo")]
    reasons = {item.name: item.reason for item in found.skipped}
    assert "4096 MiB" in reasons["1.png"] and "0 bytes" in reasons["2.png"]
    assert read == ["0.txt"]
    entries.clear()
    with pytest.raises(SubjectSetError, match="missing or empty"):
        find_photos(["s3://bucket/photos"], max_photos=200)


@pytest.mark.parametrize(
    "entries", [["s3://b/0.png"], ["s3://b/0.png", "s3://b/1.png"], ["s3://b/photos.zip?scheme=x"]]
)
def test_files_at_a_uri_are_no_local_paths(entries: list[str]) -> None:
    with pytest.raises(SubjectSetError, match="at a URI a folder of photos is read"):
        find_photos(entries, max_photos=200)


def test_names_that_no_record_can_hold(tmp_path: Path) -> None:
    """Latin-1 names, as old zips leave them: they cannot be written into a report."""
    folder = write_photos(tmp_path / "photos", 1)
    os.rename(folder / "0.png", os.fsencode(folder) + b"/caf\xe9.png")
    write_photos(folder, 1)
    found = find_photos([str(folder)], max_photos=200)
    assert [photo.name for photo in found.photos] == ["0.png"]
    assert [(item.name, "not UTF-8" in item.reason) for item in found.skipped] == [
        ("caf?.png", True)
    ]
    named = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    os.rename(folder, named)
    with pytest.raises(SubjectSetError, match=r"caf\?: its name is not UTF-8"):
        find_photos([named], max_photos=200)


def test_huge_file_is_refused_by_its_size(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos", 1)
    with (folder / "scan.tiff").open("wb") as file:
        file.truncate(4 * 2**30)  # sparse
    found = find_photos([str(folder)], max_photos=200)
    assert "4096 MiB" in found.skipped[0].reason


def test_file_lists_keep_their_order(tmp_path: Path) -> None:
    folder = write_photos(tmp_path / "photos")
    found = find_photos([str(folder / "2.png"), str(folder / "0.png")], max_photos=200)
    assert [Path(photo.location).name for photo in found.photos] == ["2.png", "0.png"]
    assert found.display_name == "photos"
    with pytest.raises(SubjectSetError, match="no such file"):
        find_photos([str(folder / "2.png"), str(folder / "9.png")], max_photos=200)


def test_photos_beyond_the_limit_are_listed(tmp_path: Path) -> None:
    found = find_photos([str(write_photos(tmp_path, 5))], max_photos=3)
    assert len(found.photos) == 3
    assert "max_photos" in found.skipped[0].reason


def test_metadata_jsonl_gives_captions(tmp_path: Path) -> None:
    write_photos(tmp_path, 2)
    write_photos(tmp_path / "more", 1)
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "0.png", "text": "sks dog running"}\n'
        '{"file_name": "more/0.png", "caption": "sks dog asleep"}\n'
        "not json\n"
        '{"file_name": "../../etc/passwd.png", "text": "x"}\n'
    )
    found = find_photos([str(tmp_path)], max_photos=200)
    captions = {photo.name: photo.caption for photo in found.photos}
    assert captions == {"0.png": "sks dog running", "1.png": None, "more/0.png": "sks dog asleep"}
    assert any("line 3" in warning for warning in found.warnings)
    assert any("passwd" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("content", "expected", "warning"),
    [
        (b"", None, "empty"),
        (b"\xff\xfe\x00bad", None, "not UTF-8"),
        (b"sks \x00dog\n\n  on grass ", "sks dog on grass", None),
        (("word " * 10_000).encode(), "cut", "cut after"),
    ],
)
def test_odd_captions(
    tmp_path: Path, content: bytes, expected: str | None, warning: str | None
) -> None:
    write_photos(tmp_path, 1)
    (tmp_path / "0.txt").write_bytes(content)
    found = find_photos([str(tmp_path)], max_photos=200)
    caption = found.photos[0].caption
    if expected == "cut":
        assert caption is not None and len(caption) <= 1000
    else:
        assert caption == expected
    assert bool(found.warnings) == (warning is not None)
    assert warning is None or warning in found.warnings[0]


def make_zip(path: Path, entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def test_zip_is_read_in_place(tmp_path: Path) -> None:
    image = encoded(picture())
    entries = {
        "biscuit/1.png": image,
        "biscuit/1.txt": b"sks dog",
        "__MACOSX/._1.png": b"x",
        "biscuit/.DS_Store": b"",
    }
    path = make_zip(tmp_path / "biscuit.zip", entries)
    found = find_photos([str(path)], max_photos=200)
    assert [photo.name for photo in found.photos] == ["biscuit/1.png"]
    assert found.photos[0].caption == "sks dog"
    assert found.photos[0].read() == image
    assert sorted(item.name for item in tmp_path.iterdir()) == ["biscuit.zip"]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("../evil.png", b"x", "points out"),
        ("/etc/evil.png", b"x", "absolute"),
        ("C:\\evil.png", b"x", "absolute"),
        ("inner.zip", b"PK", "archive inside"),
        ("bomb.png", b"\0" * (8 * 2**20), "zip bomb"),
    ],
)
def test_unsafe_zips_are_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    path = make_zip(
        tmp_path / "x.zip", {"good.png": encoded(picture()), name: data}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(SubjectSetError, match=message):
        find_photos([str(path)], max_photos=200)


def test_zip_with_a_link_or_damage_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "link.zip", "w") as archive:
        entry = zipfile.ZipInfo("link.png")
        entry.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(entry, "/etc/passwd")
    with pytest.raises(SubjectSetError, match="is a link"):
        find_photos([str(tmp_path / "link.zip")], max_photos=200)
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04 and then nothing")
    with pytest.raises(SubjectSetError, match="cannot be read"):
        find_photos([str(tmp_path / "bad.zip")], max_photos=200)

"""API keys: shown once, kept as hashes, revoked at once."""

from __future__ import annotations

import json
import re
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner

from dreamfleet.cli import cli
from dreamfleet.errors import BadInputError
from dreamfleet.serving.keys import KeyFile


def test_a_key_is_found_until_it_is_revoked(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    assert file.keys() == [] and file.find("df-x") is None
    key, entry = file.create("generate", "ada")
    other, admin = file.create("admin")
    assert file.find(key) == entry and file.find(other) == admin
    assert (entry.scope, admin.scope) == ("generate", "admin")
    assert file.find(key[:-1]) is None and file.find("") is None
    seen_elsewhere = KeyFile(file.path)
    assert seen_elsewhere.find(key) == entry
    file.revoke(entry.id)
    assert seen_elsewhere.find(key) is None and seen_elsewhere.find(other) == admin


def test_the_file_holds_no_key_and_is_private(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "deep" / "keys.json")
    key, _ = file.create()
    assert key not in file.path.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600


@pytest.mark.parametrize("content", ["", "[]", '{"keys": [{"id": 1}]}', "\x00"])
def test_a_broken_file_is_named_and_lets_nobody_in(tmp_path: Path, content: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(BadInputError, match=re.escape(str(path))):
        KeyFile(path).find("df-x")
    with pytest.raises(BadInputError, match=re.escape(str(path))):
        KeyFile(path).create()
    assert path.read_text(encoding="utf-8") == content


def test_commands_print_only_the_key(fleet_home: Path) -> None:
    created = CliRunner().invoke(cli, ["keys", "create", "--name", "ada"])
    assert re.fullmatch(r"[A-Za-z0-9_-]{32,}\n", created.stdout)
    listed = CliRunner().invoke(cli, ["keys", "list"]).stdout
    (entry,) = json.loads((fleet_home / "keys.json").read_text(encoding="utf-8"))["keys"]
    assert entry["id"] in listed and "ada" in listed and created.stdout.strip() not in listed
    assert entry["scope"] == "generate"
    CliRunner().invoke(cli, ["keys", "revoke", entry["id"]])
    assert CliRunner().invoke(cli, ["keys", "list"]).stdout == ""
    gone = CliRunner().invoke(cli, ["keys", "revoke", entry["id"]])
    assert isinstance(gone.exception, BadInputError)

"""The checkout as a whole: names, recipes, documents, entry points."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import pytest
import yaml

import dreamfleet
from dreamfleet.config import load_config

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "pipelines").glob("*.py"))
RECIPES = sorted(
    [*(ROOT / "pipelines/recipes").glob("*.yaml"), *(ROOT / "examples").rglob("*.yaml")]
)
# Recipes of other commands than `personalize`; their own tests read them.
OTHER_RECIPES = {"pretrain_embedded.yaml"}
DOCUMENTS = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "cluster" / "README.md"]
)
# Options of Ray, kubectl, docker and others in blocks that name a command of ours too.
FOREIGN_FLAGS = {
    *("--working-dir", "--runtime-env-json", "--head", "--dashboard-host", "--generate"),
    *("--from-literal", "--from-file", "--endpoint-url", "--recursive", "--watch"),
}


class TestLayout:
    def test_the_standard_platform_module_is_not_shadowed(self) -> None:
        program = "import platform; assert platform.system(); print(platform.__file__)"
        ended = subprocess.run(
            [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert not Path(ended.stdout.strip()).is_relative_to(ROOT / "platform")

    def test_the_source_root_holds_no_module(self) -> None:
        assert (ROOT / "platform/dreamfleet/__init__.py").is_file()
        assert list((ROOT / "platform").glob("*.py")) == []

    def test_every_test_folder_is_a_package(self) -> None:
        folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
        assert len(folders) >= 3
        assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []

    def test_the_package_says_that_it_is_typed(self) -> None:
        assert (ROOT / "platform/dreamfleet/py.typed").is_file()

    def test_no_path_of_one_machine_in_what_is_shipped(self) -> None:
        # /home/ray is the image's own user.
        mark = re.compile(r"(?<![\w.])/(?:work|home(?!/ray\b)|root|Users)/\w+")
        shipped = [
            path
            for folder in ("platform", "pipelines", "examples", "docs", "cluster")
            for path in (ROOT / folder).rglob("*")
            if path.suffix in (".py", ".md", ".yaml", ".toml", ".json", ".html")
        ]
        texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in shipped}
        assert len(texts) > 50
        assert [str(path) for path, text in texts.items() if mark.search(text)] == []


class TestRecipes:
    def test_there_are_some(self) -> None:
        assert len(RECIPES) >= 4

    @pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
    def test_begins_with_its_command(self, path: Path) -> None:
        head = "\n".join(path.read_text(encoding="utf-8").splitlines()[:6])
        assert "# Command" in head

    @pytest.mark.parametrize(
        "path",
        [path for path in RECIPES if path.name not in OTHER_RECIPES],
        ids=lambda path: path.name,
    )
    def test_parses(self, path: Path) -> None:
        config = load_config(path)
        assert all((ROOT / entry).exists() for entry in config.subject.images)


class TestPipelines:
    def test_there_are_some(self) -> None:
        assert len(SCRIPTS) >= 3

    @pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
    def test_answers_help(self, script: Path, tmp_path: Path) -> None:
        """From another folder, with the package on the path only as a Ray job has it."""
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "platform")}
        ended = subprocess.run(
            [sys.executable, str(script), "--help"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Usage:" in ended.stdout

    @pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
    def test_is_thin_and_named_verb_noun(self, script: Path) -> None:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", script.stem)
        text = script.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 80
        assert not re.search(r"^(from|import) pipelines", text, re.MULTILINE)


class TestDocuments:
    def test_readme_is_short(self) -> None:
        assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 200

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_make_targets_exist(self, document: Path) -> None:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
        text = document.read_text(encoding="utf-8")
        named = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE))
        named |= set(re.findall(r"`make ([a-z-]+)", text))
        assert named <= targets

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_links_lead_somewhere(self, document: Path) -> None:
        links = re.findall(r"\]\(([^)#]+)\)", document.read_text(encoding="utf-8"))
        local = [link for link in links if "://" not in link]
        assert [link for link in local if not (document.parent / link).exists()] == []

    def test_readme_names_the_two_commands(self) -> None:
        text = (ROOT / "README.md").read_text(encoding="utf-8")
        assert re.search(r"^make demo", text, re.MULTILINE)
        assert re.search(r"^make test", text, re.MULTILINE)

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
    def test_flags_in_commands_exist(self, document: Path) -> None:
        from dreamfleet.cli import cli

        context = cli.make_context("dreamfleet", ["doctor"])
        known = {*FOREIGN_FLAGS, "--version", "--config", "--adapter"}
        groups = [cli, *(own for own in cli.commands.values() if isinstance(own, click.Group))]
        for command in [own for group in groups for own in group.commands.values()]:
            for parameter in command.get_params(context):
                known |= {*parameter.opts, *parameter.secondary_opts}
        for script in (ROOT / "pipelines").glob("*.py"):
            source = script.read_text(encoding="utf-8")
            known |= set(re.findall(r"click\.option\(\s*\"(--[a-z-]+)\"", source))
        blocks = re.findall(
            r"^```\w*\n(.*?)^```", document.read_text(encoding="utf-8"), re.S | re.M
        )
        commands = [block for block in blocks if "dreamfleet " in block or "pipelines/" in block]
        used = {
            flag for block in commands for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", block)
        }
        used |= set(re.findall(r"`(--[a-z][a-z-]+)`", "".join(commands)))
        assert used <= known

    def test_changelog_has_the_unreleased_section(self) -> None:
        assert "## [Unreleased]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


class TestPackaging:
    def test_every_dependency_is_pinned_in_the_constraints(self) -> None:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
        lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        pinned = {_normalised(line.split("==")[0]) for line in lines if "==" in line}
        assert {_normalised(re.split(r"[\[<>=]", entry)[0]) for entry in wanted} <= pinned
        assert "torch==2.13.0" in lines

    def test_constraints_name_no_machine(self) -> None:
        text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
        pins = [line for line in text.splitlines() if not line.startswith("#")]
        assert len(pins) > 50
        assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in pins)

    def test_version_is_one(self) -> None:
        assert re.fullmatch(r"\d+\.\d+\.\d+", dreamfleet.__version__)

    def test_hosted_ci_calls_the_make_targets(self) -> None:
        workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
        steps = [step for job in workflow["jobs"].values() for step in job["steps"]]
        commands = {step["run"] for step in steps if "run" in step}
        assert {"make checks", "make test", "make demo"} <= commands

    def test_ci_script_calls_the_same(self) -> None:
        script = ROOT / ".ci/run"
        assert os.access(script, os.X_OK)
        lines = script.read_text(encoding="utf-8").splitlines()
        assert [line for line in lines if line.startswith("make ")] == [
            "make checks",
            "make test",
            "make demo",
        ]
        assert "set -euo pipefail" in lines
        subprocess.run(["bash", "-n", str(script)], check=True)


class TestPublicNames:
    def test_import_is_light_and_functions_come_late(self) -> None:
        program = (
            "import sys, dreamfleet\n"
            "assert not {'torch', 'ray', 'mlflow', 'pydantic'} & set(sys.modules)\n"
            "assert callable(dreamfleet.personalize) and callable(dreamfleet.generate)"
        )
        subprocess.run([sys.executable, "-c", program], check=True)

    def test_other_names_are_refused(self) -> None:
        with pytest.raises(AttributeError, match="no attribute 'persnalize'"):
            _ = dreamfleet.persnalize


def _normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.mark.xdist_group("house")
def test_groups_of_tests_stay_in_one_process(request: pytest.FixtureRequest) -> None:
    """Of pytest and pytest-xdist not all versions agree on how a test's group is told."""
    grouped = getattr(request.config.option, "loadgroup", False)
    assert not grouped or request.node.nodeid.endswith("@house")

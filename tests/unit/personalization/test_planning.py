"""What is refused before Ray starts, and what is warned of."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.bases import embedded_path, inspect_base
from dreamfleet.config import RunConfig, SudeConfig, load_config
from dreamfleet.data.tokens import token_warnings
from dreamfleet.errors import BadInputError
from dreamfleet.personalization import personalize
from dreamfleet.personalization.command import Command
from dreamfleet.personalization.planning import (
    complete_requests,
    warn_of_idle_settings,
    warn_of_prompts,
    with_pinned_base,
)
from dreamfleet.runtime import session
from dreamfleet.runtime.progress import SilentProgress
from dreamfleet.runtime.session import RaySession
from dreamfleet.training.output import OutputFolder
from tests.tiny_bases import make_tiny_sd1
from tests.unit.data.helpers import config_for, write_photos


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_sd1(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def started(*arguments: Any, **options: Any) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(session, "ray_session", started)


def refused(config: Any, **flags: Any) -> str:
    with pytest.raises(BadInputError) as error:
        personalize(config, **flags)
    assert error.value.exit_code == 2
    return str(error.value)


def test_bad_photos_base_output_and_flags(tmp_path: Path, base: Path) -> None:
    photos = write_photos(tmp_path / "Rex")
    out = str(tmp_path / "out")
    good: dict[str, Any] = {"base_model": str(base), "output_dir": out}
    assert "no such folder" in refused(config_for(tmp_path / "nowhere", **good))
    assert "class word" in refused(config_for(photos, class_word="", **good))
    missing = {**good, "base_model": str(tmp_path / "nobase")}
    assert "base model" in refused(config_for(photos, **missing))
    prior = {"with_prior_preservation": True, "class_data_dir": str(tmp_path / "none")}
    assert "no such folder" in refused(config_for(photos, prior=prior, **good))
    assert "one goes on" in refused(config_for(photos, **good), resume=True, overwrite=True)
    assert not Path(out).exists()
    Path(out).mkdir()
    (Path(out) / "mine.txt").write_text("mine")
    assert "not empty" in refused(config_for(photos, **good))
    assert "other files" in refused(config_for(photos, **good), overwrite=True)
    assert (Path(out) / "mine.txt").exists()
    assert "rank" in refused(
        config_for(photos, train={"rank": 1000}, **{**good, "output_dir": None})
    )


def test_the_output_folder_is_looked_at_before_the_base(tmp_path: Path) -> None:
    """The most common refusal does not wait for torch."""
    photos, out = write_photos(tmp_path / "Rex"), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    config = config_for(photos, base_model=str(tmp_path / "nobase"), output_dir=str(out))
    assert "not empty" in refused(config)


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("htp://mlflow:5000", "MLflow knows no 'htp'; expected e.g. http://host:5000"),
        ("localhost:5000", "MLflow knows no 'localhost'"),
        ("postgres://me:secret@host/db", "MLflow knows no 'postgres'"),
        ("sqlite://mlflow.db", "three slashes"),
        ("http://me:secret@host:5000", "set MLFLOW_TRACKING_URI to the whole address"),
    ],
)
def test_tracking_addresses_that_can_never_be(
    tmp_path: Path, base: Path, uri: str, message: str
) -> None:
    given: dict[str, Any] = {"base_model": str(base), "output_dir": str(tmp_path / "out")}
    photos = write_photos(tmp_path / "Rex")
    said = refused(config_for(photos, tracking={"uri": uri}, **given))
    assert message in said and "secret" not in said
    for possible in ("http://nobody.here:1", "postgresql+psycopg2://a@b/c", "file:///x", "mlruns"):
        complete_requests(config_for(photos, tracking={"uri": possible}, **given))
    complete_requests(config_for(photos, tracking={"uri": uri, "enabled": False}, **given))


@pytest.mark.parametrize("settings", [{"device": "cuda"}, {"cluster": {"use_gpu": True}}])
def test_a_gpu_that_this_machine_has_not(
    tmp_path: Path, base: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # of another test in this process
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    photos, out = write_photos(tmp_path / "Rex"), str(tmp_path / "out")
    given = {"base_model": str(base), "output_dir": out, **settings}
    message = refused(config_for(photos, **given))
    assert "torch sees no GPU on this machine; use auto or cpu" in message
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")  # there may be some there
    complete_requests(config_for(photos, **given))


@pytest.mark.parametrize(("device", "use_gpu"), [("cpu", True), ("cuda", False)])
def test_a_device_against_the_clusters(
    tmp_path: Path, base: Path, device: str, use_gpu: bool
) -> None:
    cluster = {"use_gpu": use_gpu}
    given: dict[str, Any] = {"base_model": str(base), "device": device, "cluster": cluster}
    assert "the opposite" in refused(config_for(write_photos(tmp_path / "Rex"), **given))


def test_relative_output_inside_a_job_is_refused(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    photos = write_photos(tmp_path / "Rex")
    config = config_for(photos, base_model=str(base), output_dir="runs/rex")
    assert "absolute --output-dir" in refused(config)


def test_unusable_storage_and_secrets_in_a_uri(tmp_path: Path, base: Path) -> None:
    photos = write_photos(tmp_path / "Rex")
    secret = config_for(photos, base_model=str(base), output_dir="s3://me:pw@bucket/out")
    said = refused(secret)
    assert "by the environment" in said and "pw" not in said
    unknown = config_for(photos, base_model=str(base), output_dir="nosuch://bucket/out")
    assert "not a usable URI" in refused(unknown)


def test_without_ray_every_folder_is_as_it_was(tmp_path: Path, base: Path) -> None:
    """Ray that does not start is no reason to lose an adapter, or to be asked about a folder."""
    photos, out = write_photos(tmp_path / "Rex"), tmp_path / "out"
    config = config_for(
        photos, base_model=str(base), output_dir=str(out), tracking={"enabled": False}
    )
    with pytest.raises(AssertionError, match="Ray was started"):
        personalize(config)
    assert not out.exists()
    (out / "checkpoints").mkdir(parents=True)
    (out / "checkpoints" / "run.json").write_text('{"subject": "rex", "run_key": "k"}')
    earlier = ("adapter.json", "config.yaml", "pytorch_lora_weights.safetensors")
    for name in earlier:
        (out / name).write_text("earlier")
    with pytest.raises(AssertionError, match="Ray was started"):
        personalize(config, overwrite=True)
    assert [(out / name).read_text() for name in earlier] == ["earlier"] * 3


def test_a_folder_that_cannot_be_taken_leaves_the_others_as_they_were(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def begin(folder: OutputFolder, *, overwrite: bool, info: dict[str, Any]) -> None:
        if info["subject"] == "rex":
            raise BadInputError("the bucket is gone")
        took(folder, overwrite=overwrite, info=info)

    took: Any = OutputFolder.begin
    monkeypatch.setattr(OutputFolder, "begin", begin)
    photos = [write_photos(tmp_path / name) for name in ("Bo", "Rex")]
    out = tmp_path / "out"
    given: dict[str, Any] = {"base_model": str(base), "tracking": {"enabled": False}}
    assert "bucket" in refused(config_for(*photos, output_dir=str(out), **given))
    assert not [path for path in out.iterdir() if path.name != ".lock"]


def test_settings_of_a_run_stay_until_they_are_replaced_on_purpose(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that a resumed run is refused for must not lie beside its adapter."""
    there = RaySession(None, 1, 0)
    monkeypatch.setattr(session, "ray_session", lambda cluster: contextlib.nullcontext(there))
    monkeypatch.setattr(Command, "_prepare", lambda own, ray: (None, own.requests))
    monkeypatch.setattr(Command, "_train_and_finish", lambda *given: [])
    photos, out = write_photos(tmp_path / "Rex"), tmp_path / "out"

    def seed_kept(seed: int, resume: bool = False, overwrite: bool = False) -> int:
        given: dict[str, Any] = {"train": {"seed": seed}, "tracking": {"enabled": False}}
        config = config_for(photos, base_model=str(base), output_dir=str(out), **given)
        personalize(config, resume=resume, overwrite=overwrite)
        return load_config(out / "config.yaml").train.seed

    assert [seed_kept(1), seed_kept(2, resume=True), seed_kept(3, overwrite=True)] == [1, 1, 3]


class Warnings(SilentProgress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def warn(self, text: str) -> None:
        self.lines.append(text)


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        ("sks", None),
        ("auto", None),
        ("biscuit", "tokens for this base"),
        ("dog", "class word itself"),
    ],
)
def test_tokens_are_judged(tmp_path: Path, base: Path, token: str, expected: str | None) -> None:
    config = config_for(
        write_photos(tmp_path / "Rex", 1), base_model=str(base), subject={"token": token}
    )
    requests, files, _ = complete_requests(config)
    progress = Warnings()
    warn_of_prompts(requests, files, progress)
    assert bool(progress.lines) == (expected is not None)
    assert expected is None or expected in progress.lines[0]
    assert requests[0].config.subject.token != "auto"


def idle(config: RunConfig, base: Path) -> list[str]:
    progress = Warnings()
    warn_of_idle_settings(config, inspect_base(base), progress)
    return progress.lines


LORA_OF_FULL = {"mode": "full", "rank": 2, "lora_layers": "attention"}
OWN_IMAGES = {"with_prior_preservation": True, "form": "teacher", "class_data_dir": "x"}


@pytest.mark.parametrize(
    ("section", "given", "named", "reason"),
    [
        ("train", LORA_OF_FULL, "train.rank, train.lora_layers", "mode is full"),
        ("train", {"lr_warmup_steps": 5}, "train.lr_warmup_steps", "constant_with_warmup"),
        ("train", {"ema_decay": 0.9}, "train.ema_decay", "use_ema is off"),
        ("prior", {"weight": 2, "form": "teacher"}, "prior.form, prior.weight", "tion is off"),
        ("prior", OWN_IMAGES, "prior.class_data_dir", "no prior set is drawn"),
        ("sude", {"teacher": "current"}, "sude.teacher", "weight is 0"),
    ],
)
def test_settings_without_effect_are_named(
    base: Path, section: str, given: dict[str, Any], named: str, reason: str
) -> None:
    (line,) = idle(RunConfig(**{section: given}), base)
    assert f"without effect: {named} (" in line and reason in line


def test_settings_with_an_effect_are_not(tmp_path: Path, base: Path) -> None:
    """Those of recipes; and those that a run writes: there all that a base fills in looks given."""
    recipes = [*Path("pipelines/recipes").glob("*.yaml")]
    assert len(recipes) > 5
    for recipe in recipes:
        if recipe.name != "pretrain_embedded.yaml":
            assert idle(load_config(recipe), base) == [], recipe.name
    assert idle(RunConfig(sude=SudeConfig(preset="paper", weight=1)), base) == []
    photos = write_photos(tmp_path / "Rex")
    for mode in ("full", "lora"):
        config = config_for(photos, base_model=str(base), train={"mode": mode})
        written = complete_requests(config)[0][0].config
        assert written.train.rank and idle(written, base) == []


@pytest.mark.parametrize("token", ["snow", "backpack", "sunflowers", "mountain"])
def test_words_of_the_base_are_no_tokens(token: str) -> None:
    """One token each for the embedded base: words of its captions, with a meaning."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded_path() / "tokenizer")
    (warning,) = token_warnings(tokenizer, token, "dog")
    assert "may be a common word" in warning
    assert token_warnings(tokenizer, "sks", "dog") == []


def test_long_prompts_are_warned_of(tmp_path: Path, base: Path) -> None:
    folder = write_photos(tmp_path / "Rex", 1)
    (folder / "0.txt").write_text("sks dog " + "and more " * 40)
    requests, files, _ = complete_requests(config_for(folder, base_model=str(base)))
    progress = Warnings()
    warn_of_prompts(requests, files, progress)
    assert "the base reads the first" in progress.lines[0]


def test_the_base_s_name_holds_in_any_process(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    pinned = with_pinned_base(config_for(tmp_path, base_model=base.name, variant="fp16"))
    assert pinned.base_source == pinned.base_model == f"{base}#fp16"
    assert with_pinned_base(pinned) == pinned
    hub = with_pinned_base(config_for(tmp_path, base_model="a/b", revision="main"))
    assert (hub.base_model, hub.revision) == ("a/b@main", None)


@pytest.mark.heavy
def test_a_command_is_planned_without_torch(tmp_path: Path, base: Path) -> None:
    """Wrong settings are refused in a second, and Ray's processes start that much earlier."""
    photos = write_photos(tmp_path / "Rex")
    config = config_for(photos, base_model=str(base), output_dir=str(tmp_path / "out"))
    code = (
        "import sys; from dreamfleet.config import RunConfig;"
        "from dreamfleet.personalization.command import Command;"
        "from dreamfleet.runtime.progress import SilentProgress;"
        "config = RunConfig.model_validate_json(sys.argv[1]);"
        "Command.planned(config, resume=False, overwrite=False, progress=SilentProgress());"
        "print('HEAVY', sorted({'torch', 'diffusers', 'ray', 'mlflow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, config.model_dump_json()]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "HEAVY []" in ended.stdout, ended.stdout + ended.stderr

"""The command line: exit codes, messages, names of flags."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

import dreamfleet
from dreamfleet import cli, doctor, flags
from dreamfleet.config import (
    MAX_INFERENCE_STEPS,
    Interval,
    RunConfig,
    dreamfleet_home,
    dump_config,
    flat_fields,
    load_config,
)
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError

REPOSITORY = Path(__file__).resolve().parents[2]
Captured = pytest.CaptureFixture[str]
COMMANDS = (
    "personalize", "prepare", "generate", "submit", "export", "import", "evaluate", "benchmark",
    "compare", "preference", "runs", "doctor", "world", "cache", "tune",
    "serve", "query", "keys", "launch",
)  # fmt: skip


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    """Exit code, stdout, stderr."""
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def overrides(*arguments: str) -> dict[str, object]:
    """The configuration values that flags of `personalize` set."""
    command = cli.cli.commands["personalize"]
    context = command.make_context("personalize", list(arguments))
    return flags.overrides(context.params)


class TestHelp:
    def test_lists_every_command(self, capsys: Captured) -> None:
        code, out, _ = run(capsys, "--help")
        assert code == 0
        assert all(f"\n  {name} " in out for name in COMMANDS)
        assert set(cli.cli.commands) == set(COMMANDS)

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_explains_itself(self, capsys: Captured, command: str) -> None:
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert "--debug" in out

    def test_version(self, capsys: Captured) -> None:
        code, out, _ = run(capsys, "--version")
        assert (code, out.strip()) == (0, f"dreamfleet {dreamfleet.__version__}")

    def test_only_tune_has_flags_of_a_search(self) -> None:
        def flags_of(name: str) -> set[str]:
            command = cli.cli.commands[name]
            return {flag for p in command.get_params(command.make_context(name, []))
                    for flag in p.opts}  # fmt: skip

        assert {"--num-samples", "--space-sude-weight"} <= flags_of("tune")
        assert not {"--num-samples", "--space-sude-weight"} & flags_of("personalize")
        assert "--learning-rate" in flags_of("tune"), "what is set keeps the short name"

    def test_every_field_has_a_flag_that_names_its_yaml_key(self) -> None:
        records = {option.name: option for option in flags.options()}
        assert len(records) == len(flat_fields())
        for key in flat_fields():
            option = records[f"config__{key.replace('.', '__')}"]
            assert f"[{key}]" in str(option.help)
            assert "Undefined" not in str(option.help)
            assert f"--{flags.flag_name(key)}" in option.opts
            assert all("_" not in name for name in option.opts + option.secondary_opts)

    @pytest.mark.parametrize(
        "arguments", [["--help"], ["personalize", "--help"], ["benchmark", "--help"]]
    )
    def test_imports_nothing_heavy(self, arguments: list[str]) -> None:
        program = (
            "import sys\nfrom dreamfleet.cli import main\n"
            f"code = main({arguments!r})\n"
            "heavy = {'torch', 'ray', 'mlflow', 'numpy', 'diffusers', 'transformers', 'PIL'}\n"
            "print('HEAVY', sorted(heavy & set(sys.modules)), code)"
        )
        ended = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        )
        assert ended.stdout.splitlines()[-1] == "HEAVY [] 0", ended.stdout + ended.stderr

    def test_python_dash_m(self) -> None:
        command = [sys.executable, "-m", "dreamfleet", "--version"]
        ended = subprocess.run(command, capture_output=True, text=True, check=True)
        assert ended.stdout.startswith("dreamfleet ")


class TestFlags:
    def test_no_name_is_taken_twice(self) -> None:
        counts = Counter(name for key in flat_fields() for name in flags.flag_names(key))
        assert [name for name, count in counts.items() if count > 1] == []

    @pytest.mark.parametrize(
        ("flag", "key"),
        [
            ("max-train-steps", "train.max_train_steps"),
            ("learning-rate", "train.learning_rate"),
            ("rank", "train.rank"),
            ("network-dim", "train.rank"),
            ("network-alpha", "train.lora_alpha"),
            ("class-word", "subject.class_word"),
            ("sude-weight", "sude.weight"),
            ("prior-weight", "prior.weight"),
            ("prior-loss-weight", "prior.weight"),
            ("num-class-images", "prior.num_class_images"),
            ("mixed-precision", "train.mixed_precision"),
            ("train-mode", "train.mode"),
            ("tracking-uri", "tracking.uri"),
            ("ray-address", "cluster.ray_address"),
            ("num-workers", "cluster.num_workers"),
            ("pretrained-model-name-or-path", "base_model"),
            ("seed", "train.seed"),
            ("sude-teacher", "sude.teacher"),
            ("class-data-dir", "prior.class_data_dir"),
        ],
    )
    def test_known_names(self, flag: str, key: str) -> None:
        assert overrides(f"--{flag}", "7") == {key: "7"}

    @pytest.mark.parametrize(
        "spelling", ["--max-train-steps", "--max_train_steps", "--max_train-steps"]
    )
    def test_hyphens_and_underscores(self, spelling: str) -> None:
        assert (
            overrides(spelling, "30")
            == overrides(f"{spelling}=30")
            == {"train.max_train_steps": "30"}
        )

    def test_underscores_in_values_stay(self) -> None:
        assert overrides("--output_dir=my_dir/a_b") == {"output_dir": "my_dir/a_b"}

    def test_switches(self) -> None:
        assert overrides("--with_prior_preservation") == {"prior.with_prior_preservation": True}
        assert overrides("--no-tracking") == {"tracking.enabled": False}
        assert overrides() == {}

    def test_null_is_a_value_where_the_field_allows_it(self) -> None:
        given = overrides("--sude-truncation-point", "null", "--class-word", "null")
        assert given == {"sude.truncation_point": None, "subject.class_word": "null"}

    def test_lists_and_mappings(self) -> None:
        given = overrides(
            "--validation-prompt",
            "one",
            "--validation-prompts",
            "two",
            "--resources-per-worker",
            "CPU=1,GPU=0.5",
        )
        config = load_config(None, given)
        assert config.sampling.validation_prompts == ["one", "two"]
        assert config.cluster.resources_per_worker == {"CPU": 1.0, "GPU": 0.5}
        same = load_config(None, overrides("--resources-per-worker", "{CPU: 1, GPU: 0.5}"))
        assert same == load_config(None, {"cluster.resources_per_worker": {"CPU": 1, "GPU": 0.5}})

    def test_flags_win_over_the_recipe(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("train: {rank: 4, seed: 9}\n")
        config = load_config(recipe, overrides("--rank", "8"))
        assert (config.train.rank, config.train.seed) == (8, 9)

    def test_a_flag_beside_a_preset_wins(self) -> None:
        config = load_config(None, overrides("--sude-preset", "official", "--sude-weight", "2"))
        assert (config.sude.weight, config.sude.teacher) == (2.0, "current")

    @pytest.mark.parametrize(
        ("preset", "weighting"), [("official", "official"), ("paper", "bayes")]
    )
    def test_a_preset_by_flag_wins_over_the_recipe(self, preset: str, weighting: str) -> None:
        """As the recipe's own comment says."""
        recipe = REPOSITORY / "pipelines" / "recipes" / "sude_lora.yaml"
        sude = load_config(recipe, overrides("--sude-preset", preset)).sude
        assert (sude.teacher, sude.weighting, sude.weight) == ("current", weighting, 0.4)
        sude = load_config(recipe, overrides("--sude-preset", preset, "--sude-weight", "2")).sude
        assert (sude.teacher, sude.weighting, sude.weight) == ("current", weighting, 2.0)
        assert load_config(recipe).sude.teacher == "pretrained"

    def test_python_keywords_are_named_like_flags(self) -> None:
        assert flags.keyword_overrides({"sude_weight": 0.4, "network_dim": 4}) == {
            "sude.weight": 0.4,
            "train.rank": 4,
        }
        with pytest.raises(ConfigError, match="'suda_weight'.*did you mean 'sude_weight'"):
            flags.keyword_overrides({"suda_weight": 1})


# Numbers are those of the list of bad inputs that the product must survive.
BAD_FLAGS = [
    (("--learning-rate", "-1"), "train.learning_rate = '-1'"),
    (("--sude-weight", "nan"), "sude.weight = 'nan'"),
    (("--prior-loss-weight", "inf"), "prior.weight = 'inf'"),
    (("--max-train-steps", "0"), "train.max_train_steps = '0'"),
    (("--rank", "0"), "train.rank = '0'"),
    (("--rank", "four"), "train.rank = 'four'"),
    (("--mixed-precision", "fp8"), "'no', 'fp16' or 'bf16'"),
    (("--method", "magic"), "method = 'magic'"),
    (("--resources-per-worker", "CPU"), "cluster.resources_per_worker"),
    (("--use-gpu", "maybe"), "cluster.use_gpu = 'maybe'"),
]
BAD_YAML = [
    ("trian: {rank: 4}", "unknown key 'trian' (did you mean 'train'?)"),
    ("train: {rnak: 4}", "unknown key 'train.rnak' (did you mean 'train.rank'?)"),
    ("sude_weight: 0.4", "unknown key 'sude_weight' (did you mean 'sude.weight'?)"),
    ("train: {learning_rate: -1}", "train.learning_rate = -1"),
    ("sude: {weight: .nan}", "sude.weight = nan"),
    ("prior: {weight: .inf}", "prior.weight = inf"),
    ("train: {max_train_steps: 0}", "train.max_train_steps = 0"),
    ("train: 5", "train = 5"),
    ("- a list", "expected a mapping of keys"),
    ("train: [1", "not valid YAML"),
    ("train: {seed: 1}\nsude: {weight: 1}\ntrain: {rank: 4}\n", "key 'train' stands there twice"),
    ("train: 3", "train = 3: expected a section with keys"),
    ("train: {rank: true}", "train.rank = True: expected a number, not true or false"),
    ("prior: {weight: yes}", "prior.weight = True: expected a number, not true or false"),
    ("tune: {final_seeds: off}", "tune.final_seeds = False: expected a number"),
    ("space: {rank: [4, true]}", "space.rank = [4, True]: expected a number"),
    ("sampling: {num_inference_steps: 501}", "less than or equal to 500"),
    ("prior: {num_inference_steps: 1000}", "less than or equal to 500"),
    ("tune: {rung_inference_steps: 1000}", "less than or equal to 500"),
    ("train: {lr_scheduler: polynomial}", "train.lr_scheduler = 'polynomial'"),
]


class TestBadInput:
    @pytest.mark.parametrize(("arguments", "message"), BAD_FLAGS)
    def test_15_wrong_values_name_their_key(
        self, capsys: Captured, arguments: tuple[str, ...], message: str
    ) -> None:
        code, out, err = run(capsys, "personalize", "photos", "--class-word", "dog", *arguments)
        assert code == 2
        assert message in err
        assert "Traceback" not in err
        assert out == ""

    @pytest.mark.parametrize(("text", "message"), BAD_YAML)
    def test_15_wrong_recipes_name_file_and_key(
        self, capsys: Captured, tmp_path: Path, text: str, message: str
    ) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(text)
        code, _, err = run(capsys, "personalize", "--config", str(recipe))
        assert code == 2
        assert message in err
        assert str(recipe) in err

    def test_every_wrong_key_is_named_at_once(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("train: {rank: 0, seed: -1}\n")
        with pytest.raises(ConfigError) as caught:
            load_config(recipe, {"sude.weight": "nan"})
        lines = str(caught.value).splitlines()
        assert len(lines) == 3
        assert any(line.startswith("flag for sude.weight") for line in lines)
        assert sum(line.startswith(str(recipe)) for line in lines) == 2

    def test_a_recipe_that_is_not_there(self, capsys: Captured) -> None:
        code, _, err = run(capsys, "personalize", "--config", "no/such.yaml")
        assert (code, "no/such.yaml" in err) == (2, True)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("train",), "No such command 'train'"),
            (("personalize", "--no-such-flag", "1"), "--no-such-flag"),
            (("runs", "only-one"), "two to compare"),
            (("world", "--sheet", "sheet.txt"), "sheet.txt"),
            (("generate", "--prompt", "a dog"), "--output-dir"),
            (
                ("generate", "--prompt", "a", "--output-dir", "o", "--num-images", "0"),
                "--num-images",
            ),
        ],
    )
    def test_usage(self, capsys: Captured, arguments: tuple[str, ...], message: str) -> None:
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert message in err

    def test_an_output_folder_that_is_a_file(self, capsys: Captured, tmp_path: Path) -> None:
        (tmp_path / "taken").write_text("")
        folder = str(tmp_path / "taken")
        code, _, err = run(capsys, "generate", "--prompt", "a dog", "--output-dir", folder)
        assert (code, folder in err) == (2, True)


class TestExitCodes:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (BadInputError("no such photo"), 2),
            (DreamfleetError("the cluster is gone"), 1),
            (ValueError("a bug"), 1),
            (KeyboardInterrupt(), 130),
        ],
    )
    def test_of_errors(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
    ) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(doctor, "examine", fail)
        given, _, err = run(capsys, "doctor")
        assert given == code
        assert str(error) in err
        assert "Traceback" not in err

    @pytest.mark.parametrize("arguments", [("--debug", "doctor"), ("doctor", "--debug")])
    def test_debug_shows_the_traceback(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        def fail(*_: object) -> None:
            raise BadInputError("no such photo")

        monkeypatch.setattr(doctor, "examine", fail)
        code, _, err = run(capsys, *arguments)
        assert code == 2
        assert "Traceback" in err and "no such photo" in err

    def test_interrupted_training_says_how_to_go_on(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamfleet import personalization

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        arguments = ["personalize", "my photos", "--class-word", "dog", "--overwrite"]
        monkeypatch.setattr(personalization, "personalize", interrupted)
        monkeypatch.setattr(sys, "argv", ["/somewhere/dreamfleet", *arguments])
        code, _, err = run(capsys, *arguments)
        assert code == 130
        assert err.count("interrupted") == 1
        assert "go on with: dreamfleet personalize 'my photos' --class-word dog --resume" in err

    def test_interrupted_benchmarks_go_on_by_themselves(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamfleet import assessment

        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(assessment, "benchmark", interrupted)
        code, _, err = run(capsys, "benchmark", "worldbench")
        assert (code, err.strip()) == (130, "interrupted; the same command goes on")


class TestResults:
    def test_says_where_to_look_and_fails_when_a_subject_did(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch, fleet_home: Path, tmp_path: Path
    ) -> None:
        from dreamfleet import personalization
        from dreamfleet.personalization import PersonalizeResult, SubjectResult

        rex = SubjectResult("rex", "Rex", "finished", tmp_path / "rex", steps=7, run_id="0a1b")
        tom = SubjectResult("tom", "Tom", "failed", tmp_path / "tom", message="no photo")
        given = [rex]
        monkeypatch.setattr(
            personalization, "personalize", lambda *_, **__: PersonalizeResult(given, 1.0)
        )
        code, out, _ = run(capsys, "personalize", "photos", "--class-word", "dog")
        assert code == 0
        assert f"{tmp_path / 'rex' / 'report.html'}" in out
        assert f"{tmp_path / 'rex' / 'samples'}" in out
        assert "run 0a1b" in out and f"{fleet_home / 'mlflow.db'}" in out
        given.append(tom)
        code, out, err = run(capsys, "personalize", "photos", "--class-word", "dog")
        assert (code, "1 of 2 subjects" in err) == (1, True)
        assert "report.html" in out

    def test_subjects_that_cannot_be_prepared_are_no_success(
        self, capsys: Captured, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from dreamfleet import personalization
        from dreamfleet.personalization import PreparedSubjects

        found = PreparedSubjects([], {"tom": "no photo"})
        monkeypatch.setattr(personalization, "prepare_subjects", lambda *_, **__: found)
        code, out, err = run(capsys, "prepare", "photos", "--class-word", "dog")
        assert (code, out.strip(), "1 of 1 subjects" in err) == (1, "tom: no photo", True)

    def test_the_folder_of_a_recipe_is_left_to_what_it_trains(
        self, monkeypatch: pytest.MonkeyPatch, capsys: Captured, tmp_path: Path
    ) -> None:
        from dreamfleet import personalization
        from dreamfleet.personalization import PreparedSubjects

        seen: list[str | None] = []

        def prepared(config: RunConfig, **_: Any) -> PreparedSubjects:
            seen.append(config.output_dir)
            return PreparedSubjects([], {})

        monkeypatch.setattr(personalization, "prepare_subjects", prepared)
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text("output_dir: runs/rex\nsubject: {class_word: dog}\n", encoding="utf-8")
        run(capsys, "prepare", "photos", "--config", str(recipe))
        run(capsys, "prepare", "photos", "--config", str(recipe), "--output-dir", "squares")
        assert seen == [None, "squares"]


class TestCache:
    def test_info_and_clear(self, capsys: Captured, fleet_home: Path) -> None:
        from dreamfleet.data.cache import open_cache

        open_cache().put("photos", "key", [{"a": 1}])
        code, out, _ = run(capsys, "cache", "info")
        assert code == 0
        assert str(fleet_home / "cache") in out and "photos" in out
        assert run(capsys, "cache", "clear")[0] == 0
        assert open_cache().get("photos", "key") is None


class TestRuns:
    def test_nothing_recorded_yet(self, capsys: Captured, fleet_home: Path) -> None:
        code, out, _ = run(capsys, "runs")
        assert (code, "no runs" in out) == (0, True)
        assert not (fleet_home / "mlflow.db").exists()

    def test_the_experiment_is_that_of_the_environment(
        self, capsys: Captured, fleet_home: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As where runs are recorded; a flag wins."""
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "team")
        assert "in experiment 'team'" in run(capsys, "runs")[1]
        assert "in experiment 'own'" in run(capsys, "runs", "--tracking-experiment", "own")[1]
        for command in ("runs", "compare"):
            assert "in experiment 'team'" in run(capsys, command, "feed", "beef")[2]

    def test_a_run_that_is_not_there(self, capsys: Captured, fleet_home: Path) -> None:
        code, _, err = run(capsys, "runs", "abc", "def")
        assert (code, "'abc'" in err) == (2, True)

    def test_an_adapters_folder_stands_for_its_run(
        self, capsys: Captured, fleet_home: Path, tmp_path: Path
    ) -> None:
        about = {
            "name": "ada", "class_word": "dog", "token": "sks", "instance_prompt": "sks dog",
            "class_prompt": "dog", "method": "dreambooth", "mode": "lora", "steps": 1,
            "base": {"name": "embedded", "hash": "ab"},
        }  # fmt: skip
        for name, tracking in (("ada", {"run_id": "feed"}), ("unrecorded", {})):
            (tmp_path / name).mkdir()
            text = json.dumps({**about, "schema_version": 1, "tracking": tracking})
            (tmp_path / name / "adapter.json").write_text(text, encoding="utf-8")
        code, _, err = run(capsys, "runs", str(tmp_path / "ada"), "def")
        assert (code, "'feed'" in err) == (2, True)
        code, _, err = run(capsys, "runs", str(tmp_path / "unrecorded"), "def")
        assert (code, "names no MLflow run" in err) == (2, True)


class TestWorld:
    def test_writes_a_sheet(self, capsys: Captured, tmp_path: Path) -> None:
        sheet = tmp_path / "new" / "sheet.png"
        code, out, _ = run(capsys, "world", "--sheet", str(sheet), "--kind", "classes")
        assert (code, out.strip()) == (0, str(sheet))
        assert sheet.read_bytes().startswith(b"\x89PNG")


class TestDoctor:
    def test_names_what_it_looked_at(self, capsys: Captured, fleet_home: Path) -> None:
        _, out, _ = run(capsys, "doctor")
        for name in ("cores", "memory", "GPU", "Ray", "Ray token", "tracking", "embedded base"):
            assert f"  {name} " in out
        assert str(fleet_home) in out

    def test_a_server_that_is_down(self) -> None:
        findings = {item.name: item for item in doctor.examine("http://user:secret@127.0.0.1:9")}
        assert findings["tracking"].mark == "problem"
        assert "127.0.0.1:9 cannot be reached" in findings["tracking"].text
        assert "secret" not in findings["tracking"].text
        for uri in ("http://me:secret@127.0.0.1", "http://me:se:cret@127.0.0.1:port", "http://["):
            finding = doctor._tracking(uri)
            assert finding.mark == "problem" and "cannot be reached" in finding.text
            assert "cret" not in finding.text

    def test_a_server_that_asks_for_a_password(self) -> None:
        """It is told to this server alone, not to one that it points to."""
        asked: list[tuple[str, str | None]] = []

        class Guarded(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers.get("Authorization")))
                self.send_response(302 if self.path == "/mlflow/health" else 200)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None: ...

        with ThreadingHTTPServer(("127.0.0.1", 0), Guarded) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            place = f"127.0.0.1:{server.server_address[1]}/mlflow"
            finding = doctor._tracking(f"http://me:s%40cret@{place}/")
            server.shutdown()
        assert (finding.mark, finding.text) == ("ok", f"http://me@{place}/ answers (200)")
        word = base64.b64encode(b"me:s@cret").decode()
        assert asked == [("/mlflow/health", f"Basic {word}"), ("/elsewhere", None)]

    def test_addresses_of_other_kinds(self) -> None:
        """A misspelt one is a problem; a database is not asked, and its password not shown."""
        misspelt = doctor._tracking("htp://mlflow:5000")
        assert (misspelt.mark, "knows no 'htp'" in misspelt.text) == ("problem", True)
        database = doctor._tracking("postgresql://me:secret@host/mlflow")
        assert (database.mark, database.text) == (
            "note", "MLflow at postgresql://me@host/mlflow, which was not asked"
        )  # fmt: skip
        assert doctor._tracking("sqlite:////tmp/x.db").mark == "ok"

    def test_a_home_that_cannot_be_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("DREAMFLEET_HOME", "~/fleet")
        assert dreamfleet_home() == Path.home() / "fleet", "as a Dockerfile's ENV leaves it"
        monkeypatch.setenv("DREAMFLEET_HOME", str(tmp_path / "file" / "home"))
        findings = {item.name: item for item in doctor.examine()}
        assert findings["home"].mark == "problem"
        assert "DREAMFLEET_HOME" in findings["home"].text

    def test_the_token_is_never_shown(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_AUTH_TOKEN", "0123456789abcdef")
        assert "0123456789abcdef" not in " ".join(item.text for item in doctor.examine())

    def test_a_token_that_others_can_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = tmp_path / "token"
        token.write_text("00")
        token.chmod(0o644)
        monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(token))
        finding = next(item for item in doctor.examine() if item.name == "Ray token")
        assert finding.mark == "note" and "chmod 600" in finding.text


class TestConfig:
    def test_dump_reads_back_equal(self) -> None:
        config = load_config(
            None, {"sude.preset": "paper", "subject.images": ["a"], "train.rank": 3}
        )
        assert RunConfig.model_validate(yaml.safe_load(dump_config(config))) == config

    def test_what_yaml_makes_of_common_spellings(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "subject: {images: photos, class_word: dog}\nsude:\n"
            "train: {mixed_precision: no, learning_rate: 1e-4}\n"
        )
        config = load_config(recipe)
        assert config.subject.images == ["photos"]
        assert config.train.mixed_precision == "no"
        assert config.train.learning_rate == 1e-4
        assert config.sude.weight == 0

    def test_truth_values_where_they_mean_something(self, tmp_path: Path) -> None:
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(
            "train: {use_ema: true}\ncluster: {use_gpu: false}\nsampling: {safety_checker: off}\n"
            "space: {sude_weight: {low: 1, high: 2, log: true}}\n"
        )
        config = load_config(recipe)
        assert config.train.use_ema is True and config.cluster.use_gpu is False
        assert config.sampling.safety_checker == "off"
        assert config.space.sude_weight == Interval(low=1, high=2, log=True)

    def test_generate_takes_as_many_steps_as_a_recipe(self, capsys: Captured) -> None:
        code, _, err = run(
            capsys, "generate", "a dog", "--num-inference-steps", str(MAX_INFERENCE_STEPS + 1)
        )
        assert code == 2 and f"1<=x<={MAX_INFERENCE_STEPS}" in err

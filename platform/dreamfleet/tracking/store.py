"""MLflow itself, as the sender of journals sees it: the only module that imports mlflow."""

from __future__ import annotations

import getpass
import io
import json
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from dreamfleet.tracking.base import (
    CANDIDATE,
    CHAMPION,
    PREVIOUS,
    RunHandle,
    sqlite_path,
    without_password,
)
from dreamfleet.tracking.journal import Journal, Record

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_KEY = "dreamfleet.run_key"
RECORD_ID = "dreamfleet.record"
SCORE, RULER, FIDELITY = "dreamfleet.score", "dreamfleet.ruler", "dreamfleet.fidelity"
WEIGHTS = "pytorch_lora_weights.safetensors"
PARAMS_PER_CALL = 100  # MLflow's own limits
METRICS_PER_CALL = 1000
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
NAME_LENGTH = 250
DATABASE_LOCK_S = 120.0
CREATE_LOCK_S = 60.0
# MLflow's defaults would block for four minutes on a dead server. Variables that are set win.
HTTP_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    # It prints the whole address, password included, at each run's end.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
# What MLflow would answer to the same record for ever; everything else may pass.
FINAL_ERRORS = frozenset(
    {
        "BAD_REQUEST",
        "INVALID_PARAMETER_VALUE",
        "INVALID_STATE",
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_DOES_NOT_EXIST",
    }
)
# HTTP answers 4xx that may be others later: keys, a wait, a conflict, too many requests.
PASSING_ANSWERS = frozenset({401, 403, 407, 408, 409, 423, 425, 429})


class Unreachable(Exception):
    """MLflow did not take a record now, but may later."""


class NotRecordedYet(Unreachable):
    """MLflow answers, but another journal's record has to come first."""


class Refused(Exception):
    """MLflow will never take this record."""


class MlflowStore:
    """One tracking URI."""

    def __init__(self, client: MlflowClient, uri: str) -> None:
        self.client, self.uri = client, uri
        self._experiments: dict[str, str] = {}
        self._commands = {
            "create": self._create,
            "params": self._params,
            "tags": self._tags,
            "metrics": self._metrics,
            "image": self._image,
            "artifact": self._artifact,
            "model": self._model,
            "finish": self._finish,
        }

    @classmethod
    def connect(cls, uri: str, *, create: bool = True) -> MlflowStore:
        """Open `uri`; a SQLite database that is not there yet is created first, by one process
        only.

        Raises:
            Unreachable: with the reason in a few words.
        """
        try:
            client = _client(uri, create=create)
            return cls(client, uri)
        except Unreachable:
            raise
        except Exception as error:  # whatever is wrong with a store must not end a training
            raise Unreachable(plain_reason(error, uri)) from error

    def send(self, journal: Journal, record: Record) -> None:
        """Give MLflow one record.

        Raises:
            Unreachable: try again later.
            Refused: never.
        """
        command = self._commands.get(str(record.get("op")))
        if command is None:
            raise Refused(f"unknown record {record.get('op')!r}")
        try:
            command(journal, record)
        except (Unreachable, Refused):
            raise
        except Exception as error:
            kind = Unreachable if may_pass(error) else Refused
            raise kind(plain_reason(error, self.uri)) from error

    # One method per kind of record

    def _create(self, journal: Journal, record: Record) -> None:
        # Two journals of one resumed run may be sent at once; the run is made by one of them.
        with FileLock(journal.folder.parent / ".create.lock", timeout=CREATE_LOCK_S):
            journal.set_run_id(self._find_or_create_run(journal.handle, record))

    def _find_or_create_run(self, handle: RunHandle, record: Record) -> str:
        experiment = self._experiment_id(handle.experiment)
        run_id = self._find_run(experiment, handle.key)
        if run_id is None:
            tags = {RUN_KEY: handle.key, "mlflow.source.name": "dreamfleet", **record["tags"]}
            with suppress(KeyError, OSError):
                tags.setdefault("mlflow.user", getpass.getuser())
            if parent := self._parent(experiment, record.get("parent")):
                tags["mlflow.parentRunId"] = parent
            run = self.client.create_run(
                experiment,
                start_time=record["time"],
                tags={_name(key): _cut(value, TAG_LENGTH) for key, value in tags.items()},
                run_name=_cut(record["name"], NAME_LENGTH),
            )
            return str(run.info.run_id)
        self.client.update_run(run_id, status="RUNNING")
        return run_id

    def _params(self, journal: Journal, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        run_id = self._run_id(journal.handle, journal)
        known = self.client.get_run(run_id).data.params
        given = {_name(key): _cut(value, PARAM_LENGTH) for key, value in record["params"].items()}
        # Params cannot change: a resumed run shows its new values as tags.
        changed = {key: value for key, value in given.items() if known.get(key, value) != value}
        fresh = [Param(key, value) for key, value in given.items() if key not in known]
        for start in range(0, len(fresh), PARAMS_PER_CALL):
            chunk = fresh[start : start + PARAMS_PER_CALL]
            self.client.log_batch(run_id, params=chunk, synchronous=True)
        if changed:
            tags = [RunTag(f"changed.{key}", value) for key, value in changed.items()]
            self.client.log_batch(run_id, tags=tags[:PARAMS_PER_CALL], synchronous=True)

    def _tags(self, journal: Journal, record: Record) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(_name(k), _cut(v, TAG_LENGTH)) for k, v in record["tags"].items()]
        self.client.log_batch(self._run_id(journal.handle, journal), tags=tags, synchronous=True)

    def _metrics(self, journal: Journal, record: Record) -> None:
        from mlflow.entities import Metric

        rows: Sequence[Sequence[Any]] = record["rows"]
        metrics = [Metric(_name(key), float(value), ms, step) for key, value, ms, step in rows]
        run_id = self._run_id(journal.handle, journal)
        for start in range(0, len(metrics), METRICS_PER_CALL):
            chunk = metrics[start : start + METRICS_PER_CALL]
            self.client.log_batch(run_id, metrics=chunk, synchronous=True)

    def _image(self, journal: Journal, record: Record) -> None:
        from PIL import Image

        image = Image.open(io.BytesIO(_kept(journal, record["file"]).read_bytes()))
        self.client.log_image(
            self._run_id(journal.handle, journal),
            image,
            key=re.sub(r"[^a-zA-Z0-9_\-./ ]", "_", record["key"])[:NAME_LENGTH],
            step=record["step"],
            timestamp=record["time"],
            synchronous=True,
        )

    def _artifact(self, journal: Journal, record: Record) -> None:
        path = _kept(journal, record["file"])
        place = record.get("path")
        run_id = self._run_id(journal.handle, journal)
        if path.is_dir():
            self.client.log_artifacts(run_id, str(path), place or path.name)
        else:
            self.client.log_artifact(run_id, str(path), place)

    def _model(self, journal: Journal, record: Record) -> None:
        run_id = self._run_id(journal.handle, journal)
        name = record["name"]
        version = self._registered(name, record, run_id) or self._register(journal, record, run_id)
        contest = record.get("contest")
        alias = self._settled(name, version, contest) if contest else record["alias"]
        self.client.set_registered_model_alias(name, alias, version)
        journal.aliases[version] = alias
        journal.results[record["id"]] = version

    def _finish(self, journal: Journal, record: Record) -> None:
        run_id = self._run_id(journal.handle, journal)
        self.client.set_terminated(run_id, record["status"], end_time=record["time"])

    # The registry

    def _registered(self, name: str, record: Record, run_id: str) -> str | None:
        """The version that this very record made earlier, or its run with the very same scores
        (then a sweep was killed before it knew); makes the registered model where there is none.
        """
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
            return None
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_ALREADY_EXISTS", "ALREADY_EXISTS"):
                raise
        scores = _score_tags(record.get("contest"))
        for version in self.client.search_model_versions(f"name = '{name}'", max_results=50):
            same = bool(scores) and scores.items() <= version.tags.items()
            if version.tags.get(RECORD_ID) == record["id"] or (same and version.run_id == run_id):
                return str(version.version)
        return None

    def _settled(self, name: str, version: str, contest: Mapping[str, Any]) -> str:
        """The alias that a version has earned; the champion that it beats becomes `previous`."""
        aliases = self.client.get_registered_model(name).aliases
        if str(aliases.get(CHAMPION, version)) == version:  # some stores keep numbers
            return CHAMPION
        champion = self.client.get_model_version(name, aliases[CHAMPION])
        if champion.tags.get(RULER) != contest["ruler"]:
            return CANDIDATE  # measured otherwise: nobody knows which of the two is better
        if float(champion.tags[SCORE]) > float(contest["score"]):
            return CANDIDATE
        needed = float(champion.tags.get(FIDELITY, 0.0)) - float(contest.get("margin", 0.0))
        if float(contest.get("fidelity", 0.0)) < needed:
            return CANDIDATE  # well aligned, but further from the subject
        self.client.set_registered_model_alias(name, PREVIOUS, champion.version)
        return CHAMPION

    def _register(self, journal: Journal, record: Record, run_id: str) -> str:
        from mlflow.entities import LoggedModelOutput

        folder = _kept(journal, record["folder"])
        experiment = self._experiment_id(journal.handle.experiment)
        tags = {_name(key): _cut(value, TAG_LENGTH) for key, value in record["tags"].items()}
        tags |= _score_tags(record.get("contest"))
        model = self.client.create_logged_model(
            experiment, name=record["name"], source_run_id=run_id, tags=tags, model_type="adapter"
        )
        try:
            self._log_model(model, folder, record, run_id)
        except Exception:
            with suppress(Exception):  # the first error counts
                self.client.finalize_logged_model(model.model_id, "FAILED")
            raise
        self.client.finalize_logged_model(model.model_id, "READY")
        self.client.log_outputs(run_id, models=[LoggedModelOutput(model.model_id, 0)])
        # By location: a source models:/<id> is looked up in the process's global store, not in this
        # one.
        version = self.client.create_model_version(
            record["name"],
            source=model.artifact_location,
            run_id=run_id,
            model_id=model.model_id,
            tags={**tags, RECORD_ID: record["id"]},
        )
        return str(version.version)

    def _log_model(self, model: Any, folder: Path, record: Record, run_id: str) -> None:
        """A LoRA becomes an MLflow model of flavor `diffusers`; a whole pipeline is logged as it
        is.
        """
        if not (folder / WEIGHTS).is_file() or not record["base_model"]:
            self.client.log_model_artifacts(model.model_id, str(folder))
            return
        import mlflow.diffusers
        from mlflow.models import Model

        with tempfile.TemporaryDirectory(prefix="adapter-", dir=journal_root(folder)) as place:
            path = Path(place) / "model"
            mlflow.diffusers.save_model(
                str(folder),
                str(path),
                base_model=record["base_model"],
                mlflow_model=Model(
                    artifact_path=model.artifact_location, model_id=model.model_id, run_id=run_id
                ),
                metadata=record["tags"],
            )
            self.client.log_model_artifacts(model.model_id, str(path))

    # Finding things

    def _run_id(self, handle: RunHandle, journal: Journal) -> str:
        if handle.run_id:
            return handle.run_id
        run_id = self._find_run(self._experiment_id(handle.experiment), handle.key)
        if run_id is None:
            raise NotRecordedYet(f"run {handle.key} is not recorded yet")
        journal.set_run_id(run_id)
        return run_id

    def _parent(self, experiment: str, parent: Mapping[str, Any] | None) -> str | None:
        if not parent:
            return None
        return parent.get("run_id") or self._find_run(experiment, str(parent.get("key")))

    def _find_run(self, experiment: str, key: str) -> str | None:
        runs = self.client.search_runs(
            [experiment], f"tags.`{RUN_KEY}` = '{key}'", max_results=1, order_by=["start_time"]
        )
        return runs[0].info.run_id if runs else None

    def _experiment_id(self, name: str) -> str:
        if name not in self._experiments:
            self._experiments[name] = self._find_or_create_experiment(name)
        return self._experiments[name]

    def _find_or_create_experiment(self, name: str) -> str:
        from mlflow.exceptions import MlflowException

        if found := self.client.get_experiment_by_name(name):
            if found.lifecycle_stage == "deleted":
                self.client.restore_experiment(found.experiment_id)
            return str(found.experiment_id)
        try:
            place = _artifact_location(self.uri)
            return str(self.client.create_experiment(name, artifact_location=place))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":  # another process was first
                raise
            return str(self.client.get_experiment_by_name(name).experiment_id)


def _score_tags(contest: Mapping[str, Any] | None) -> dict[str, str]:
    """What a version's scores are compared by later."""
    if not contest:
        return {}
    fidelity = repr(contest.get("fidelity", 0.0))
    return {SCORE: repr(contest["score"]), RULER: contest["ruler"], FIDELITY: fidelity}


def journal_root(folder: Path) -> str:
    """Where a model is put together: beside the kept files, which need not fit into /tmp."""
    return str(folder.parent if os.access(folder.parent, os.W_OK) else tempfile.gettempdir())


def _client(uri: str, *, create: bool) -> MlflowClient:
    for name, value in HTTP_DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    calm_loggers()
    database = sqlite_path(uri)
    if database is None:
        return mlflow.MlflowClient(tracking_uri=uri)
    return _sqlite_client(uri, database, create=create)


def _sqlite_client(uri: str, database: Path, *, create: bool) -> MlflowClient:
    """Processes that create one SQLite store at once crash: a lock lets the first one finish."""
    import mlflow

    if not database.exists() and not create:
        raise Unreachable(f"{database} does not exist")
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=DATABASE_LOCK_S):
        client = mlflow.MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)  # makes the tables
        with suppress(sqlite3.Error):  # readers and a writer at once; a wish, not a need
            connection = sqlite3.connect(database, timeout=5.0)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.close()
    return client


def _artifact_location(uri: str) -> str | None:
    """Beside the SQLite database: MLflow's own default would be the folder one happens to be in."""
    database = sqlite_path(uri)
    return (database.parent / "mlartifacts").as_uri() if database is not None else None


def calm_loggers() -> None:
    """Warnings about migrations and requirements are not for our users; errors reach them as our
    own lines.
    """
    for name in ("mlflow", "alembic", "mlflow.store.db.utils", "mlflow.utils.requirements_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)


def may_pass(error: Exception) -> bool:
    """Whether MLflow may answer otherwise later."""
    from mlflow.exceptions import MlflowException
    from PIL import UnidentifiedImageError
    from requests import HTTPError

    if isinstance(error, MlflowException):
        return error.error_code not in FINAL_ERRORS
    if isinstance(error, HTTPError) and error.response is not None:
        status = error.response.status_code
        return status in PASSING_ANSWERS or not 400 <= status < 500
    if isinstance(error, UnidentifiedImageError):  # of a kept picture; an OSError, too
        return False
    return isinstance(error, OSError) or _is_database_error(error)


def _is_database_error(error: Exception) -> bool:
    return any("sqlalchemy" in kind.__module__ or "sqlite3" in kind.__module__
               for kind in type(error).__mro__)  # fmt: skip


def plain_reason(error: BaseException, uri: str) -> str:
    """The reason in a few words, `uri` in it without its password: MLflow's texts run over many
    lines, and name the whole address.
    """
    address = uri.rstrip("/")
    text = (str(error) or type(error).__name__).replace(address, without_password(address))
    if "Connection refused" in text or "NewConnectionError" in text:
        return "connection refused"
    if "timed out" in text or "Read timeout" in text or "ConnectTimeout" in text:
        return "no answer in time"
    if match := re.search(r"too many (\d+) error responses|error code (\d+)", text):
        return f"answers with error {match.group(1) or match.group(2)}"
    first = text.strip().splitlines()[0]
    return first if len(first) <= 160 else first[:157] + "..."


def _kept(journal: Journal, name: str) -> Path:
    path = journal.path_of(name)
    if not name or not path.exists():
        raise Refused(f"{name or 'file'} is gone")
    return path


def _name(key: str) -> str:
    """Names may hold letters, digits, and _ - . / : and blanks."""
    return re.sub(r"[^\w\-./: ]", "_", str(key))[:NAME_LENGTH]


def _cut(value: Any, length: int) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    text = text.encode("utf-8", "backslashreplace").decode()  # names of files can be any bytes
    return text if len(text) <= length else text[: length - 1] + "…"

"""What a tracker can do, the tracker that does nothing, and where records go by default."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dreamfleet.config import TrackingConfig, dreamfleet_home, environment
from dreamfleet.errors import BadInputError

if TYPE_CHECKING:
    from PIL import Image

Status = Literal["FINISHED", "FAILED", "KILLED"]
# Of addresses; databases may name a driver too: postgresql+psycopg2.
SCHEMES = (
    "", "http", "https", "file", "sqlite", "postgresql", "mysql", "mssql", "databricks", "uc",
    "databricks-uc",
)  # fmt: skip
CANDIDATE, CHAMPION, PREVIOUS = "candidate", "champion", "previous"


@dataclass(frozen=True)
class RunHandle:
    """Enough to go on recording a run from another process or node; plain data, may be pickled.

    `key` names the run before MLflow has given it an id: a dead server gives none. It is the run's
    tag `dreamfleet.run_key`.
    """

    uri: str
    experiment: str
    key: str
    run_id: str | None = None


@dataclass(frozen=True)
class Contest:
    """What a version must beat: `champion` points at it only if it is not worse than the one that
    had the alias, which becomes `previous`; else it is a `candidate`.

    Attributes:
        score: higher is better.
        fidelity: must not be lower than the champion's by more than `margin`.
        margin: what of it may be lost.
        ruler: of all that scores depend on beside the adapter; others cannot be compared.
    """

    score: float
    ruler: str
    fidelity: float = 0.0
    margin: float = 0.0


class Run(Protocol):
    """One recorded run. No method waits for a server, except where it says so, and none raises for
    one.
    """

    @property
    def handle(self) -> RunHandle: ...

    @property
    def run_id(self) -> str | None:
        """MLflow's id, or None until the server has given one."""

    def wait_for_id(self, timeout_s: float = 15.0) -> str | None:
        """MLflow's id, waiting for it for at most `timeout_s` seconds; not at all while the server
        is down.
        """

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Figures of one step; sent in batches."""

    def set_tags(self, tags: Mapping[str, Any]) -> None: ...

    def log_image(self, image: Image.Image | bytes, key: str, step: int = 0) -> None:
        """A picture (PIL, or the bytes of a PNG) that belongs to a step."""

    def log_grid(
        self, images: Sequence[tuple[str, Image.Image | bytes]], key: str, step: int = 0
    ) -> None:
        """(prompt, picture) pairs as one labelled picture: a row per prompt."""

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        """A file, or a folder with all that is in it, as it is now."""

    def register_adapter(
        self,
        folder: str | Path,
        name: str,
        *,
        base_model: str = "",
        alias: str = CANDIDATE,
        tags: Mapping[str, Any] | None = None,
        contest: Contest | None = None,
        timeout_s: float = 30.0,
    ) -> str | None:
        """Register the adapter in `folder` as a new version of model `name`, and let `alias` point
        at it.

        Args:
            folder: an output folder with a LoRA file or a diffusers folder, `adapter.json` and so
                on.
            name: the registered model's name: the subject id.
            base_model: absolute path or hub id of the base.
            contest: decides between the aliases `champion` and `candidate`, in place of `alias`.
            timeout_s: how long to wait for the version while the server answers.

        Returns:
            The version, or None where it is not known yet; it is registered later then.
        """

    def alias_of(self, version: str | None) -> str | None:
        """The alias that a version registered here was given; None where it is not known yet."""

    def finish(self, status: Status = "FINISHED", timeout_s: float = 15.0) -> bool:
        """End the run; True when all its records have arrived, waiting only while the server takes
        them, and not at all with `timeout_s` 0. May be called again, to wait.
        """


class Tracker(Protocol):
    """Where runs are recorded."""

    @property
    def uri(self) -> str | None:
        """The MLflow tracking URI; None where nothing is recorded."""

    def start_run(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | RunHandle | str | None = None,
        key: str | None = None,
    ) -> Run:
        """Begin a run, or go on with the one that an earlier call with the same `key` began."""

    def close(self, timeout_s: float = 15.0) -> None:
        """Send what is left, for as long as the server takes it; further records are refused."""


class NullRun:
    """Records nothing."""

    @property
    def handle(self) -> RunHandle:
        return RunHandle("", "", "")

    @property
    def run_id(self) -> str | None:
        return None

    def wait_for_id(self, timeout_s: float = 15.0) -> str | None:
        return None

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None: ...

    def set_tags(self, tags: Mapping[str, Any]) -> None: ...

    def log_image(self, image: Image.Image | bytes, key: str, step: int = 0) -> None: ...

    def log_grid(
        self, images: Sequence[tuple[str, Image.Image | bytes]], key: str, step: int = 0
    ) -> None: ...

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None: ...

    def register_adapter(
        self,
        folder: str | Path,
        name: str,
        *,
        base_model: str = "",
        alias: str = CANDIDATE,
        tags: Mapping[str, Any] | None = None,
        contest: Contest | None = None,
        timeout_s: float = 30.0,
    ) -> str | None:
        return None

    def alias_of(self, version: str | None) -> str | None:
        return None

    def finish(self, status: Status = "FINISHED", timeout_s: float = 15.0) -> bool:
        return True


class NullTracker:
    """`tracking.enabled: false`."""

    @property
    def uri(self) -> str | None:
        return None

    def start_run(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | RunHandle | str | None = None,
        key: str | None = None,
    ) -> Run:
        return NullRun()

    def close(self, timeout_s: float = 15.0) -> None: ...


def resolve_uri(given: str | None = None) -> str:
    """`given`, else MLFLOW_TRACKING_URI, else SQLite in DREAMFLEET_HOME; SQLite paths made
    absolute.
    """
    uri = given or environment("MLFLOW_TRACKING_URI")
    if uri is None:
        return f"sqlite:///{dreamfleet_home().expanduser().absolute() / 'mlflow.db'}"
    database = sqlite_path(uri)
    return f"sqlite:///{database}" if database is not None else uri


def resolve_experiment(given: str | None = None) -> str:
    """`given`, else MLFLOW_EXPERIMENT_NAME, else the default of `tracking.experiment`."""
    default = TrackingConfig.model_fields["experiment"].default
    return given or environment("MLFLOW_EXPERIMENT_NAME") or str(default)


def check_uri(given: str | None) -> None:
    """Refuse an address that no server and no database can ever have; whether one answers there is
    found out later, and stops nothing.

    Raises:
        BadInputError: naming it.
    """
    uri = resolve_uri(given)
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""
    if scheme == "sqlite" and sqlite_path(uri) is None:
        raise BadInputError(f"tracking address {uri!r}: expected sqlite:///PATH, three slashes")
    if scheme not in SCHEMES and scheme not in _plugged_in():
        raise BadInputError(
            f"tracking address {scheme}:…: MLflow knows no {scheme!r}; expected e.g. "  # no secrets
            "http://host:5000 or sqlite:///PATH (--tracking-uri or MLFLOW_TRACKING_URI)"
        )


def without_password(uri: str) -> str:
    """`uri` as it may be shown: `postgresql://me:secret@host/x` is `postgresql://me@host/x`.

    A database's password may hold any sign (SQLAlchemy's reading), also those that end the host of
    an http address; or be given as `?password=`.
    """
    signs = "[^/]" if uri.lower().startswith(("http:", "https:")) else "."
    shown = re.sub(rf"^([^:/]+://[^:/@]*):{signs}*@", r"\1@", uri)
    return re.sub(r"([?&]password=)[^&]*", r"\1…", shown)


def _plugged_in() -> set[str]:
    from importlib.metadata import entry_points

    return {entry.name for entry in entry_points(group="mlflow.tracking_store")}


def sqlite_path(uri: str) -> Path | None:
    """The database file of a SQLite URI, absolute; None for any other URI."""
    scheme, separator, place = uri.partition(":///")
    if not separator or not scheme.startswith("sqlite") or not place:
        return None
    return Path(place.partition("?")[0]).expanduser().absolute()


def ui_command(uri: str) -> str:
    """What to type, or open, to see the runs; without the address's password, for it is written
    into reports.
    """
    uri = without_password(uri)
    if uri.startswith(("http://", "https://")):
        return uri
    return f"{_mlflow_program()} ui --backend-store-uri {uri}"


def _mlflow_program() -> str:
    """`mlflow`, with its folder where the environment it belongs to is not activated."""
    beside = Path(sys.executable).with_name("mlflow")
    if shutil.which("mlflow") or not beside.exists():
        return "mlflow"
    return shlex.quote(
        os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)
    )


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Leaves by dotted name: {"train": {"rank": 4}} -> {"train.rank": 4}; an empty mapping is a
    leaf.
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat

"""Adapters in MLflow's registry: which versions there are, their files, their aliases."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from dreamfleet.errors import BadInputError
from dreamfleet.tracking.base import without_password
from dreamfleet.tracking.store import WEIGHTS, MlflowStore, Unreachable, may_pass, plain_reason

Result = TypeVar("Result")
RETIRED = "dreamfleet.retired"
PER_PAGE = 500


@dataclass(frozen=True)
class RegisteredVersion:
    """One version of a registered model.

    Attributes:
        source: where its files are, as MLflow names it.
        tags: as registered; class_word and token among them.
        created: seconds since 1970.
    """

    name: str
    version: str
    source: str
    tags: Mapping[str, str]
    created: int
    run_id: str = ""


@dataclass(frozen=True)
class RegisteredAdapter:
    """A registered model, with its versions, newest first, and aliases."""

    name: str
    versions: Sequence[RegisteredVersion]
    aliases: Mapping[str, str]


def registered_adapters(uri: str, names: Sequence[str] = ()) -> list[RegisteredAdapter]:
    """Registered models that are not retired and have versions.

    Args:
        uri: of MLflow.
        names: only these; empty: all.

    Raises:
        BadInputError: the registry cannot be read now.
    """

    def read(client: Any) -> list[RegisteredAdapter]:
        by_name: dict[str, list[RegisteredVersion]] = {}
        for version in _all(client.search_model_versions):
            own = RegisteredVersion(
                version.name,
                str(version.version),
                str(version.source),
                dict(version.tags),
                int((version.creation_timestamp or 0) / 1000),
                version.run_id or "",
            )
            by_name.setdefault(version.name, []).append(own)
        found = []
        for model in _all(client.search_registered_models):
            wanted = not names or model.name in names
            if wanted and RETIRED not in model.tags and model.name in by_name:
                versions = sorted(by_name[model.name], key=lambda own: -int(own.version))
                aliases = {alias: str(number) for alias, number in model.aliases.items()}
                found.append(RegisteredAdapter(model.name, versions, aliases))
        return found

    return _asked(uri, read)


def fetch_version(uri: str, version: RegisteredVersion, folder: Path) -> Path:
    """Copy an adapter's files to `folder`, if they are not there; returns the weights file.

    Of other models, which may have gigabytes, nothing is copied. `folder` stays empty then, so that
    they are not asked about again: versions never change.

    Raises:
        BadInputError: it cannot be copied, or holds no adapter.
    """
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as part:
            place = Path(part) / "files"
            place.mkdir()
            if _asked(uri, lambda client: _holds_weights(uri, version.source)):
                _asked(uri, lambda client: _download(uri, version.source, place))
            with suppress(OSError):  # another process was first
                place.rename(folder)
    found = next(iter(sorted(folder.rglob(WEIGHTS))), None)
    if found is None:
        raise BadInputError(
            f"model {version.name} version {version.version}: holds no {WEIGHTS}; only LoRA "
            "adapters are served"
        )
    return found


def fetch_artifact(uri: str, run_id: str, name: str, folder: Path) -> None:
    """Copy a run's file to `folder`; there may be no such run or file.

    Raises:
        BadInputError: MLflow cannot be asked now.
    """
    from mlflow.exceptions import MlflowException

    def copy(client: Any) -> None:
        try:
            found = any(own.path == name for own in client.list_artifacts(run_id))
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return
            raise
        if found:
            with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as part:
                Path(client.download_artifacts(run_id, name, part)).replace(folder / name)

    _asked(uri, copy)


def set_alias(uri: str, name: str, alias: str, version: str) -> None:
    """Let an alias point at a version.

    Raises:
        BadInputError: there is no such model or version.
    """
    _asked(uri, lambda client: client.set_registered_model_alias(name, alias, version))


def retire(uri: str, name: str) -> None:
    """Mark a registered model as not to be served; nothing is deleted.

    Raises:
        BadInputError: there is no such model.
    """
    _asked(uri, lambda client: client.set_registered_model_tag(name, RETIRED, "true"))


def _holds_weights(uri: str, source: str) -> bool:
    """Whether a LoRA's file is there, at any depth; only names are asked for."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    files = get_artifact_repository(source, tracking_uri=uri)
    folders: list[str | None] = [None]
    while folders:
        for item in files.list_artifacts(folders.pop()):
            if item.is_dir:
                folders.append(item.path)
            elif PurePosixPath(item.path).name == WEIGHTS:
                return True
    return False


def _download(uri: str, source: str, folder: Path) -> None:
    """Sources mlflow-artifacts:/… mean nothing without the server's address."""
    from mlflow.artifacts import download_artifacts

    download_artifacts(artifact_uri=source, dst_path=str(folder), tracking_uri=uri)


def _asked(uri: str, question: Callable[[Any], Result]) -> Result:
    """The answer; the cause of a BadInputError is Unreachable where there may be one later."""
    from mlflow.exceptions import MlflowException

    try:
        return _answered(MlflowStore.connect(uri, create=False).client, question)
    except (Unreachable, MlflowException, OSError) as error:
        place = without_password(uri)
        raise BadInputError(f"MLflow at {place}: {plain_reason(error, uri)}") from error


def _answered(client: Any, question: Callable[[Any], Result]) -> Result:
    """A client of an http address has asked nobody yet: the question finds out who is there."""
    from mlflow.exceptions import MlflowException

    try:
        return question(client)
    except (MlflowException, OSError) as error:
        if may_pass(error):
            raise Unreachable(str(error)) from error
        raise


def _all(search: Callable[..., Any]) -> list[Any]:
    """Every page of a search."""
    found, token = [], None
    while True:
        page = search(max_results=PER_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            return found

"""Runs recorded in MLflow, through a journal that a background thread sends."""

from __future__ import annotations

import re
import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreamfleet.config import TrackingConfig
from dreamfleet.errors import BadInputError
from dreamfleet.tracking.base import (
    CANDIDATE,
    Contest,
    NullTracker,
    Run,
    RunHandle,
    Status,
    Tracker,
    flatten,
    resolve_experiment,
    resolve_uri,
)
from dreamfleet.tracking.images import grid, png_bytes
from dreamfleet.tracking.journal import Journal, now_ms
from dreamfleet.tracking.sender import Notify, Sender
from dreamfleet.tracking.spool import flush_spool, spool_folder

if TYPE_CHECKING:
    from PIL import Image

# What of an output folder belongs to the adapter; checkpoints do not.
ADAPTER_ENTRIES = [
    "pytorch_lora_weights.safetensors",
    "adapter.json",
    "config.yaml",
    "README.md",
    "samples",
    "model_index.json",
    "unet",
    "vae",
    "text_encoder",
    "text_encoder_2",
    "tokenizer",
    "tokenizer_2",
    "scheduler",
]


def to_stderr(text: str) -> None:
    """Where lines go that nobody else wants."""
    print(text, file=sys.stderr, flush=True)


class MlflowRun:
    """A run of an `MlflowTracker`, or one continued in another process by `open_run`."""

    def __init__(self, journal: Journal, sender: Sender) -> None:
        self._journal, self._sender = journal, sender

    @property
    def handle(self) -> RunHandle:
        return self._journal.handle

    @property
    def run_id(self) -> str | None:
        return self._journal.handle.run_id

    def wait_for_id(self, timeout_s: float = 15.0) -> str | None:
        self._sender.wait_until(lambda: self.run_id is not None, timeout_s)
        return self.run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        self._journal.add_metrics(metrics, step, now_ms())

    def set_tags(self, tags: Mapping[str, Any]) -> None:
        self._append({"op": "tags", "tags": dict(tags)})

    def log_image(self, image: Image.Image | bytes, key: str, step: int = 0) -> None:
        file = self._journal.keep_bytes(png_bytes(image), "image.png")
        if file:
            self._append({"op": "image", "file": file, "key": key, "step": step, "time": now_ms()})

    def log_grid(
        self, images: Sequence[tuple[str, Image.Image | bytes]], key: str, step: int = 0
    ) -> None:
        if images:
            self.log_image(grid(images), key, step)

    def log_artifact(self, path: str | Path, artifact_path: str | None = None) -> None:
        file = self._journal.keep_path(Path(path))
        if file:
            self._append({"op": "artifact", "file": file, "path": artifact_path})

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
        kept = self._journal.keep_path(Path(folder), ADAPTER_ENTRIES)
        if not kept:
            return None
        record_id = secrets.token_hex(8)
        self._append(
            {
                "op": "model",
                "id": record_id,
                "folder": kept,
                "name": re.sub(r"[/:%\"']", "_", name),
                "base_model": base_model,
                "alias": alias,
                "tags": {key: str(value) for key, value in (tags or {}).items()},
                "contest": contest and asdict(contest),
            }
        )
        results = self._journal.results
        self._sender.wait_until(lambda: record_id in results or self._journal.is_sent, timeout_s)
        return results.get(record_id)

    def alias_of(self, version: str | None) -> str | None:
        return self._journal.aliases.get(version or "")

    def finish(self, status: Status = "FINISHED", timeout_s: float = 15.0) -> bool:
        if not self._journal.closed:
            self._append({"op": "finish", "status": status, "time": now_ms()})
            self._journal.close()
        arrived = self._sender.wait_until(lambda: self._journal.is_sent, timeout_s, ask_again=True)
        if not arrived and timeout_s > 0:
            self._sender.tell_kept("does not take records in time", self._journal.folder.parent)
        return arrived

    def detach(self, timeout_s: float = 15.0) -> bool:
        """Stop recording here and leave the run open for its owner; True when all records have
        arrived.
        """
        self._journal.close()
        arrived = self._sender.wait_until(lambda: self._journal.is_sent, timeout_s, ask_again=True)
        if not arrived:
            self._sender.tell_kept("does not take records in time", self._journal.folder.parent)
        self._sender.stop()
        return arrived

    def _append(self, record: dict[str, Any]) -> None:
        self._journal.append(record)
        self._sender.wake()


class MlflowTracker:
    """Records runs at `uri`.

    Args:
        uri: MLflow tracking URI (`resolve_uri` gives the default).
        experiment: its experiment; made when missing.
        spool: where journals lie; default DREAMFLEET_HOME/spool.
        notify: takes the one line that says that a server is down, and the one that says it is
            back.
        flush: send in the background what earlier runs left.
    """

    def __init__(
        self,
        uri: str,
        experiment: str = "dreamfleet",
        spool: Path | None = None,
        *,
        notify: Notify = to_stderr,
        flush: bool = True,
    ) -> None:
        self._uri, self._experiment = uri, experiment
        self._spool = spool or spool_folder()
        self._sender = Sender(uri, notify)
        self._runs: list[MlflowRun] = []
        self._stop_flush = threading.Event()
        self._flusher: threading.Thread | None = None
        if flush and self._spool.is_dir():
            self._flusher = threading.Thread(
                target=self._flush, name="dreamfleet-spool", daemon=True
            )
            self._flusher.start()

    @property
    def uri(self) -> str:
        return self._uri

    def start_run(
        self,
        name: str,
        params: Mapping[str, Any] | None = None,
        tags: Mapping[str, Any] | None = None,
        parent: Run | RunHandle | str | None = None,
        key: str | None = None,
    ) -> MlflowRun:
        """Begin a run, or go on with the one that an earlier call with the same `key` began.

        Raises:
            BadInputError: the spool cannot be written.
        """
        safe = re.sub(r"[^\w\-.]", "_", key) if key else secrets.token_hex(10)
        journal = _begin(self._spool, RunHandle(self._uri, self._experiment, safe))
        text_tags = {label: str(value) for label, value in (tags or {}).items()}
        create = {"op": "create", "name": name, "tags": text_tags, "time": now_ms()}
        journal.append({**create, "parent": _parent(parent)})
        if params:
            journal.append({"op": "params", "params": flatten(params)})
        run = MlflowRun(journal, self._sender)
        self._runs.append(run)
        self._sender.add(journal)
        return run

    def close(self, timeout_s: float = 15.0) -> None:
        """Send what is left; runs that nobody finished are marked as killed."""
        for run in self._runs:
            run.finish("KILLED", timeout_s)
        self._stop_flush.set()
        if self._flusher is not None:
            self._flusher.join(2.0)
        self._sender.stop()

    def _flush(self) -> None:
        flush_spool(self._spool, should_stop=self._stop_flush.is_set)


def open_tracker(
    config: TrackingConfig, spool: Path | None = None, notify: Notify = to_stderr
) -> Tracker:
    """The tracker that a configuration asks for; MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME are
    defaults.
    """
    if not config.enabled:
        return NullTracker()
    given = config.experiment if "experiment" in config.model_fields_set else None
    experiment = resolve_experiment(given)
    return MlflowTracker(resolve_uri(config.uri), experiment, spool, notify=notify)


def open_run(handle: RunHandle, spool: Path | None = None, notify: Notify = to_stderr) -> MlflowRun:
    """Go on recording a run in another process; end with `detach`, or with `finish` to end the run
    itself.

    Raises:
        BadInputError: the spool cannot be written.
    """
    # The run's owner makes the store: a database that is not here is on another machine.
    sender = Sender(handle.uri, notify, create=False)
    journal = _begin(spool or spool_folder(), handle)
    sender.add(journal)
    return MlflowRun(journal, sender)


def _begin(spool: Path, handle: RunHandle) -> Journal:
    try:
        return Journal.begin(spool, handle)
    except OSError as error:
        raise BadInputError(
            f"tracking: {spool} cannot be written ({error}); set DREAMFLEET_HOME to a folder that "
            "can, or switch tracking off (--no-tracking)"
        ) from error


def _parent(parent: Run | RunHandle | str | None) -> dict[str, str | None] | None:
    if parent is None:
        return None
    if isinstance(parent, str):
        return {"run_id": parent, "key": None}
    handle = parent if isinstance(parent, RunHandle) else parent.handle
    return {"run_id": handle.run_id, "key": handle.key}

"""`dreamfleet runs`: what has been recorded, and how two runs differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dreamfleet.errors import BadInputError, DreamfleetError
from dreamfleet.tracking.base import (
    resolve_experiment,
    resolve_uri,
    sqlite_path,
    ui_command,
    without_password,
)
from dreamfleet.tracking.spool import flush_spool, spool_folder
from dreamfleet.tracking.store import MlflowStore, Unreachable, plain_reason

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from rich.console import Console
    from rich.table import Table

SHOWN_METRICS = 3
WIDE = 110  # columns
NARROW_METRICS = 2
UNBOUND = 140  # columns of what is no terminal
# Shown first where a run has them; per-step losses say little about an adapter.
KEY_METRICS = ("identity", "clip_t", "diversity", "loss", "rho")
PAGE = 500
CHAMPION = "champion."  # tags of a study


@dataclass(frozen=True)
class RunRow:
    """One recorded run."""

    run_id: str
    name: str
    status: str
    started: datetime | None
    seconds: float | None
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        return self.tags.get("dreamfleet.subject") or self.name

    @property
    def method(self) -> str:
        """E.g. "dreambooth lora SuDe 0.4", as far as it is known."""
        method = self.tags.get("dreamfleet.method") or self.params.get("method", "")
        weight = self.params.get("sude.weight", "0")
        sude = f"SuDe {weight}" if weight not in ("0", "0.0", "null") else ""
        return " ".join(part for part in (method, self.params.get("train.mode", ""), sude) if part)

    @property
    def steps(self) -> str:
        steps = self.params.get("train.max_train_steps", "")
        return "" if steps == "null" else steps


@dataclass(frozen=True)
class Difference:
    """A parameter or metric in which two runs differ."""

    name: str
    first: str
    second: str
    kind: str  # param or metric


@dataclass(frozen=True)
class Comparison:
    """Two runs side by side."""

    first: RunRow
    second: RunRow
    differences: tuple[Difference, ...]


def list_runs(
    uri: str | None = None, experiment: str | None = None, limit: int = 20
) -> list[RunRow]:
    """The newest runs of an experiment, newest first; empty where nothing has been recorded.

    Args:
        experiment: default here and below: where runs are recorded by default.

    Raises:
        DreamfleetError: the tracking server does not answer.
    """
    client = _client(uri)
    if client is None:
        return []
    try:
        found = client.get_experiment_by_name(resolve_experiment(experiment))
        if found is None:
            return []
        return [_row(run) for run in _newest(client, found.experiment_id, limit)]
    except Exception as error:
        raise _no_answer(uri, error) from error


def compare_runs(
    first: str, second: str, uri: str | None = None, experiment: str | None = None
) -> Comparison:
    """What differs between two runs, given by their ids or unique beginnings of them.

    Raises:
        BadInputError: no run, or several, have such an id.
        DreamfleetError: the tracking server does not answer.
    """
    rows = list_runs(uri, experiment, limit=10_000)
    one, two = _by_id(rows, first, experiment), _by_id(rows, second, experiment)
    differences = [
        Difference(name, one.params.get(name, "–"), two.params.get(name, "–"), "param")
        for name in _names(one.params, two.params)
        if one.params.get(name) != two.params.get(name)
    ]
    differences += [
        Difference(name, _figure(one.metrics.get(name)), _figure(two.metrics.get(name)), "metric")
        for name in _names(one.metrics, two.metrics)
        if one.metrics.get(name) != two.metrics.get(name)
    ]
    return Comparison(one, two, tuple(differences))


def fetch_run(
    run_id: str,
    artifacts: Sequence[str],
    folder: Path,
    uri: str | None = None,
    experiment: str | None = None,
) -> RunRow:
    """A run, by its id or a unique beginning; those of `artifacts` that it has are put in `folder`.

    Raises:
        BadInputError: no run, or several, have such an id.
        DreamfleetError: the tracking server does not answer.
    """
    row = _by_id(list_runs(uri, experiment, limit=10_000), run_id, experiment)
    client = _client(uri)
    assert client is not None  # the run was found there
    try:
        kept = {item.path for item in client.list_artifacts(row.run_id)}
        for name in artifacts:
            if name in kept:
                client.download_artifacts(row.run_id, name, str(folder))
        return row
    except Exception as error:
        raise _no_answer(uri, error) from error


def show_runs(
    run_ids: Sequence[str],
    *,
    tracking_uri: str | None = None,
    experiment: str | None = None,
    limit: int = 20,
    console: Console | None = None,
) -> None:
    """Print a table of runs, or of the differences between two of them."""
    screen = console or _screen()
    if run_ids:
        first, second = run_ids
        screen.print(comparison_table(compare_runs(first, second, tracking_uri, experiment)))
    elif rows := list_runs(tracking_uri, experiment, limit):
        screen.print(runs_table(rows, screen.width))
    else:
        place = without_password(resolve_uri(tracking_uri))
        screen.print(f"no runs in experiment {resolve_experiment(experiment)!r} at {place}")
        return
    command = ui_command(resolve_uri(tracking_uri))
    screen.print(f"MLflow in a browser: {command}", markup=False, soft_wrap=True)


def flush_and_tell(console: Console | None = None) -> None:
    """Send what lies in the spool and print what became of it.

    Raises:
        DreamfleetError: a server still does not take its records; the others have theirs.
    """
    screen = console or _screen()
    result = flush_spool(notify=screen.print)
    screen.print(result.summary(), markup=False)
    if result.problems:
        raise DreamfleetError("; ".join(result.problems) + f"; records stay in {spool_folder()}")


def _screen() -> Console:
    """Standard output; a file or pipe takes long lines, a terminal what it shows."""
    import sys

    from rich.console import Console

    return Console(highlight=False, width=None if sys.stdout.isatty() else UNBOUND)


def runs_table(rows: Sequence[RunRow], width: int = WIDE) -> Table:
    """Runs as a table for a terminal of `width` columns; a narrow one leaves out the start and the
    last metric, so that names stay whole.
    """
    from rich.table import Table
    from rich.text import Text

    metrics = key_metrics(rows)[: None if width >= WIDE else NARROW_METRICS]
    table = Table(box=None, pad_edge=False, header_style="bold")
    titles = ["run", "subject", "method", "steps", *metrics, "status", "time"]
    titles += ["started"] if width >= WIDE else []
    for title in titles:
        right = title in ("steps", "time", *metrics)
        words = title in ("subject", "method")
        justify: Literal["right", "left"] = "right" if right else "left"
        table.add_column(title, justify=justify, overflow="fold", no_wrap=not words)
    for row in rows:
        figures = [_figure(row.metrics.get(name), 3) for name in metrics]
        cells = [Text(text) for text in (row.run_id[:8], row.subject, row.method, row.steps)]
        cells += [Text(figure) for figure in figures]
        cells.append(Text(row.status.lower(), style=_STYLES.get(row.status, "")))
        cells.append(Text(_duration(row.seconds)))
        if width >= WIDE:
            cells.append(Text(row.started.strftime("%Y-%m-%d %H:%M") if row.started else ""))
        table.add_row(*cells)
    return table


def comparison_table(comparison: Comparison) -> Table:
    """Two runs side by side: what differs, and by how much."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for row in (comparison.first, comparison.second):
        table.add_column(Text(f"{row.run_id[:8]}\n{row.subject}"), justify="right", overflow="fold")
    table.add_column("second − first", justify="right")
    kinds = {"param": "parameters that differ", "metric": "metrics"}
    for kind, title in kinds.items():
        found = [item for item in comparison.differences if item.kind == kind]
        if found:
            table.add_row(Text(title, style="bold dim"))
        for item in found:
            table.add_row(Text(item.name), Text(item.first), Text(item.second), _change(item))
    if not comparison.differences:
        table.add_row("no difference in parameters or metrics")
    return table


def key_metrics(rows: Sequence[RunRow], count: int = SHOWN_METRICS) -> list[str]:
    """The metrics worth a column: the known ones first, then those that most runs have."""
    frequency: dict[str, int] = {}
    for row in rows:
        for name in row.metrics:
            frequency[name] = frequency.get(name, 0) + 1
    known = [name for name in KEY_METRICS if name in frequency]
    others = sorted(frequency, key=lambda name: (-frequency[name], name))
    return list(dict.fromkeys([*known, *others]))[:count]


_STYLES = {"FINISHED": "green", "FAILED": "red", "KILLED": "yellow", "RUNNING": "cyan"}


def _client(uri: str | None) -> MlflowClient | None:
    resolved = resolve_uri(uri)
    database = sqlite_path(resolved)
    if database is not None and not database.exists():
        return None
    try:
        return MlflowStore.connect(resolved).client
    except Unreachable as error:
        raise _no_answer(uri, error) from error


def _no_answer(uri: str | None, error: Exception) -> DreamfleetError:
    if isinstance(error, DreamfleetError):
        return error
    resolved = resolve_uri(uri)
    return DreamfleetError(
        f"MLflow at {without_password(resolved)}: {plain_reason(error, resolved)}; "
        "check --tracking-uri or MLFLOW_TRACKING_URI"
    )


def _newest(client: MlflowClient, experiment_id: str, limit: int) -> list[Any]:
    runs: list[Any] = []
    token: str | None = None
    while len(runs) < limit:
        page = client.search_runs(
            [experiment_id],
            max_results=min(PAGE, limit - len(runs)),
            order_by=["attributes.start_time DESC"],
            page_token=token,
        )
        runs += page
        token = page.token
        if not token:
            break
    return runs


def _row(run: Any) -> RunRow:
    start, end = run.info.start_time, run.info.end_time
    # A study's figures are those of its champion, so its settings have to be, too.
    champion = {
        name.removeprefix(CHAMPION): value
        for name, value in run.data.tags.items()
        if name.startswith(CHAMPION)
    }
    return RunRow(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=run.info.status,
        started=datetime.fromtimestamp(start / 1000) if start else None,
        seconds=(end - start) / 1000 if start and end else None,
        params={**run.data.params, **champion},
        metrics=dict(run.data.metrics),
        tags=dict(run.data.tags),
    )


def _by_id(rows: Sequence[RunRow], wanted: str, experiment: str | None) -> RunRow:
    found = [row for row in rows if row.run_id.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BadInputError(
            f"run {wanted!r}: no such run in experiment {resolve_experiment(experiment)!r}; "
            "`dreamfleet runs` lists them"
        )
    ids = ", ".join(row.run_id[:12] for row in found[:4])
    raise BadInputError(f"run {wanted!r}: {len(found)} runs begin so ({ids}); give more of the id")


def _names(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    return sorted({*first, *second})


def _figure(value: float | None, digits: int = 4) -> str:
    return "–" if value is None else f"{value:.{digits}g}"


def _change(item: Difference) -> str:
    try:
        return f"{float(item.second) - float(item.first):+.3g}"
    except ValueError:
        return ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return (
        f"{minutes}:{rest:02d}"
        if minutes < 60
        else f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
    )

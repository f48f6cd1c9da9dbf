"""Rows and summaries as files: one parquet row per picture, `summary.json` beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.runtime.storage import write_whole

RESULTS, SUMMARY = "results.parquet", "summary.json"
Row = Mapping[str, Any]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write parquet; a row that lacks a column has null there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = dict.fromkeys(name for row in rows for name in row)
    part = path.with_suffix(f".{os.getpid()}.part")
    pq.write_table(
        pa.table({name: pa.array([row.get(name) for row in rows]) for name in columns}), part
    )
    os.replace(part, path)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """What `write_rows` wrote.

    Raises:
        BadInputError: not there, or not such a file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
        return rows
    except (OSError, pa.ArrowException) as error:
        raise BadInputError(
            f"{path}: no results ({error}); expected an output folder of `dreamfleet evaluate` or "
            "`dreamfleet benchmark`"
        ) from error


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write JSON; NaN is none and becomes null."""
    write_json(path, json_ready(summary), default=str)


def write_json(path: Path, value: Any, default: Callable[[Any], Any] | None = None) -> None:
    """Write JSON in one piece; what JSON has no word for goes through `default`."""
    write_whole(path, json.dumps(value, indent=1, default=default).encode())


def read_summary(path: Path) -> dict[str, Any]:
    """What `write_summary` wrote.

    Raises:
        BadInputError: not there, or another kind of file.
    """
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(summary, dict) or not isinstance(summary.get("table"), list):
            raise ValueError("no table in it")
        return summary
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"{path}: no summary ({error}); expected one that `dreamfleet evaluate` or `dreamfleet "
            "benchmark` wrote"
        ) from error


def json_ready(value: Any) -> Any:
    """Plain values with NaN and infinities as null."""
    if isinstance(value, Mapping):
        return {str(key): json_ready(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_ready(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value

"""Paired differences between adapters, benchmark folders and MLflow runs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.cards import ADAPTER_JSON, read_adapter_json
from dreamfleet.evaluation.evaluation_report import main_arm
from dreamfleet.evaluation.results import SUMMARY, read_summary
from dreamfleet.evaluation.scores import compare_entries, headline, higher_is_better, title

# Settings without which two figures do not measure the same thing. Which oracle is one of the
# judges' affairs.
SAME_SETTINGS = (
    "base hash", "world", "sampler", "judges", "prompts", "pictures per prompt", "scored states",
)  # fmt: skip
NO_FIGURES = (".without_adapter",)
EXPECTED = (
    "give an output folder of `dreamfleet evaluate`, `benchmark` or `personalize` on this machine, "
    "or an MLflow run id"
)


@dataclass(frozen=True)
class Compared:
    """One of the things compared.

    Attributes:
        entry: its figures by subject.
        settings: how they were measured.
        individuals: by subject, a hash of who it is; older summaries do not say.
    """

    name: str
    entry: Mapping[str, Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    individuals: Mapping[str, str] = field(default_factory=dict)


def compare(
    places: Sequence[str], *, tracking_uri: str | None = None, experiment: str | None = None
) -> tuple[list[Compared], list[dict[str, Any]]]:
    """The first against each of the others, figure by figure, paired by subject.

    Args:
        places: output folders of `evaluate`, `benchmark` or `personalize`, or MLflow run ids (or
            unique beginnings of them).

    Returns:
        What was compared, and one mapping per other and figure (see `scores.compare_entries`).

    Raises:
        BadInputError: fewer than two, or one that has no figures, other subjects, or figures that
            were measured otherwise.
    """
    if len(places) < 2:
        raise BadInputError(f"{len(places)} given to compare; expected two or more")
    found = [_read(place, tracking_uri, experiment) for place in places]
    if len({item.name for item in found}) < len(found):
        found = [replace(item, name=place) for place, item in zip(places, found, strict=True)]
    for item in found[1:]:
        _check_settings(found[0], item)
        _check_individuals(found[0], item)
    others = {item.name: item.entry for item in found[1:]}
    return found, compare_entries(found[0].entry, others)


def comparison_lines(
    compared: Sequence[Compared], differences: Sequence[Mapping[str, Any]]
) -> Iterator[str]:
    """The differences as a table for a terminal."""
    first = compared[0].name
    for other in compared[1:]:
        yield f"{first} minus {other.name}"
        own = [row for row in differences if row["other"] == other.name]
        for row in own:
            yield f"  {title(row['figure']):<44} {_difference(row)}"
        alone = sorted(_subjects(compared[0]) ^ _subjects(other))
        if alone:
            yield f"  (in one of them only, and not compared: {', '.join(alone)})"
        if own and all(row["interval"] is None for row in own):
            yield "  (fewer than 8 subjects: no interval)"


def _check_settings(a: Compared, b: Compared) -> None:
    for key in SAME_SETTINGS:
        one, other = (item.settings.get(key, "not said") for item in (a, b))
        if one != other:
            raise BadInputError(
                f"{a.name} and {b.name} were not measured alike: {key} {one} and {other}; compare "
                "results of the same settings (the same command writes an older summary anew, and "
                "draws nothing twice)"
            )


def _check_individuals(a: Compared, b: Compared) -> None:
    other = [who for who, own in a.individuals.items() if b.individuals.get(who, own) != own]
    if other:
        raise BadInputError(
            f"{a.name} and {b.name} mean others by the same names: {', '.join(other)} (reference "
            "photos, class word or token differ); compare results of the same subjects and photos "
            "(`dreamfleet evaluate --images`)"
        )


def _subjects(item: Compared) -> set[str]:
    return {who for values in item.entry.get("subjects", {}).values() for who in values}


def _difference(row: Mapping[str, Any]) -> str:
    mean = row["mean_difference"]
    text = f"{mean:+.3f}"
    if row["interval"] is not None:
        low, high = row["interval"]
        text += f"  [{low:+.3f}, {high:+.3f}]  p {_p(row['p_t'])}, Holm {_p(row['p_holm'])}"
    if row["p_sign_flip"] is not None and row["interval"] is not None:
        text += f", sign flip {_p(row['p_sign_flip'])}"
    count = row["num_subjects"]
    text += f", {count} subject{'s' if count != 1 else ''}"
    if abs(mean) < 5e-4 or not headline([row["figure"]]):  # of an unknown figure nobody can say
        return text
    better = (mean > 0) == higher_is_better(row["figure"])
    return f"{text}  ({'better' if better else 'worse'})"


def _p(value: float | None) -> str:
    if value is None:
        return "–"
    return "< 0.001" if value < 1e-3 else f"{value:.3f}"


def _read(place: str, tracking_uri: str | None, experiment: str | None) -> Compared:
    folder = Path(place).expanduser()
    if folder.exists():
        return _read_folder(folder, folder.name or place, str(folder))
    if "/" in place:  # no run's id has one
        raise BadInputError(f"{place}: no such folder; {EXPECTED}")
    return _read_run(place, tracking_uri, experiment)


def _read_folder(folder: Path, name: str, origin: str) -> Compared:
    if (folder / SUMMARY).is_file():
        return _of_summary(name, read_summary(folder / SUMMARY))
    if (folder / ADAPTER_JSON).is_file():
        info = read_adapter_json(folder)
        # The same names mean other quantities to other judges.
        judges = ", ".join(f"{figure} {judge}" for figure, judge in sorted(info.judges.items()))
        settings = {"base hash": info.base.hash[:16], "judges": judges}
        return Compared(name, _single(info.name, info.metrics), settings)
    raise BadInputError(f"{origin}: neither {SUMMARY} nor {ADAPTER_JSON} in it; {EXPECTED}")


def _read_run(run_id: str, tracking_uri: str | None, experiment: str | None) -> Compared:
    """What the run keeps of the folder that it recorded: its own metrics are losses, too, and do
    not say how they were measured.
    """
    from dreamfleet.tracking.runs import fetch_run

    with tempfile.TemporaryDirectory() as kept:
        files = (SUMMARY, ADAPTER_JSON)
        row = fetch_run(run_id, files, Path(kept), tracking_uri, experiment)
        return _read_folder(Path(kept), row.name or run_id, f"run {run_id}")


def _of_summary(name: str, summary: Mapping[str, Any]) -> Compared:
    return Compared(name, main_arm(summary), summary.get("settings", {}),
                    summary.get("individuals", {}))  # fmt: skip


def _single(subject: str, metrics: Mapping[str, float]) -> dict[str, Any]:
    """Figures of one subject, as an entry of a table."""
    own = {name: value for name, value in metrics.items() if not name.endswith(NO_FIGURES)}
    if not own:
        raise BadInputError(
            f"{subject}: no figures are recorded; run `dreamfleet evaluate` on the adapter first"
        )
    return {"host": subject, "steps": 0, "means": own,
            "subjects": {name: {subject: value} for name, value in own.items()}}  # fmt: skip

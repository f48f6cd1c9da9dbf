"""What a study leaves in its folder, and what of it is committed beside docs/evidence.md."""

from __future__ import annotations

import datetime
import itertools
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.results import RESULTS, write_rows, write_summary
from dreamfleet.evaluation.studies.claims import chosen_settings
from dreamfleet.evaluation.studies.figures import draw_chart, draw_sheet, rho_table
from dreamfleet.evaluation.studies.pieces import (
    ABOUT,
    DECIDES,
    RHO,
    SHEET,
    TABLE,
    Piece,
    joined,
    read_piece,
    write_piece,
)
from dreamfleet.evaluation.studies.plan import rungs_of
from dreamfleet.evaluation.studies.recipe import Study
from dreamfleet.evaluation.studies.run import StudyRun
from dreamfleet.evaluation.studies.settings import (
    SETTINGS,
    Settings,
    read_settings,
    write_settings,
)
from dreamfleet.evaluation.studies.tables import subject_table, write_csv

CHART = "chart.webp"  # made from what else is committed
MOST_BYTES = 3 * 2**20


def write_results(run: StudyRun, settings: Settings) -> tuple[Path, list[str]]:
    """Rows, table, chart and pictures of what is finished of the run's part, below
    `<output>/<study>/`.

    Returns:
        The folder, and the units that are not done.
    """
    folder = run.output_dir / run.study.study
    folder.mkdir(parents=True, exist_ok=True)
    rows, left = run.rows()
    if not rows:
        return folder, left
    # Pictures are named from the folder that the file is in, as other benchmarks' are.
    write_rows(folder / RESULTS, [{**row, "picture": f"../{row['picture']}"} for row in rows])
    table = subject_table(rows, settings.scored_states)
    write_csv(folder / TABLE, table)
    rho = rho_table(run.logs()) if run.study.log else []
    if rho:
        write_csv(folder / RHO, rho)
    else:
        (folder / RHO).unlink(missing_ok=True)
    draw_chart(run.study, table, rho, folder / CHART)
    drawn = draw_sheet(run, folder / SHEET)
    hosts = list(dict.fromkeys(arm.host for arm in run.arms))
    about = {
        "study": run.study.model_dump(mode="json", by_alias=True),
        "trial": settings.trial,
        "overrides": dict(run.overrides),
        "complete": not left,
        "hosts": hosts,
        "arms": _settings_of(run),
        "rungs": _rungs_of(run),
        "sheets": {SHEET: hosts} if drawn else {},
        "photographs": any(member.individual is None for member in run.members()),
        "base": run.base.hash,
        "judges": run.field.judges_key,
        "guidance": run.guidance,
        "hardware": _hardware(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu_s": run.costs(),
        "failures": run.failures(),
    }
    write_summary(folder / ABOUT, about)
    return folder, left


def publish(folder: Path, evidence: Path, recipe: Study) -> None:
    """Take a finished study, or finished hosts or subjects of one, below the docs, beside what is
    there of it.

    Raises:
        BadInputError: it is a trial, not finished, not what its recipe and the settled settings
            say, not to be joined with what is there, or too large.
    """
    name, piece = recipe.study, read_piece(folder)
    about = piece.about
    settled = evidence / Path(SETTINGS).name
    problems = _unfit(about, recipe)
    problems += _unsettled(about, recipe, read_settings(settled)) if settled.is_file() else []
    if problems:
        raise BadInputError(f"{folder}: study {name} {', '.join(problems)}; it is not published")
    target = evidence / name
    piece = _with_named_sheet(piece, recipe)
    both = joined(read_piece(target), piece) if (target / ABOUT).is_file() else piece
    write_piece(target, both)
    for sheet in piece.sheets:
        shutil.copyfile(folder / SHEET, target / sheet)
    for path in target.glob(f"{Path(SHEET).stem}*.webp"):
        if path.name not in both.sheets:
            path.unlink()
    total = sum(path.stat().st_size for path in evidence.rglob("*") if path.is_file())
    if total > MOST_BYTES:
        raise BadInputError(
            f"{evidence}: {total / 2**20:.1f} MiB of evidence; at most {MOST_BYTES // 2**20} are "
            "committed: show fewer pictures"
        )


def _with_named_sheet(piece: Piece, recipe: Study) -> Piece:
    """The pictures of some hosts have a name beside which others' can stand."""
    if not piece.sheets or piece.about["study"]["hosts"] == recipe.hosts:
        return piece
    name = f"{Path(SHEET).stem}-{'-'.join(piece.hosts)}.webp"
    return replace(piece, about={**piece.about, "sheets": {name: piece.hosts}})


def _unfit(about: Mapping[str, Any], recipe: Study) -> list[str]:
    """Why a study may not be published."""
    problems = []
    if about["trial"]:
        problems.append("was run with trial settings")
    if about["photographs"]:
        problems.append("is of photographs, and the page is WorldBench's")
    if not about["complete"]:
        problems.append("is not finished")
    for field in ("subjects", "seeds"):
        ran, wanted = about["study"][field], getattr(recipe, field)
        if ran < wanted:
            problems.append(f"has {ran} {field} of {wanted}")
    if about.get("overrides"):
        problems.append(f"was run with --set {', '.join(about['overrides'])}")
    now = recipe.model_dump(mode="json", by_alias=True)
    changed = [field for field in DECIDES if about["study"].get(field, now[field]) != now[field]]
    if changed:
        problems.append(f"was run with other {', '.join(changed)} than the recipe has now")
    return problems


def _unsettled(about: Mapping[str, Any], recipe: Study, settings: Settings) -> list[str]:
    """Where a study was drawn with something else than what the page's settings say."""
    problems, base = [], settings.frozen.get("base")
    if base is not None and about.get("base", base) != base:
        problems.append(f"is on a base that is not the one that {settings.path} has frozen")
    guidance = about.get("guidance", settings.guidance)
    if guidance != settings.guidance:
        problems.append(
            f"was drawn at guidance {guidance}, and {settings.path} says {settings.guidance}"
        )
    return problems + _other_arms(about, recipe, settings)


def _other_arms(about: Mapping[str, Any], recipe: Study, settings: Settings) -> list[str]:
    """Hosts that were read at other steps than their N asks for, or with another chosen setting."""
    if recipe.selection_states:  # each subject has its own
        return []
    problems = []
    for host, ran in about["rungs"].items():
        wanted = rungs_of(recipe, settings, host)
        if list(ran) != list(wanted):
            problems.append(f"read {host} at {ran} steps, and {settings.path} means {wanted}")
    for arm in recipe.arms:
        if arm.sude != "chosen" or arm.weight_factor != 1 or arm.set:
            continue
        for host in about["hosts"]:
            setting = about["arms"].get(f"{host}: {arm.name}")
            if setting is not None and setting != settings.sude.get(host):
                problems.append(f"has another setting of {host} than {settings.path} chose")
    return problems


def settle(table: Sequence[Mapping[str, Any]], about: Mapping[str, Any], path: Path) -> dict[
    str, str | None
]:  # fmt: skip
    """Write the chosen setting of every host that was run into the settings file (protocol,
    section 5); those of other hosts stay.

    Returns the chosen arm by host.
    """
    known = read_settings(path).sude if path.is_file() else {}
    chosen = chosen_settings(table, about)
    sude = {
        host: None if arm is None else about["arms"][f"{host}: {arm}"]
        for host, arm in chosen.items()
    }
    write_settings(path, sude={**known, **sude})
    return chosen


def _settings_of(run: StudyRun) -> dict[str, dict[str, Any]]:
    """SuDe's setting of every arm; where each subject has its own, all that was found for it."""
    if not run.own_arms:
        return {f"{arm.host}: {arm.name}": _sude_of(arm.config) for arm in run.arms}
    return {
        f"{subject}, {arm.host}: {arm.name}": {
            **_sude_of(arm.config),
            "prior.weight": arm.config.prior.weight
            if arm.config.prior.with_prior_preservation else 0.0,
            "train.learning_rate": arm.config.train.learning_rate,
            "train.rank": arm.config.train.rank,
            "train.max_train_steps": arm.rungs[-1],
        }
        for subject, arms in run.own_arms.items() for arm in arms if arm.config is not None
    }  # fmt: skip


def _rungs_of(run: StudyRun) -> dict[str, list[int]]:
    """By host the steps at which any of its arms was read."""
    found: dict[str, set[int]] = {}
    for arm in itertools.chain(run.arms, *run.own_arms.values()):
        found.setdefault(arm.host, set()).update(arm.rungs)
    return {host: sorted(steps) for host, steps in found.items()}


def _sude_of(config: Any) -> dict[str, Any]:
    sude = config.sude
    if not sude.weight:
        return {}
    names = ("weight", "teacher", "weighting", "truncation_point")
    return {f"sude.{name}": getattr(sude, name) for name in names}


def _hardware() -> str:
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{os.cpu_count()} CPU cores ({name})"

"""Studies as commands: a recipe in; rows, tables, figures and a report out."""

from __future__ import annotations

import functools
import multiprocessing
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dreamfleet.bases import Base, inspect_base
from dreamfleet.config import load_config
from dreamfleet.errors import BadInputError, ConfigError
from dreamfleet.evaluation.judges import JudgeSpec
from dreamfleet.evaluation.studies.fields import Field, PhotographField, WorldField
from dreamfleet.evaluation.studies.pieces import read_piece
from dreamfleet.evaluation.studies.plan import planned_arms
from dreamfleet.evaluation.studies.recipe import Study, load_study, studies_in
from dreamfleet.evaluation.studies.report import (
    publish,
    settle,
    write_results,
)
from dreamfleet.evaluation.studies.run import Report, StudyRun
from dreamfleet.evaluation.studies.settings import (
    SETTINGS,
    check_settled,
    check_split,
    hashes,
    read_settings,
)
from dreamfleet.runtime.jobs import durable_folder
from dreamfleet.runtime.processes import end_with_parent
from dreamfleet.world.evaluators import weights_hash

EVALUATORS = ("oracle_a", "oracle_b", "identity", "segmenter")


@dataclass(frozen=True)
class StudyOrder:
    """One command; plain data, so that other processes can carry out parts of it.

    Attributes:
        config: the study's recipe.
        output_dir: shared by all studies that should share trainings.
        settings: the settled settings.
        subjects, seeds, split, hosts: instead of the recipe's.
        part: (i, n): subjects i, i + n, ….
        overrides: of every arm's configuration.
        data_dir: DreamBench's photographs instead of the drawn world.
        judges: of photographs: clip, dino, blip.
    """

    config: str
    output_dir: str
    settings: str
    subjects: int | None = None
    seeds: int | None = None
    split: str | None = None
    hosts: Sequence[str] | None = None
    part: tuple[int, int] = (0, 1)
    base_model: str = "embedded"
    device: str = "cpu"
    threads: int = 1
    overrides: Mapping[str, Any] = field(default_factory=dict)
    data_dir: str | None = None
    judges: Mapping[str, str] = field(default_factory=dict)

    def study(self) -> Study:
        """The recipe with the command's changes."""
        hosts = None if self.hosts is None else list(self.hosts)
        changes = {
            "subjects": self.subjects, "seeds": self.seeds, "split": self.split, "hosts": hosts
        }  # fmt: skip
        return load_study(self.config, changes)


def study_run(order: StudyOrder, report: Report = print, field_: Field | None = None) -> StudyRun:
    """All that an order needs, checked before anything is trained.

    Args:
        field_: instead of the one that the order names; for tests.

    Raises:
        BadInputError: settings are missing, or held-back subjects may not be drawn (yet).
        ConfigError: the recipe or an arm's configuration is wrong.
    """
    study, settings = order.study(), read_settings(order.settings)
    if study.split != "D" and order.data_dir is None:
        check_split(settings, study.split, current_hashes(order.base_model))
        if study.split != "T":  # the confirmation's subjects: nothing of them before its step
            check_settled(settings, order.overrides if study.primary else {})
    if study.searches:
        raise ConfigError(f"{order.config}: its arms search; use dreamfleet.tuning.reach")
    arms = planned_arms(study, settings, order.overrides)
    load = functools.partial(load_base_of, order)
    place = field_ or _field(order, study, settings.scored_states, report)
    run = StudyRun(study, place, arms, settings.guidance, load, Path(order.output_dir),
                   order.part, report, overrides=order.overrides)  # fmt: skip
    return run


def run_study(order: StudyOrder, report: Report = print, num_workers: int = 1) -> StudyRun:
    """Train, draw and score what is missing; with several workers subjects side by side.

    Raises:
        KeyboardInterrupt: interrupted; the same command goes on.
    """
    import torch

    torch.set_num_threads(order.threads)
    run = study_run(order, report)
    if num_workers <= 1:
        run.run()
        return run
    batches = [[own.subject_id for own in batch] for batch in run.batches(num_workers)]
    context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
    with ProcessPoolExecutor(num_workers, context, end_with_parent) as pool:
        jobs = [pool.submit(_run_some, order, batch) for batch in batches]
        try:
            for job in jobs:
                job.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return run


def carry_out(
    order: StudyOrder, report: Report = print, num_workers: int = 1
) -> tuple[Path, list[str]]:
    """`run_study`, and the results of what is finished; returns their folder, and what is not done.

    Raises:
        KeyboardInterrupt: interrupted; the same command goes on.
    """
    place = durable_folder("--output-dir", order.output_dir)
    run = run_study(replace(order, output_dir=str(place)), report, num_workers)
    return write_results(run, read_settings(order.settings))


def take_in(name: str, source: str | None, recipes: Path, evidence: Path) -> list[str]:
    """Copy a finished study's table and pictures below the docs; a study that chooses SuDe's
    setting writes it into the settings file.

    Raises:
        BadInputError: no such study, or it may not be published.
    """
    if source is None:
        raise BadInputError("--study: give the folder that run_study.py wrote, too (--from)")
    known = {own.study.study: own.study for own in studies_in(recipes)}
    if name not in known:
        raise BadInputError(f"--study {name}: expected one of {', '.join(known)}")
    publish(Path(source) / name, evidence, known[name])
    lines = [f"{name}: taken into {evidence / name}"]
    if known[name].chooses:
        taken = read_piece(evidence / name).whole()
        settings = evidence / Path(SETTINGS).name
        chosen = settle(taken.table, taken.about, settings)
        lines += [f"{host}: {arm or 'no setting keeps the likeness'}"
                  for host, arm in chosen.items()]  # fmt: skip
    return lines


def parse_part(text: str) -> tuple[int, int]:
    """ "1/2" -> (0, 2).

    Raises:
        BadInputError: something else.
    """
    first, _, count = text.partition("/")
    if not (first.isdigit() and count.isdigit() and 1 <= int(first) <= int(count)):
        raise BadInputError(f"--part {text!r}: expected I/N with 1 <= I <= N, e.g. 1/2")
    return int(first) - 1, int(count)


def parse_hosts(text: str | None) -> tuple[str, ...] | None:
    """ "lora, full" -> ("lora", "full")."""
    return None if text is None else tuple(name.strip() for name in text.split(","))


def parse_overrides(items: Sequence[str]) -> dict[str, Any]:
    """["train.rank=4"] -> {"train.rank": "4"}.

    Raises:
        BadInputError: without "=".
    """
    wrong = [item for item in items if "=" not in item]
    if wrong:
        raise BadInputError(f"--set {wrong[0]!r}: expected KEY=VALUE, e.g. train.rank=4")
    return {key: value for key, _, value in (item.partition("=") for item in items)}


def current_hashes(base_model: str = "embedded") -> dict[str, str]:
    """What the protocol freezes, as it is now."""
    return hashes(inspect_base(base_model).hash, weights_hash(*EVALUATORS))


def _field(
    order: StudyOrder,
    study: Study,
    scored: Mapping[str, Sequence[str]] | None,
    report: Report,
) -> Field:
    if order.data_dir is None:
        return WorldField(study, scored=scored)
    field_ = PhotographField(study, order.data_dir, published_judges(order), device=order.device)
    if field_.missing:
        report(f"not in {order.data_dir}: {', '.join(field_.missing)}")
    return field_


def published_judges(order: StudyOrder) -> JudgeSpec:
    """Who judges photographs."""
    clip, dino, blip = (order.judges.get(name, "") for name in ("clip", "dino", "blip"))
    return JudgeSpec(world=False, clip=clip, dino=dino, blip=blip)


def load_base_of(order: StudyOrder) -> Base:
    """A fresh base, as the order's overrides want it."""
    from dreamfleet.runtime.engine_actor import EngineSource

    config = load_config(overrides={"base_model": order.base_model, **order.overrides})
    return EngineSource.of(config, order.device, for_scores=True).load()


def _run_some(order: StudyOrder, subject_ids: Sequence[str]) -> None:
    """Some subjects, in a process of its own."""
    import torch

    torch.set_num_threads(order.threads)
    run = study_run(order, functools.partial(print, flush=True))
    run.run_members([own for own in run.members() if own.subject_id in subject_ids])

"""A study as data: which subjects, arms, rungs and prompts, what is claimed, and what is shown."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dreamfleet.errors import ConfigError
from dreamfleet.evaluation.worldbench.plan import HOST_OVERRIDES

BASE = "base"
ALIGNMENT, IDENTITY = "alignment", "identity"


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Pictures(_Section):
    """Pictures of each prompt, by kind; 0: not asked.

    `combined` asks for a state and a scene at once; `applications` are DreamBooth's.
    """

    subject: int = Field(0, ge=0)
    state: int = Field(0, ge=0)
    scene: int = Field(0, ge=0)
    combined: int = Field(0, ge=0)
    applications: int = Field(0, ge=0)
    class_: int = Field(0, ge=0, alias="class")


class ArmSpec(_Section):
    """One way of training, on every host.

    Attributes:
        name: in tables.
        sude: none; chosen (settings file); or the configuration's preset `official`.
        weight_factor: times w_s.
        set: further overrides by dotted key.
        photos: training photos of the subject.
        prop: the photos show the class's uncaptioned prop.
        noun: class noun of every prompt: the right one, a wrong one, or none.
        search: settings of a sweep that finds each subject's own setting and steps; in studies with
            `selection_states`.
        x: place on the chart's axis.
    """

    name: str
    sude: Literal["none", "chosen", "official"] = "none"
    weight_factor: float = Field(1.0, gt=0)
    set: dict[str, Any] = Field(default_factory=dict)
    photos: int = Field(1, ge=1, le=7)
    prop: bool = False
    noun: Literal["right", "wrong", "none"] = "right"
    search: dict[str, Any] | None = None
    x: float | None = None


class Claim(_Section):
    """An arm against another on one figure: expected above or below `threshold`.

    Attributes:
        paper: what the paper says, in a few words.
        subjects: all, live (animals) or objects.
        exploratory: reported beside the study's own claims, with an adjustment of its own.
    """

    claim: str
    paper: str = ""
    figure: str
    arm: str
    against: str
    expect: Literal["above", "below"] = "above"
    threshold: float = 0.0
    subjects: Literal["all", "live", "objects"] = "all"
    exploratory: bool = False


class Chart(_Section):
    """What the figure shows: arms by two figures, figures by `x` of the arms, or by steps."""

    kind: Literal["scatter", "by_x", "by_steps"] = "scatter"
    figures: list[str] = Field(default_factory=lambda: [ALIGNMENT, IDENTITY])
    x_title: str = ""


class Sheet(_Section):
    """Which pictures are shown: the first pictures of some prompts of the first subject.

    Attributes:
        arms: names of those that are shown, beside the bare base; empty: all.
    """

    arms: list[str] = Field(default_factory=list)
    kinds: list[str] = Field(default_factory=lambda: ["subject", "state", "scene"])
    columns: int = Field(9, ge=1, le=16)


class Study(_Section):
    """One study; names as in its YAML file.

    Attributes:
        subjects: how many of the split.
        classes: only subjects of these classes; from beyond the first eight where D has too few.
        seeds, first_seed: training seeds first_seed .. first_seed + seeds - 1.
        selection_states: so many states of each subject are what its sweeps are judged by, and are
            not asked for here.
        oracle: A, or B for final scores.
        hosts: names of the protocol's hosts; diseased: those that the settings file says are.
        rungs: steps at which runs are read, as multiples of the host's N.
        primary: judged by section 6 of the protocol.
        chooses: its result is the chosen setting of each host (protocol, section 5).
    """

    study: str
    title: str
    question: str
    split: Literal["D", "C", "T", "R"] = "D"
    subjects: int = Field(8, ge=1)
    classes: list[str] = Field(default_factory=list)
    seeds: int = Field(1, ge=1)
    first_seed: int = Field(0, ge=0)
    selection_states: int = Field(0, ge=0, le=6)
    oracle: Literal["A", "B"] = "A"
    hosts: Literal["diseased"] | list[str]
    rungs: list[float] = Field(default_factory=lambda: [1.0], min_length=1)
    pictures: Pictures
    num_inference_steps: int = Field(25, ge=1)
    num_class_images: int = Field(50, ge=1)
    arms: list[ArmSpec] = Field(min_length=1)
    claims: list[Claim] = Field(default_factory=list)
    chart: Chart = Field(default_factory=Chart)
    sheet: Sheet = Field(default_factory=Sheet)
    figures: list[str] = Field(min_length=1)
    notes: list[str] = Field(default_factory=list)
    primary: bool = False
    chooses: bool = False
    log: bool = False

    @property
    def training_seeds(self) -> range:
        """Seeds of the training runs."""
        return range(self.first_seed, self.first_seed + self.seeds)

    @property
    def searches(self) -> bool:
        """Whether any arm's setting is found by a sweep."""
        return any(arm.search is not None for arm in self.arms)

    @property
    def most_photos(self) -> int:
        """Photos of the arm that has most: what any of them shows is not asked for."""
        return max(arm.photos for arm in self.arms)


@dataclass(frozen=True)
class Loaded:
    """A study and the file it is from."""

    study: Study
    path: Path


def load_study(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Study:
    """Read a study's recipe.

    Args:
        overrides: fields (`subjects`, `seeds`, `split`) that a command line changed.

    Raises:
        ConfigError: not such a file, or what it says cannot be run; every wrong key is named.
    """
    tree = _read(path)
    if not isinstance(tree, dict):
        raise ConfigError(f"study {path}: expected a mapping of keys")
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    try:
        study = Study.model_validate({**tree, **given})
    except ValidationError as error:
        lines = [
            f"study {path}: {'.'.join(map(str, item['loc']))} = {item.get('input')!r}: "
            f"{item['msg']}"
            for item in error.errors()
        ]
        raise ConfigError("\n".join(lines)) from error
    _check(study, path)
    return study


def _read(path: str | Path) -> Any:
    try:
        return yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"study {path}: cannot be read ({error})") from error


def _check(study: Study, path: str | Path) -> None:
    names = [arm.name for arm in study.arms]
    problems = []
    if len(set(names)) < len(names) or BASE in names:
        problems.append(f"arms {names}: expected different names, none of them {BASE!r}")
    if isinstance(study.hosts, list):
        unknown = [host for host in study.hosts if host not in HOST_OVERRIDES]
        problems += [f"host {host!r}: expected some of {', '.join(HOST_OVERRIDES)}"
                     for host in unknown]  # fmt: skip
        if len(set(study.hosts)) < len(study.hosts):
            problems.append(f"hosts {study.hosts}: expected each once")
    for claim in study.claims:
        problems += [f"claim {claim.claim!r}: no arm {name!r}; expected one of {names}"
                     for name in (claim.arm, claim.against)
                     if name not in [*names, BASE]]  # fmt: skip
    problems += [f"sheet: no arm {name!r}; expected some of {names}"
                 for name in study.sheet.arms if name not in names]  # fmt: skip
    if list(study.rungs) != sorted(set(study.rungs)) or study.rungs[0] <= 0:
        problems.append(f"rungs {study.rungs}: expected rising numbers above 0")
    if study.searches and not study.selection_states:
        problems.append("an arm searches: expected selection_states of 1 or more")
    if study.pictures.class_ == 1:
        problems.append("pictures.class = 1: expected 0, or 2 and more (variety is between two)")
    if problems:
        raise ConfigError("\n".join(f"study {path}: {problem}" for problem in problems))


def studies_in(folder: str | Path) -> list[Loaded]:
    """All studies of a folder, by name; files that are none (settings) are passed over."""
    found = []
    for path in sorted(Path(folder).glob("*.yaml")):
        tree = _read(path)
        if isinstance(tree, dict) and "arms" in tree:
            found.append(Loaded(load_study(path), path))
    return found

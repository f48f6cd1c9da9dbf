"""The measured parts of docs/evidence.md that studies fill: a summary on top, a section for each.

All of it is made from the committed tables and recipes; nothing between the marks is written by
hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.evaluation.statistics import PairedComparison
from dreamfleet.evaluation.studies.claims import (
    FIDELITY_MARGIN,
    PRIMARY,
    Judged,
    PrimaryResult,
    chosen_settings,
    judged_claims,
    primary_results,
)
from dreamfleet.evaluation.studies.figures import draw_chart
from dreamfleet.evaluation.studies.pieces import TABLE, read_piece
from dreamfleet.evaluation.studies.recipe import BASE, Claim, Loaded, Study, studies_in
from dreamfleet.evaluation.studies.report import CHART
from dreamfleet.evaluation.studies.settings import SETTINGS, read_settings
from dreamfleet.evaluation.studies.tables import TITLES, means

SUMMARY = "SUMMARY"
WRITER = "(written by report_studies.py)"
PAPERS_WEIGHT, PAPERS_TEACHER = 0.4, "current"
SYNTHETIC = (
    "All of this is a synthetic world: drawn pictures of 64 pixels, a base of 7 M parameters, an "
    "oracle that reads them. What may carry over is the method's own behaviour: the loss, its "
    "hinge, what the weight and the teacher do, which term costs what. What does not: sizes of "
    "effects, the best weight, and anything about photographs. Holds: a one-sided paired t below "
    "0.05, after Holm over the study's claims (exploratory ones by themselves). Refuted: the whole "
    "95 % interval, not adjusted, lies on the other side. Below 8 subjects no interval is given."
)
LOSSES = (0.03, 0.1, 0.2, 0.3, 0.5)  # of fidelity
PAPER_PRIMARY = "BLIP-T +1.2 and +1.5 points on SD 1.4 and 1.5, DINO-I about equal"


@dataclass(frozen=True)
class Evidence:
    """A study and what is committed of it: hosts of which all subjects are there; `table` is empty
    where there is none.

    Attributes:
        runs: where and when (`hardware`, `date`).
        sheets: files of pictures, with the hosts that they show.
        planned: all hosts that it is for.
        under_way: by host, the number of subjects that are there, where not all are.
    """

    study: Study
    recipe: Path
    folder: Path
    table: Sequence[Mapping[str, Any]]
    about: Mapping[str, Any]
    rho: Sequence[Mapping[str, Any]] = ()
    readings: Sequence[Mapping[str, Any]] = ()  # of sweeps
    runs: Sequence[Mapping[str, Any]] = ()
    sheets: Mapping[str, Sequence[str]] = field(default_factory=dict)
    planned: Sequence[str] = ()
    under_way: Mapping[str, int] = field(default_factory=dict)

    @property
    def ran(self) -> bool:
        return bool(self.table)

    @property
    def is_whole(self) -> bool:
        """Whether it has been run on all of its hosts."""
        return self.ran and set(self.planned) <= set(self.hosts)

    @property
    def hosts(self) -> list[str]:
        return list(self.about.get("hosts", []))

    @property
    def judged(self) -> list[str]:
        """Hosts whose claims are counted: once it has begun, of the confirmation those that are
        still to come, too.
        """
        if not (self.study.primary and self.ran):
            return self.hosts
        return [*self.hosts, *(host for host in self.planned if host not in self.hosts)]


def fill_page(page: Path, recipes: Path, evidence: Path) -> list[Evidence]:
    """Write summary and sections of all studies of a folder into the page.

    Args:
        page: marks of sections that it lacks are put at its end.
        recipes: folder of the studies' recipes.
        evidence: folder of committed tables; charts are drawn into it.

    Raises:
        BadInputError: the page is not there or lacks the summary's marks.
    """
    if not page.is_file():
        raise BadInputError(f"{page}: not there; expected docs/evidence.md")
    known = [_load(loaded, evidence) for loaded in studies_in(recipes)]
    text = _filled(page.read_text(encoding="utf-8"), SUMMARY, summary_lines(known), page)
    for own in known:
        mark = f"STUDY {own.study.study}"
        if begin(mark) not in text:
            section = f"## {heading(own.study)}\n\n{begin(mark)}\n{end(mark)}\n"
            text = f"{text.rstrip()}\n\n{section}"
        text = _filled(text, mark, section_lines(own, page.parent), page)
    page.write_text(text, encoding="utf-8")
    return known


def begin(mark: str) -> str:
    """The line before a measured part."""
    return f"<!-- BEGIN {mark} {WRITER} -->"


def end(mark: str) -> str:
    """The line after it."""
    return f"<!-- END {mark} -->"


def heading(study: Study) -> str:
    """Of the study's section."""
    name = study.study
    return f"{'Study ' + name if len(name) == 1 else name.capitalize()}: {study.title}"


def _load(loaded: Loaded, evidence: Path) -> Evidence:
    study, folder = loaded.study, evidence / loaded.study.study
    planned = list(study.hosts) if isinstance(study.hosts, list) else []
    settings = evidence / Path(SETTINGS).name
    if study.hosts == "diseased" and settings.is_file():
        planned = read_settings(settings).diseased()
    if not (folder / TABLE).is_file():
        return Evidence(study, loaded.path, folder, [], {}, planned=planned)
    piece = read_piece(folder)
    whole = piece.whole()
    under_way = {host: len(piece.subjects(host)) for host in piece.hosts if host not in whole.hosts}
    if not whole.hosts:
        return Evidence(study, loaded.path, folder, [], {}, planned=planned, under_way=under_way)
    draw_chart(study, whole.table, whole.rho, folder / CHART)
    sheets = {name: own for name, own in whole.sheets.items() if (folder / name).is_file()}
    return Evidence(study, loaded.path, folder, whole.table, whole.about, whole.rho,
                    whole.readings, whole.runs, sheets, planned, under_way)  # fmt: skip


def _filled(text: str, mark: str, lines: Sequence[str], page: Path) -> str:
    before, first, rest = text.partition(begin(mark))
    _, last, after = rest.partition(end(mark))
    if not first or not last:
        raise BadInputError(f"{page}: expected the lines {begin(mark)} and {end(mark)}")
    return f"{before}{first}\n{chr(10).join(lines)}\n{last}{after}"


# The summary


def summary_lines(known: Sequence[Evidence]) -> list[str]:
    """One page: every claim with the paper's number, ours, interval and verdict."""
    lines = [
        SYNTHETIC,
        "",
        "| study | claim | paper | ours | 95 % interval | verdict |",
        "|---|---|---|---:|---|---|",
    ]
    for own in known:
        for result in primary_of(own) if own.study.primary else []:
            lines.append(_primary_summary(own, result))
        if own.study.primary and not own.ran:
            lines.append(
                f"| {own.study.study} | SuDe raises alignment, at most {FIDELITY_MARGIN} of "
                f"identity lost | {PAPER_PRIMARY} | | | not run yet |"
            )
        lines += [_claim_summary(own, judged) for judged in claims_of(own)]
    return [*lines, "", f"{how_many_ran(known)}."]


def how_many_ran(known: Sequence[Evidence]) -> str:
    """In a few words."""
    whole = sum(own.is_whole for own in known)
    some = [own.study.study for own in known if own.ran and not own.is_whole]
    rest = f", and {', '.join(some)} on some of its hosts" if some else ""
    return f"{whole} of {len(known)} studies have been run{rest}"


def primary_of(own: Evidence) -> list[PrimaryResult]:
    """The primary claim's results, where the study has been run."""
    if not own.ran:
        return []
    papers = {
        # Of a host to come nothing is named yet.
        (host, name): host not in own.hosts
        or _is_papers(own.about["arms"].get(f"{host}: {name}", {}))
        for host in own.judged
        for name in PRIMARY
    }
    return primary_results(own.table, own.judged, papers=papers)


def claims_of(own: Evidence) -> list[Judged]:
    """The study's claims; those that were not run have no comparison."""
    return judged_claims(own.study, own.table, own.judged or [""])


def _is_papers(setting: Mapping[str, Any]) -> bool:
    weight = setting.get("sude.weight") == PAPERS_WEIGHT
    return weight and setting.get("sude.teacher") == PAPERS_TEACHER


def _primary_summary(own: Evidence, result: PrimaryResult) -> str:
    alignment, identity = result.alignment, result.identity
    what = "SuDe" if result.is_papers else "a variant of SuDe"
    found = "|"
    if alignment is not None:
        found = (f"{_signed(alignment)}; identity {_signed(identity)} | "
                 f"{_interval(alignment)}; {_interval(identity)}")  # fmt: skip
    return (
        f"| {own.study.study} | {what} ({result.setting}) on {result.host} raises alignment, at "
        f"most {FIDELITY_MARGIN} of identity lost | {PAPER_PRIMARY} | {found} | {result.verdict} |"
    )


def _claim_summary(own: Evidence, judged: Judged) -> str:
    where = f" ({judged.host})" if len(own.judged) > 1 else ""
    return (
        f"| {own.study.study} | {_named(judged.claim)}{where} | {judged.claim.paper} | "
        f"{_signed(judged.comparison)} | {_interval(judged.comparison)} | {judged.verdict} |"
    )


# A section


def section_lines(own: Evidence, docs: Path) -> list[str]:
    """Question, command, what ran, table, claims, chart, pictures, what it shows."""
    study = own.study
    command = (
        f"python pipelines/run_study.py --config pipelines/recipes/studies/{own.recipe.name} "
        "\\\n    --output-dir runs/studies"
    )
    lines = [study.question, "", "```bash", command, "```", ""]
    if not own.ran:
        return [*lines, *_to_come(own)]
    lines += [_what_ran(own), "", *_means_table(own), ""]
    if study.primary:
        lines += [*_primary_table(own), ""]
    if study.claims:
        lines += [*_claims_table(own), ""]
    if own.rho:
        lines += [*_hinge_table(own), ""]
    if own.readings:
        lines += [*_readings_table(own.readings), ""]
    lines += [_shows(own), ""]
    left_out = _left_out(own)
    if left_out:
        lines += [f"Left out, since no setting of SuDe kept the likeness in step 4: "
                  f"{'; '.join(left_out)}.", ""]  # fmt: skip
    for failure in own.about.get("failures", []):
        lines += [f"{failure['subject']}, {failure['host']}: {failure['arm']} broke down before "
                  f"{failure['steps']} steps: {failure['error']}", ""]  # fmt: skip
    place = own.folder.relative_to(docs) if own.folder.is_relative_to(docs) else own.folder
    titles = " and ".join(TITLES.get(name, name) for name in study.chart.figures)
    lines += [f"![Study {study.study}: {titles}]({place.as_posix()}/{CHART})", ""]
    for sheet, hosts in own.sheets.items():
        of = f" on {', '.join(hosts)}" if len(own.sheets) > 1 else ""
        lines += [f"![Study {study.study}: the first pictures of one subject{of}, the same noise "
                  f"in all arms]({place.as_posix()}/{sheet})", ""]  # fmt: skip
    return [*lines, *study.notes]


def _what_ran(own: Evidence) -> str:
    about, study = own.about, own.about["study"]
    rungs = "; ".join(
        f"{host} at {', '.join(map(str, steps))} steps" for host, steps in about["rungs"].items()
    )
    seconds = sum(cost["train_s"] + cost["draw_s"] + cost["score_s"] for cost in about["cpu_s"])
    where, when = (", ".join(dict.fromkeys(run[name] for run in own.runs))
                   for name in ("hardware", "date"))  # fmt: skip
    kind = "confirmation" if own.study.primary else "exploratory"
    return (
        f"{study['subjects']} subjects of split {study['split']}, {study['seeds']} training "
        f"seed{'s' if study['seeds'] > 1 else ''}, oracle {study['oracle']}, {kind}; {rungs}. "
        f"{where}, {when}: {seconds / 60:.1f} CPU minutes a subject and seed."
    ) + "".join(f" {line}" for line in _to_come(own))


def _to_come(own: Evidence) -> list[str]:
    """Hosts that were not run, or not on all subjects."""
    if not own.ran and not own.under_way:
        return ["Not run yet."]
    rest = [host for host in own.planned if host not in {*own.hosts, *own.under_way}]
    lines = [f"Not run yet on {', '.join(rest)}."] if rest else []
    return lines + [
        f"On {host} {count} subjects are done, and not shown before all are."
        for host, count in own.under_way.items()
    ]


def _means_table(own: Evidence) -> list[str]:
    names = [name for name in own.study.figures if any(name in row for row in own.table)]
    rows = means(own.table, names)
    several = len({row["steps"] for row in rows if row["host"] != BASE}) > 1
    heads = ["arm", *(["steps"] if several else []), *(TITLES.get(name, name) for name in names)]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * (len(heads) - 1)]
    for row in rows:
        many = len(own.hosts) > 1 and row["host"] != BASE
        name = "bare base" if row["host"] == BASE else row["arm"]
        cells = [f"{row['host']}: {name}" if many else str(name)]
        cells += [str(row["steps"] or "")] if several else []
        lines.append(f"| {' | '.join([*cells, *(_number(row[n]) for n in names)])} |")
    return lines


def _primary_table(own: Evidence) -> list[str]:
    lines = [
        "| host | setting | alignment | 95 % interval | identity | 95 % interval | "
        "p (Holm) | sign flip | verdict |",
        "|---|---|---:|---|---:|---|---:|---|---|",
    ]
    for result in primary_of(own):
        few = f", without {result.dropped} subjects" if result.dropped else ""
        flips = "; ".join(_p(part.p_sign_flip) for part in (result.alignment, result.identity)
                          if part is not None and part.p_sign_flip is not None)  # fmt: skip
        variant = "" if result.is_papers else " (variant)"
        lines.append(
            f"| {result.host} | {result.setting}{variant}{few} | "
            f"{_signed(result.alignment)} | {_interval(result.alignment)} | "
            f"{_signed(result.identity)} | {_interval(result.identity)} | "
            f"{_p(result.p_holm)} | {flips} | {result.verdict} |"
        )
    return lines


def _claims_table(own: Evidence) -> list[str]:
    lines = [
        "| claim | arm against | difference | 95 % interval | p (Holm) | sign flip | verdict |",
        "|---|---|---:|---|---:|---:|---|",
    ]
    for judged in claims_of(own):
        claim, found = judged.claim, judged.comparison
        where = f"{judged.host}: " if len(own.judged) > 1 else ""
        flip = None if found is None else found.p_sign_flip
        few = ""
        if found is not None and found.num_subjects < own.about["study"]["subjects"]:
            few = f" ({found.num_subjects} subjects)"
        lines.append(
            f"| {_named(claim)} | {where}{claim.arm} − {claim.against}, "
            f"{TITLES.get(claim.figure, claim.figure)} | {_signed(found)}{few} | "
            f"{_interval(found)} | {_p(judged.p_holm)} | {_p(flip)} | {judged.verdict} |"
        )
    return lines


def _hinge_table(own: Evidence) -> list[str]:
    """Where in the diffusion SuDe acts: ρ and the share of samples at which it was on, by t."""
    starts = sorted({int(row["t_from"]) for row in own.rho})
    lines = [
        f"| ρ, and share of samples with SuDe on | {' | '.join(f't ≥ {t}' for t in starts)} |",
        "|---|" + "---:|" * len(starts),
    ]
    for host, arm in dict.fromkeys((row["host"], row["arm"]) for row in own.rho):
        cells = []
        for start in starts:
            rows = [r for r in own.rho if (r["host"], r["arm"], r["t_from"]) == (host, arm, start)]
            weight = sum(row["samples"] for row in rows)
            rho, share = (
                sum(row[name] * row["samples"] for row in rows if name in row) / max(weight, 1)
                for name in ("rho", "hinge_share")
            )
            cells.append(f"{rho:.2f}, {share:.0%}")
        name = f"{host}: {arm}" if len(own.hosts) > 1 else str(arm)
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def _readings_table(readings: Sequence[Mapping[str, Any]]) -> list[str]:
    """What sweeps could have chosen, had their rule allowed to lose more likeness."""
    lines = [
        "What the sweeps read (selection states, one training seed, few pictures, and the best of "
        "many: too high for a score). The highest alignment at any rung, by how much fidelity may "
        "be lost against the host's end; mean over subjects:",
        "",
        f"| sweep | host | {' | '.join(f'{loss:g} lost' for loss in LOSSES)} |",
        "|---|" + "---:|" * (len(LOSSES) + 1),
    ]
    for arm in dict.fromkeys(row["arm"] for row in readings):
        own = [row for row in readings if row["arm"] == arm]
        ends = {row["subject"]: row for row in own if row["is_end_of_host"]}
        best = [
            [
                max(row["alignment"] for row in own if row["subject"] == subject
                    and row["fidelity"] >= end["fidelity"] - loss)
                for subject, end in ends.items()
            ]
            for loss in LOSSES
        ]  # fmt: skip
        columns = [[end["alignment"] for end in ends.values()], *best]
        cells = " | ".join(f"{sum(column) / len(column):.3f}" for column in columns)
        lines.append(f"| {arm} | {cells} |")
    return lines


def _left_out(own: Evidence) -> list[str]:
    """Arms with the chosen setting on hosts for which none was chosen."""
    there = {(row["host"], row["arm"]) for row in own.table}
    there |= {(failure["host"], failure["arm"]) for failure in own.about.get("failures", [])}
    return [
        f"{host}: {arm.name}"
        for host in own.hosts
        for arm in own.study.arms
        if arm.sude == "chosen" and (host, arm.name) not in there
    ]


def _shows(own: Evidence) -> str:
    """One plain sentence of what came out."""
    if own.study.chooses:
        chosen = chosen_settings(own.table, own.about)
        names = [f"{host}: {arm or 'no setting keeps the likeness'}"
                 for host, arm in chosen.items()]  # fmt: skip
        return f"**Chosen.** {'; '.join(names)}."
    verdicts: dict[str, list[str]] = {}
    for result in primary_of(own) if own.study.primary else []:
        text = f"the {result.setting} setting on {result.host}"
        verdicts.setdefault(result.verdict, []).append(text)
    for judged in claims_of(own):
        where = f" ({judged.host})" if len(own.judged) > 1 else ""
        verdicts.setdefault(judged.verdict, []).append(f"“{judged.claim.claim}”{where}")
    verdicts.pop("not run yet", None)  # said above
    if not verdicts:
        return "Shown without a claim."
    parts = [f"{verdict}: {', '.join(names)}" for verdict, names in verdicts.items()]
    text = "; ".join(parts)
    return f"**What it shows.** {text[0].upper()}{text[1:]}."


def _named(claim: Claim) -> str:
    return f"{claim.claim} (exploratory)" if claim.exploratory else claim.claim


def _signed(found: PairedComparison | None) -> str:
    return "" if found is None else f"{found.mean_difference:+.3f}"


def _interval(found: PairedComparison | None) -> str:
    if found is None or found.interval is None:
        return ""
    return f"{found.interval[0]:+.3f} to {found.interval[1]:+.3f}"


def _p(value: float | None) -> str:
    return "< 0.001" if value is not None and value < 0.001 else _number(value)


def _number(value: float | None) -> str:
    return "" if value is None or value != value else f"{value:.3f}"

"""What holds: claims tested over subjects, and the primary claim by section 6 of the protocol."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from dreamfleet.evaluation.statistics import (
    PairedComparison,
    both_hold,
    compare_paired,
    holm,
)
from dreamfleet.evaluation.studies.recipe import Claim, Study
from dreamfleet.evaluation.studies.tables import paired, values

LEVEL = 0.05
FIDELITY_MARGIN = 0.03
PRIMARY = ("chosen", "official")
HOST = "host"  # the arm without SuDe
AT_N = 1.0
Verdict = Literal[
    "holds", "refuted", "undecided", "too few subjects", "nothing to compare", "not run yet"
]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Judged:
    """A claim on one host.

    Attributes:
        comparison: arm minus the other; None: not run, or without one of the two.
        p_holm: one-sided paired t, adjusted over the study's claims; None below 8 subjects.
    """

    claim: Claim
    host: str
    comparison: PairedComparison | None
    p_holm: float | None
    verdict: Verdict


@dataclass(frozen=True)
class PrimaryResult:
    """The primary claim for one host and one setting of SuDe.

    Attributes:
        alignment, identity: SuDe minus host; the second against -0.03.
        p: the larger of the two parts' one-sided p values; `p_holm` adjusted over all hosts and
            settings. None below 8 subjects.
        dropped: subjects without a figure in one arm.
        is_papers: teacher and weight are the paper's; else it is a variant of SuDe.
    """

    host: str
    setting: str
    alignment: PairedComparison | None
    identity: PairedComparison | None
    p: float | None
    p_holm: float | None
    verdict: Verdict
    dropped: int = 0
    is_papers: bool = True


def primary_results(
    table: Sequence[Row],
    hosts: Sequence[str],
    *,
    settings: Sequence[str] = PRIMARY,
    papers: Mapping[tuple[str, str], bool] | None = None,
) -> list[PrimaryResult]:
    """Section 6 of the protocol: alignment rises, and identity is not lower by 0.03 or more; both,
    at 95 %, after Holm over all hosts and settings. A host that is still to come counts there with
    p = 1: when it comes, no adjusted p rises.

    Args:
        table: per subject, of oracle B on the confirmation subjects.
        hosts: all that are to be run.
        settings: arms with SuDe.
        papers: by host and setting whether teacher and weight are the paper's.
    """
    parts = {
        (host, setting): _parts(table, host, setting) for host in hosts for setting in settings
    }
    p_values = {
        f"{host} {setting}": both_hold(*[p for part in own[:2] if (p := part.p_t) is not None])
        for (host, setting), own in parts.items()
        if own is not None and own[0].p_t is not None and own[1].p_t is not None
    }
    p_values |= {
        f"{host} {setting}": 1.0
        for (host, setting), own in parts.items()
        if own is None and _absent(table, host) == "not run yet"
    }
    adjusted = holm(p_values)
    found = []
    for (host, setting), own in parts.items():
        name = f"{host} {setting}"
        if own is None:
            absent = _absent(table, host)
            found.append(PrimaryResult(host, setting, None, None, None, None, absent))
            continue
        alignment, identity, dropped = own
        p, p_holm = p_values.get(name), adjusted.get(name)
        verdict: Verdict = "too few subjects"
        if p_holm is not None:
            refuted = _refutes(alignment) or _refutes(identity)
            verdict = "holds" if p_holm < LEVEL else "refuted" if refuted else "undecided"
        is_papers = True if papers is None else papers.get((host, setting), False)
        found.append(PrimaryResult(host, setting, alignment, identity, p, p_holm, verdict,
                                   dropped, is_papers))  # fmt: skip
    return found


def _parts(
    table: Sequence[Row], host: str, setting: str
) -> tuple[PairedComparison, PairedComparison, int] | None:
    """Both parts over the subjects that have both figures in both arms."""
    figures = [
        values(table, host, arm, AT_N, figure)
        for figure in ("alignment", "identity")
        for arm in (setting, HOST)
    ]
    common = sorted(set.intersection(*(set(own) for own in figures)))
    if not common:
        return None
    with_sude, without, like, like_host = (
        {subject: own[subject] for subject in common} for own in figures
    )
    known = set().union(*figures)
    return (
        compare_paired(with_sude, without, null=0.0, alternative="greater"),
        compare_paired(like, like_host, null=-FIDELITY_MARGIN, alternative="greater"),
        len(known) - len(common),
    )


def judged_claims(study: Study, table: Sequence[Row], hosts: Sequence[str]) -> list[Judged]:
    """Every claim of a study on every host; Holm over all of them, exploratory ones apart. A host
    that is still to come counts with p = 1.
    """
    found: list[tuple[Claim, str, PairedComparison | None]] = []
    for host in hosts:
        for claim in study.claims:
            one, other = paired(table, claim, host, study.rungs[-1])
            comparison = None
            if one:
                greater = claim.expect == "above"
                comparison = compare_paired(
                    one, other, null=claim.threshold, alternative="greater" if greater else "less"
                )
            found.append((claim, host, comparison))
    adjusted: dict[str, float] = {}
    for exploratory in (False, True):
        adjusted |= holm(
            {
                str(place): p
                for place, (claim, host, comparison) in enumerate(found)
                if claim.exploratory is exploratory
                and (p := _p_value(table, host, comparison)) is not None
            }
        )
    return [
        Judged(
            claim, host, comparison,
            (p := None if comparison is None else adjusted.get(str(place))),
            _absent(table, host) if comparison is None else _verdict(comparison, p),
        )
        for place, (claim, host, comparison) in enumerate(found)
    ]  # fmt: skip


def _p_value(table: Sequence[Row], host: str, comparison: PairedComparison | None) -> float | None:
    if comparison is not None:
        return comparison.p_t
    return 1.0 if _absent(table, host) == "not run yet" else None


def _absent(table: Sequence[Row], host: str) -> Verdict:
    """Of a host that was run, an arm may be missing: no setting kept the likeness."""
    ran = any(row["host"] == host for row in table)
    return "nothing to compare" if ran else "not run yet"


def _verdict(comparison: PairedComparison, p_holm: float | None) -> Verdict:
    if p_holm is None:
        return "too few subjects"
    if p_holm < LEVEL:
        return "holds"
    return "refuted" if _refutes(comparison) else "undecided"


def _refutes(comparison: PairedComparison) -> bool:
    """The whole interval lies on the other side of what was claimed."""
    if comparison.interval is None:
        return False
    low, high = comparison.interval
    if comparison.alternative == "greater":
        return high < comparison.null
    return low > comparison.null


def choose_setting(table: Sequence[Row], host: str, arms: Sequence[str]) -> str | None:
    """Section 5 of the protocol: the arm with the best alignment among those whose mean identity
    is at most 0.03 below the host's; None where there is none. An arm that broke down on one of the
    host's subjects is not chosen: a mean over the others would be of easier ones.
    """

    def mean(arm: str, figure: str) -> float:
        own = values(table, host, arm, AT_N, figure)
        whole = own and own.keys() >= values(table, host, HOST, AT_N, figure).keys()
        return sum(own.values()) / len(own) if whole else float("nan")

    floor = mean(HOST, "identity") - FIDELITY_MARGIN
    kept = [
        arm
        for arm in arms
        if mean(arm, "identity") >= floor - 1e-9 and math.isfinite(mean(arm, "alignment"))
    ]
    return max(kept, key=lambda arm: mean(arm, "alignment"), default=None)


def chosen_settings(table: Sequence[Row], about: Mapping[str, Any]) -> dict[str, str | None]:
    """The chosen arm of every host that a study of settings was run on."""
    names = [arm["name"] for arm in about["study"]["arms"] if arm["name"] != HOST]
    return {host: choose_setting(table, host, names) for host in about["hosts"]}

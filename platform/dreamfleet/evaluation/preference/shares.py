"""Preference shares with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from dreamfleet.evaluation.preference.votes import CHOICES, QUESTIONS, Choice, Vote
from dreamfleet.evaluation.statistics import t_interval

MIN_VOTERS = 8  # from here on people are the unit, as subjects are elsewhere
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Share:
    """How often A was preferred.

    Attributes:
        a, b, neither: means of people's own shares from `MIN_VOTERS` people on, else shares of all
            votes on the question.
        interval: of `a`, at 95 %: t over people's own shares, or Wilson's over single votes, which
            takes the votes of one person as independent.
        unit: "people" or "votes": what shares and interval are over.
    """

    question: str
    num_votes: int
    num_voters: int
    a: float
    b: float
    neither: float
    interval: tuple[float, float]
    unit: str


def preference_shares(votes: Sequence[Vote]) -> list[Share]:
    """A share for each question that has votes."""
    shares = []
    for question in QUESTIONS:
        own = [vote for vote in votes if vote.question == question]
        if own:
            shares.append(_share(question, own))
    return shares


def share_lines(shares: Sequence[Share], a: str, b: str) -> Iterator[str]:
    """Shares for a terminal."""
    if not shares:
        yield "no votes yet"
    for share in shares:
        low, high = share.interval
        yield QUESTIONS[share.question]
        yield (
            f"  {a} {share.a:.1%}, {b} {share.b:.1%}, cannot tell {share.neither:.1%}"
            f"  ({share.num_votes} votes of {share.num_voters} people)"
        )
        yield f"  95 % interval of {a}: {low:.1%} to {high:.1%}, over {share.unit}"


def _share(question: str, votes: Sequence[Vote]) -> Share:
    by_voter: dict[str, list[Choice]] = defaultdict(list)
    for vote in votes:
        by_voter[vote.voter].append(vote.choice)
    choices = [vote.choice for vote in votes]
    people = len(by_voter) >= MIN_VOTERS
    units = list(by_voter.values()) if people else [choices]
    own = {choice: [unit.count(choice) / len(unit) for unit in units] for choice in CHOICES}
    count = {choice: float(np.mean(shares)) for choice, shares in own.items()}
    interval = _share_interval(own["a"]) if people else _wilson(choices.count("a"), len(choices))
    return Share(
        question, len(votes), len(by_voter), count["a"], count["b"], count["neither"],
        interval, "people" if people else "votes",
    )  # fmt: skip


def _share_interval(values: Sequence[float]) -> tuple[float, float]:
    low, high = t_interval(np.array(values), CONFIDENCE)
    return max(0.0, low), min(1.0, high)  # a share is no more than all


def _wilson(hits: int, count: int) -> tuple[float, float]:
    found = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return float(found.low), float(found.high)

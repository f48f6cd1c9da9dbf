"""Which version a registered model's champion is."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from dreamfleet.tracking.store import FIDELITY, RULER, SCORE, MlflowStore


@pytest.mark.parametrize(
    ("score", "fidelity", "ruler", "alias"),
    [
        (0.6, 0.48, "a", "champion"),
        (0.6, 0.46, "a", "candidate"),  # better aligned, but no longer the subject
        (0.4, 0.9, "a", "candidate"),
        (0.9, 0.9, "b", "candidate"),
    ],
)
def test_what_is_not_worse_becomes_champion(
    score: float, fidelity: float, ruler: str, alias: str
) -> None:
    given: dict[str, Any] = {"champion": 1}  # as a number, as SQLite keeps it
    champion = SimpleNamespace(version=1, tags={SCORE: "0.5", RULER: "a", FIDELITY: "0.5"})
    client = SimpleNamespace(
        get_registered_model=lambda name: SimpleNamespace(aliases=given),
        get_model_version=lambda name, version: champion,
        set_registered_model_alias=lambda name, alias, version: given.update({alias: version}),
    )
    store = MlflowStore(cast(Any, client), "")
    contest = {"score": score, "ruler": ruler, "fidelity": fidelity, "margin": 0.03}
    assert store._settled("rex", "2", contest) == alias
    assert given.get("previous") == (1 if alias == "champion" else None)
    assert store._settled("rex", "1", contest) == "champion", "it is the champion already"
    assert given.get("previous") == (1 if alias == "champion" else None)

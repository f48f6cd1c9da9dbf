"""Which replica draws: affinity, until it is busier than others."""

from __future__ import annotations

from collections import Counter

from dreamfleet.serving.routing import SLACK, ranked

REPLICAS = [f"replica-{index}" for index in range(4)]
ADAPTERS = [f"adapter-{index}" for index in range(400)]


def idle(replica: str) -> int:
    return 0


def test_an_adapter_has_a_place_and_places_are_shared_out() -> None:
    first = {name: ranked(REPLICAS, name, idle)[0] for name in ADAPTERS}
    assert first == {name: ranked(REPLICAS[::-1], name, idle)[0] for name in ADAPTERS}
    counts = Counter(first.values())
    assert min(counts.values()) > len(ADAPTERS) / len(REPLICAS) / 2


def test_a_lost_replica_moves_only_its_own() -> None:
    before = {name: ranked(REPLICAS, name, idle)[0] for name in ADAPTERS}
    after = {name: ranked(REPLICAS[1:], name, idle)[0] for name in ADAPTERS}
    moved = {name for name in ADAPTERS if before[name] != after[name]}
    assert moved == {name for name in ADAPTERS if before[name] == REPLICAS[0]}


def test_a_hot_adapter_spreads() -> None:
    loads: Counter[str] = Counter()
    for _ in range(40):
        loads[ranked(REPLICAS, "hot", lambda own: loads[own])[0]] += 1
    assert set(loads) == set(REPLICAS)
    assert max(loads.values()) - min(loads.values()) <= SLACK


def test_the_bare_base_goes_to_the_least_busy() -> None:
    loads = {"replica-0": 3, "replica-1": 1, "replica-2": 2, "replica-3": 5}
    order = ranked(REPLICAS, "", loads.__getitem__)
    assert order == ["replica-1", "replica-2", "replica-0", "replica-3"]
    assert sorted(ranked(REPLICAS, "hot", loads.__getitem__)) == REPLICAS, "nobody is left out"

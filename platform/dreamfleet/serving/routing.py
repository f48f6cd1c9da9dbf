"""Which replica draws: the one that holds the adapter, unless it has clearly more to do.

Replicas are ranked for each adapter by rendezvous hashing, so that nobody has to know who holds
what: every ingress sends an adapter to the same replica, and one that comes or goes moves only its
own share. The first in rank is passed over while it has `SLACK` more requests than the least busy
one, so a hot adapter spreads over as many replicas as it needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.request_router import (
    FIFOMixin,
    MultiplexMixin,
    PendingRequest,
    RequestRouter,
    RunningReplica,
)

SLACK = 2


def ranked(
    replica_ids: Sequence[str],
    adapter: str,
    load: Callable[[str], int],
    slack: int = SLACK,
) -> list[str]:
    """Replicas in the order in which they are asked.

    Args:
        adapter: what is to be drawn with; empty: whoever is least busy.
        load: requests that a replica has now.
        slack: requests more than the least busy one has, from which on a replica is passed over.
    """
    loads = {replica: load(replica) for replica in replica_ids}
    if not adapter:
        return sorted(replica_ids, key=lambda replica: loads[replica])
    least = min(loads.values(), default=0)
    preference = sorted(replica_ids, key=lambda replica: _weight(adapter, replica))
    near = [replica for replica in preference if loads[replica] < least + slack]
    far = [replica for replica in preference if loads[replica] >= least + slack]
    return [*near, *sorted(far, key=lambda replica: loads[replica])]


def _weight(adapter: str, replica: str) -> bytes:
    return hashlib.blake2b(f"{adapter}\0{replica}".encode(), digest_size=8).digest()


class AffinityRouter(FIFOMixin, MultiplexMixin, RequestRouter):
    """Serve's request router for the engines; the order's affinity travels as model id."""

    async def choose_replicas(
        self,
        candidate_replicas: list[RunningReplica],
        pending_request: PendingRequest | None = None,
    ) -> list[list[RunningReplica]]:
        """One replica per rank, best first."""
        by_id = {replica.replica_id.unique_id: replica for replica in candidate_replicas}
        adapter = pending_request.metadata.multiplexed_model_id if pending_request else ""
        order = ranked(list(by_id), adapter, lambda own: self._load(by_id[own]))
        return [[by_id[own]] for own in order]

    def _load(self, replica: Any) -> int:
        return self.replica_queue_len_cache.get(replica.replica_id) or 0

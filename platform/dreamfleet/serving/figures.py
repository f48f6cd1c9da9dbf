"""What a service has done: for Prometheus, and in short for MLflow."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import quantiles
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

RECENT = 1000
BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)
PREFIX = "dreamfleet"


def resident_bytes() -> float:
    """Memory that this process has now."""
    import psutil

    return float(psutil.Process().memory_info().rss)


class Figures:
    """Counters of one ingress replica.

    Args:
        ingress: its name, a label of every series: with several of them Prometheus sums up.
    """

    def __init__(self, ingress: str = "") -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry, "namespace": PREFIX}
        label = ["ingress"]
        self._requests = Counter(
            "requests", "Requests for pictures by outcome", [*label, "outcome"], **own
        )
        self._pictures = Counter("pictures", "Pictures drawn", label, **own)
        self._seconds = Histogram(
            "request_seconds", "Time of successful requests", label, buckets=BUCKETS_S, **own
        )
        self._gauges: dict[str, Gauge] = {}
        self._own, self._ingress = own, ingress
        self._recent: deque[float] = deque(maxlen=RECENT)
        self.counts: dict[str, int] = {}
        self.pictures = 0

    def done(self, seconds: float, pictures: int) -> None:
        """A request that was answered with pictures."""
        self.ended("success")
        self.pictures += pictures
        self._pictures.labels(self._ingress).inc(pictures)
        self._seconds.labels(self._ingress).observe(seconds)
        self._recent.append(seconds)

    def ended(self, outcome: str) -> None:
        """success, refused (429), invalid, cancelled, failed; retried counts lost replicas."""
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        self._requests.labels(self._ingress, outcome).inc()

    def text(self, values: Mapping[str, float]) -> bytes:
        """Prometheus's text format; `values` are what engines and queue are at now."""
        for name in self._gauges.keys() - values.keys():  # not known now, so not as it was
            self._gauges[name].clear()
        for name, value in values.items():
            if name not in self._gauges:
                self._gauges[name] = Gauge(name, name.replace("_", " "), ["ingress"], **self._own)
            self._gauges[name].labels(self._ingress).set(value)
        return generate_latest(self.registry)

    def snapshot(self) -> dict[str, float]:
        """Requests by outcome, pictures, p50 and p95 of the latest successful requests."""
        found = {f"requests_{outcome}": float(count) for outcome, count in self.counts.items()}
        found["pictures"] = float(self.pictures)
        if len(self._recent) >= 2:
            cuts = quantiles(self._recent, n=20, method="inclusive")
            found |= {"request_p50_s": cuts[9], "request_p95_s": cuts[18]}
        return found

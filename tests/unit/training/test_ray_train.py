"""The cluster block of a recipe becomes Ray's own settings; nothing is started."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dreamfleet.config import ClusterConfig
from dreamfleet.runtime.session import RaySession
from dreamfleet.training.fleet import engine_resources
from dreamfleet.training.ray_train import trainer_of, worker_resources
from tests.unit.training.stubs import task

pytestmark = pytest.mark.heavy

JOINED = RaySession("ray://head:10001", 16, 4)
LOCAL = RaySession(None, 8, 0)


def test_workers_gpus_placement_failures_and_storage(tmp_path: Path) -> None:
    cluster = ClusterConfig(
        num_workers=4,
        resources_per_worker={"CPU": 2, "GPU": 0.5, "fast_disk": 1},
        accelerator_type="A100",
        placement_strategy="SPREAD",
        max_failures=7,
    )
    own = task(tmp_path)
    own = replace(own, device="cuda", config=own.config.model_copy(update={"cluster": cluster}))
    trainer = trainer_of(None, own, JOINED, None)
    scaling, run = trainer.scaling_config, trainer.run_config
    assert (scaling.num_workers, scaling.use_gpu) == (4, True)
    assert scaling.resources_per_worker == {"CPU": 2, "GPU": 0.5, "fast_disk": 1}
    assert (scaling.accelerator_type, scaling.placement_strategy) == ("A100", "SPREAD")
    assert run.failure_config.max_failures == 7
    assert run.storage_path == str(tmp_path / "ray")
    assert trainer.backend_config.backend == "gloo"  # NCCL refuses two workers on one GPU


@pytest.mark.parametrize(
    ("session", "device", "wished", "expected"),
    [
        (JOINED, "cuda", {}, {"CPU": 1, "GPU": 1}),
        (JOINED, "cpu", {}, {"CPU": 1}),
        (JOINED, "cuda", {"CPU": 3}, {"CPU": 3, "GPU": 1}),
        (LOCAL, "cpu", {"CPU": 2}, {"CPU": 2}),
    ],
)
def test_what_a_worker_reserves(
    tmp_path: Path,
    session: RaySession,
    device: str,
    wished: dict[str, float],
    expected: dict[str, Any],
) -> None:
    own = task(tmp_path)
    cluster = ClusterConfig(resources_per_worker=wished)
    own = replace(own, device=device, config=own.config.model_copy(update={"cluster": cluster}))
    assert worker_resources(own, session) == expected


def test_what_an_engine_reserves() -> None:
    cluster = ClusterConfig(
        resources_per_worker={"CPU": 2, "GPU": 0.25, "fast_disk": 1}, accelerator_type="A100"
    )
    assert engine_resources(cluster, "cuda") == {
        "num_cpus": 2,
        "num_gpus": 0.25,
        "accelerator_type": "A100",
        "resources": {"fast_disk": 1},
    }
    assert engine_resources(ClusterConfig(), "cuda") == {"num_cpus": 1, "num_gpus": 1}
    spread = ClusterConfig(placement_strategy="STRICT_SPREAD")
    assert engine_resources(spread, "cpu") == {"num_cpus": 1, "scheduling_strategy": "SPREAD"}
    assert engine_resources(ClusterConfig(), "cpu") == {"num_cpus": 1}

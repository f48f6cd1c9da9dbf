"""The Serve application: an ingress and the engines behind it.

`build_app` is what a Serve YAML file names as `import_path`; its `args` are `ServeSettings`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, RequestRouterConfig
from ray.serve.handle import DeploymentHandle

from dreamfleet.config import dreamfleet_home
from dreamfleet.runtime.engine_actor import EngineSource
from dreamfleet.serving.admission import FairQueue
from dreamfleet.serving.api import build_api
from dreamfleet.serving.backend import ServeBackend
from dreamfleet.serving.catalogue import (
    Catalogue,
    FolderSource,
    RegistrySource,
    Source,
)
from dreamfleet.serving.figures import Figures
from dreamfleet.serving.guard import Guard
from dreamfleet.serving.keys import KeyFile
from dreamfleet.serving.recording import recorded
from dreamfleet.serving.replica import EngineReplica
from dreamfleet.serving.sampled import Sampled
from dreamfleet.serving.scaling import POLICY
from dreamfleet.serving.service import ImageService
from dreamfleet.serving.settings import (
    CPUS_OF_INGRESS,
    ENGINE,
    INGRESS,
    ServeSettings,
    serve_settings,
)
from dreamfleet.serving.shelf import Shelf

ROUTER = "dreamfleet.serving.routing.AffinityRouter"
MAX_OPEN = 1000  # requests and streams at one ingress; most only wait
MAX_QUEUED_AT_PROXY = 200
CONTROL_CALLS = 16  # about, stats, prefetch beside the pictures
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 5.0, 30.0
MIB = 2**20


class Engine(EngineReplica):
    """An engine replica.

    Args:
        settings: of the application, as plain data.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        own = serve_settings(settings)
        logging.getLogger("dreamfleet").setLevel(logging.INFO)
        source = EngineSource(
            own.base_model,
            own.device,
            own.mixed_precision,
            safety_checker=own.safety_checker == "auto",
        )
        super().__init__(
            source,
            max_slots=own.max_slots,
            max_rows=own.max_rows,
            cache_bytes=own.cache_mib * MIB,
            num_threads=own.num_threads,
        )
        self.start()  # the base is loaded before anybody asks


class Ingress:
    """The HTTP side and the queue.

    Args:
        engines: handle of the engines' deployment.
        settings: of the application, as plain data.
    """

    def __init__(self, engines: DeploymentHandle, settings: dict[str, Any]) -> None:
        self.settings = serve_settings(settings)
        own = self.settings
        name = serve.get_replica_context().replica_id.unique_id
        self.service = ImageService(
            ServeBackend(engines, name, scaled=own.max_replicas is not None),
            _catalogue(own),
            FairQueue(
                own.pictures_per_replica * own.num_replicas, own.max_waiting, own.max_per_key
            ),
            Figures(name),
            refresh_s=own.refresh_s,
            pictures_per_replica=own.pictures_per_replica,
            sampled=Sampled(own.sample_images),
        )

    def __serve_build_asgi_app__(self) -> Guard:
        keys = KeyFile(self.settings.keys_file) if self.settings.auth else None
        shelf = Shelf(dreamfleet_home().expanduser() / "serving" / "pictures")
        around = recorded(self.service, self.settings)
        return build_api(self.service, keys, shelf, around, self.settings.public_url)

    def state(self) -> dict[str, Any]:
        """For whoever started this: readiness, and what stands in its way."""
        service = self.service
        return {
            "ready": service.ready,
            "trouble": service.trouble,
            "failed": service.failed,
            "under_way": service.under_way,
            "problems": service.catalogue.problems(),
            "adapters": [entry.id for entry, _ in service.catalogue.usable()],
        }

    async def snapshot(self) -> dict[str, float]:
        """Figures so far."""
        return await self.service.snapshot()

    def take_samples(self) -> list[tuple[str, bytes]]:
        """Prompts and pictures that were sampled since the last call."""
        return self.service.sampled.take()

    def versions(self) -> dict[str, dict[str, str]]:
        """As `ImageService.versions`."""
        return self.service.versions()

    def drain(self) -> None:
        """Take no more requests."""
        self.service.drain()


def build_app(args: dict[str, Any]) -> Any:
    """The application, for `serve.run` and for Serve's YAML files.

    Args:
        args: `ServeSettings` by name.

    Raises:
        ConfigError: naming each wrong key.
    """
    settings = serve_settings(args)
    plain = settings.model_dump(mode="json")
    engine = serve.deployment(Engine, name=ENGINE).options(**_engine_options(settings))
    ingress = serve.deployment(serve.ingress()(Ingress), name=INGRESS).options(
        num_replicas=settings.num_ingress,
        max_ongoing_requests=MAX_OPEN,
        max_queued_requests=MAX_QUEUED_AT_PROXY,
        backpressure_config={"status_code": 429, "retry_after_s": 2},
        graceful_shutdown_timeout_s=settings.drain_s,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        ray_actor_options={"num_cpus": CPUS_OF_INGRESS},
    )
    return ingress.bind(engine.bind(plain), plain)


def _engine_options(settings: ServeSettings) -> dict[str, Any]:
    options: dict[str, Any] = {
        # The queue in the ingress decides; this is well above what it lets through.
        "max_ongoing_requests": 2 * settings.pictures_per_replica + CONTROL_CALLS,
        "graceful_shutdown_timeout_s": settings.drain_s,
        "health_check_period_s": HEALTH_PERIOD_S,
        "health_check_timeout_s": HEALTH_TIMEOUT_S,
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
        "ray_actor_options": {
            "num_cpus": settings.cpus_per_replica,
            "num_gpus": settings.gpus_per_replica,
        },
    }
    if settings.max_replicas is None:
        return {**options, "num_replicas": settings.num_replicas}
    scaling = AutoscalingConfig(
        min_replicas=settings.num_replicas,
        max_replicas=settings.max_replicas,
        upscale_delay_s=settings.upscale_delay_s,
        downscale_delay_s=settings.downscale_delay_s,
        policy=AutoscalingPolicy(
            policy_function=POLICY,
            policy_kwargs={
                "target_pictures": settings.target_pictures or settings.pictures_per_replica
            },
        ),
    )
    return {**options, "autoscaling_config": scaling}


def _catalogue(settings: ServeSettings) -> Callable[[Callable[[], str | None]], Catalogue]:
    source: Source
    if settings.registry is not None:
        cache = dreamfleet_home().expanduser() / "serving" / "adapters"
        source = RegistrySource(settings.registry, Path(cache), tuple(settings.registry_models))
    else:
        source = FolderSource(settings.adapters or "")
    return lambda base_hash: Catalogue(source, base_hash, settings.max_rank)

"""Settings of a Serve application: the flags of `dreamfleet serve`, and `args` in a YAML file.
Importing this loads no Ray and no torch.
"""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from dreamfleet.errors import ConfigError

APP_NAME = "dreamfleet"
INGRESS, ENGINE = "Ingress", "Engine"
CPUS_OF_INGRESS = 0.1
LOOPBACK = ("127.0.0.1", "localhost", "::1")
ADDRESS = re.compile(r"https?://[^\s/?#@]+(/[^\s?#]*)?")


class ServeSettings(BaseModel):
    """Everything that a deployment depends on."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    base_model: str = Field("embedded", description="as for personalize")
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="where engines compute; auto: on a GPU where Ray gives them one"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] = Field("no", description="type of the base")
    safety_checker: Literal["auto", "off"] = Field(
        "auto", description="auto: the base's own, where it has one"
    )
    adapters: str | None = Field(
        None, description="a folder of adapter folders, or one; all nodes must see it"
    )
    registry: str | None = Field(None, description="MLflow's address, instead of a folder")
    registry_models: list[str] = Field(
        default_factory=list, description="only these registered models; empty: all adapters"
    )
    tracking_uri: str | None = Field(
        None,
        description="MLflow's address: each ingress records itself there as a run; without it "
        "`dreamfleet serve` records from outside, and a cluster does not",
    )
    auth: bool = Field(True, description="ask for API keys")
    keys_file: str | None = Field(None, description="default: keys.json in DREAMFLEET_HOME")
    public_url: str | None = Field(
        None,
        description="what addresses of pictures begin with, e.g. https://images.example.com behind "
        "a TLS proxy; default: as each request names the service",
    )
    num_replicas: int = Field(1, ge=1, le=1000, description="engines, each on a device of its own")
    max_replicas: int | None = Field(
        None, ge=1, le=1000, description="autoscaling, from num_replicas to this many"
    )
    target_pictures: float | None = Field(
        None,
        gt=0,
        description="autoscaling: pictures, drawn or waiting, for each engine; default: "
        "pictures_per_replica",
    )
    upscale_delay_s: float = Field(
        30.0, ge=0, description="autoscaling: seconds of want before engines are added"
    )
    downscale_delay_s: float = Field(
        600.0, ge=0, description="autoscaling: seconds without want before engines are taken away"
    )
    num_ingress: int = Field(1, ge=1, le=100, description="HTTP replicas; queues are their own")
    cpus_per_replica: float = Field(1.0, ge=0, description="CPUs that Ray reserves for an engine")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs that Ray reserves for an engine")
    num_threads: int | None = Field(None, ge=1, le=1024, description="torch threads of an engine")
    max_slots: int = Field(16, ge=1, le=1024, description="adapters on a device at once")
    max_rank: int = Field(
        128, ge=1, le=4096, description="larger adapters are left out: every slot would grow"
    )
    max_rows: int | None = Field(
        None, ge=1, le=4096, description="rows of one forward; default: as many as fit"
    )
    cache_mib: int = Field(
        1024, ge=1, description="adapters in an engine's host memory, MiB; idle ones go first"
    )
    pictures_per_replica: int = Field(
        16, ge=1, le=4096, description="pictures that an engine draws at once"
    )
    max_waiting: int = Field(
        64, ge=0, le=100_000, description="pictures that wait in all; more get 429"
    )
    max_per_key: int = Field(
        48, ge=1, le=100_000, description="pictures of one key, drawn and waiting"
    )
    refresh_s: float = Field(10.0, gt=0, description="seconds between looks for changed adapters")
    drain_s: float = Field(8.0, ge=0, le=3600, description="seconds for what is under way at end")
    sample_images: int = Field(
        0, ge=0, le=100, description="pictures a minute recorded in MLflow; 0: none"
    )

    @field_validator("public_url")
    @classmethod
    def _an_address(cls, given: str | None) -> str | None:
        if given is not None and not ADDRESS.fullmatch(given):
            raise ValueError("expected an address such as https://images.example.com")
        return given

    @model_validator(mode="after")
    def _one_source(self) -> ServeSettings:
        if (self.adapters is None) == (self.registry is None):
            raise ValueError("give adapters (a folder) or registry (MLflow's address), one of them")
        if self.max_replicas is not None and self.max_replicas < self.num_replicas:
            raise ValueError("max_replicas is below num_replicas")
        return self


def serve_settings(given: dict[str, Any]) -> ServeSettings:
    """Settings from flags or a YAML file.

    Raises:
        ConfigError: naming each wrong key.
    """
    try:
        return ServeSettings.model_validate(given)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            text = item["msg"].removeprefix("Value error, ")
            lines.append(f"serve: {key} = {item['input']!r}: {text}" if key else f"serve: {text}")
        raise ConfigError("\n".join(lines)) from error

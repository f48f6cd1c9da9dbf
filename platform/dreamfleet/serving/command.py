"""Settings out of the command line's flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dreamfleet.errors import BadInputError
from dreamfleet.serving.server import base_of_adapters
from dreamfleet.serving.settings import ServeSettings, serve_settings


def settings_from_flags(given: Mapping[str, Any], *, own_machine: bool = True) -> ServeSettings:
    """What `dreamfleet serve` was told; flags that were not given are left to the defaults.

    Args:
        own_machine: the service is begun here, so its folders are these.

    Raises:
        BadInputError: no source of adapters, or a wrong value.
    """
    flags = {name: value for name, value in given.items() if value is not None}
    registry, uri = flags.pop("registry", False), flags.pop("tracking_uri", None)
    if registry == ("adapters" in flags):
        raise BadInputError(
            "give --adapters DIR (an adapter's folder or a folder of them) or --registry, one of "
            "the two"
        )
    flags |= _mlflow(registry, uri, own_machine)
    if not registry and (own_machine or Path(flags["adapters"]).expanduser().is_dir()):
        flags["adapters"] = str(Path(flags["adapters"]).expanduser().absolute())
        flags.setdefault("base_model", base_of_adapters(flags["adapters"]))
    if flags.get("device") == "cuda":
        flags.setdefault("gpus_per_replica", 1.0)
    return serve_settings(flags)


def _mlflow(registry: bool, uri: str | None, own_machine: bool) -> dict[str, str]:
    """MLflow's address: for the adapters, and for a service on a cluster, which records itself."""
    if not registry and (own_machine or uri is None):
        return {}
    from dreamfleet.tracking import resolve_uri

    names = [*(["registry"] if registry else []), *([] if own_machine else ["tracking_uri"])]
    return dict.fromkeys(names, resolve_uri(uri))

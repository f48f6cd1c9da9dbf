"""Serve YAML files: written, checked strictly, and handed to a cluster's head.

Serve itself takes unknown keys without a word, so a typing error would go unseen.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from dreamfleet.config import environment
from dreamfleet.errors import BadInputError, ConfigError, DreamfleetError, first_line
from dreamfleet.runtime.auth import client_environment, default_token_path
from dreamfleet.serving.settings import APP_NAME, ServeSettings, serve_settings

IMPORT_PATH = "dreamfleet.serving.application:build_app"
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
TOP_KEYS = {"proxy_location", "http_options", "logging_config", "applications"}
HTTP_KEYS = {"host", "port", "request_timeout_s", "keep_alive_timeout_s"}
APP_KEYS = {"name", "route_prefix", "import_path", "args", "runtime_env"}
TIMEOUT_S = 60.0


def serve_file(settings: ServeSettings, *, host: str = "0.0.0.0", port: int = 8000) -> str:
    """A Serve YAML file for this application.

    Raises:
        BadInputError: no keys are asked for: on a cluster the service is reached by others.
    """
    if not settings.auth:
        raise BadInputError("--no-auth: only for this machine; a deployment asks for keys")
    given = settings.model_dump(mode="json", exclude_unset=True)
    content = {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": port},
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
        "applications": [
            {
                "name": APP_NAME,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": given,
            }
        ],
    }
    head = "# Command: dreamfleet serve deploy FILE\n# args: the settings of `dreamfleet serve`.\n"
    return head + yaml.safe_dump(content, sort_keys=False)


def read_serve_file(path: str | Path) -> dict[str, Any]:
    """A Serve YAML file, every key known and every setting checked.

    Raises:
        ConfigError: naming what is wrong.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from error
    return checked_serve_config(content, str(path))


def checked_serve_config(content: Any, origin: str) -> dict[str, Any]:
    """As `read_serve_file`, for what was in the file.

    Raises:
        ConfigError: naming what is wrong.
    """
    if not isinstance(content, dict) or not isinstance(content.get("applications"), list):
        raise ConfigError(f"{origin}: expected a mapping with a list called applications")
    _known(content, TOP_KEYS, origin)
    _known(content.get("http_options") or {}, HTTP_KEYS, f"{origin}: http_options")
    ours = _ours(content)
    if len(ours) != 1:
        raise ConfigError(f"{origin}: expected one application with import_path {IMPORT_PATH}")
    _check_application(ours[0], f"{origin}: applications")
    return content


def application_settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of our application in a checked file; others there are none of our business."""
    return dict(_ours(content)[0].get("args") or {})


def _ours(content: Mapping[str, Any]) -> list[dict[str, Any]]:
    apps = [app for app in content["applications"] if isinstance(app, dict)]
    return [app for app in apps if app.get("import_path") == IMPORT_PATH]


def _check_application(app: Mapping[str, Any], origin: str) -> None:
    _known(app, APP_KEYS, origin)
    # The service looks itself up by its name, and its pages name its paths from the root.
    for key, expected in (("name", APP_NAME), ("route_prefix", "/")):
        if app.get(key) != expected:
            raise ConfigError(f"{origin}: {key} = {app.get(key)!r}: expected {expected!r}")
    if not serve_settings(app.get("args") or {}).auth:
        raise ConfigError(
            f"{origin}: auth = False: only for `dreamfleet serve` on this machine; a deployment "
            "asks for keys"
        )


def deploy(content: Mapping[str, Any], address: str | None = None) -> str:
    """Hand a checked file to a cluster's head; Serve starts or updates the application.

    Args:
        address: of the head's dashboard; default: RAY_API_SERVER_ADDRESS, else this machine's.

    Returns:
        The address that took it.

    Raises:
        DreamfleetError: the head cannot be reached, or refuses it.
    """
    place = address or environment("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if not place.startswith(("http://", "https://")):
        raise BadInputError(
            f"--ray-address {place}: expected the head's dashboard, e.g. {DEFAULT_ADDRESS}"
        )
    headers = {"Content-Type": "application/json", **_token()}
    request = urllib.request.Request(
        f"{place.rstrip('/')}/api/serve/applications/",
        json.dumps(content).encode(),
        headers,
        method="PUT",
    )
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S):
            return place
    except urllib.error.HTTPError as error:
        with error:
            said = error.read().decode("utf-8", "replace").strip()
        if error.code in (401, 403):
            said = "~/.ray/auth_token or RAY_AUTH_TOKEN must hold its token"
        raise DreamfleetError(
            f"Ray head at {place}: the application was not taken (HTTP {error.code}): "
            f"{said[-2000:]}"
        ) from error
    except OSError as error:
        raise DreamfleetError(
            f"Ray head at {place}: the application was not taken ({first_line(error)}); check the "
            "address, and that the head runs with its dashboard"
        ) from error


def _token() -> dict[str, str]:
    """Ray's token, where this user has one and has not switched it off."""
    mode = environment("RAY_AUTH_MODE") or client_environment().get("RAY_AUTH_MODE")
    if mode != "token":
        return {}
    token = environment("RAY_AUTH_TOKEN")
    if token is None:
        place = Path(environment("RAY_AUTH_TOKEN_PATH") or default_token_path())
        token = place.read_text(encoding="ascii").strip() if place.is_file() else ""
    return {"Authorization": f"Bearer {token}"} if token else {}


def _known(given: Mapping[str, Any], keys: set[str], origin: str) -> None:
    unknown = sorted(set(given) - keys)
    if unknown:
        raise ConfigError(
            f"{origin}: unknown key {unknown[0]!r}; expected {', '.join(sorted(keys))}"
        )

"""The flags of the command line, generated from the configuration's fields.

The rule: a field's flag is its own name (`train.learning_rate` is `--learning-rate`), with its
section in front where the name alone says too little: always in `sude`, `tracking` and `space`,
and wherever two sections share a name. `_NAMES` lists the exceptions, `_ALIASES` the further names
that users of diffusers' and kohya's scripts know. Hyphens are shown, underscores accepted; each
flag's help names its YAML key.
"""

from __future__ import annotations

import functools
import types
import typing
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

import click
import yaml

from dreamfleet.config import SEARCH_SECTIONS, Interval, flat_fields
from dreamfleet.errors import ConfigError

_PREFIXED_SECTIONS = frozenset({"sude", "tracking", "space"})

_NAMES: Mapping[str, str] = types.MappingProxyType(
    {
        "subject.id": "subject-id",
        "train.mode": "train-mode",
        "prior.form": "prior-form",
        "tracking.enabled": "tracking",
    }
)

_ALIASES: Mapping[str, tuple[str, ...]] = types.MappingProxyType(
    {
        "base_model": ("pretrained-model-name-or-path",),
        "subject.images": ("instance-data-dir",),
        "prior.weight": ("prior-loss-weight",),
        "train.rank": ("network-dim",),
        "train.lora_alpha": ("network-alpha",),
        "sampling.num_inference_steps": ("num-inference-steps",),
        "sampling.guidance_scale": ("guidance-scale",),
        "sampling.validation_prompts": ("validation-prompt",),
    }
)


def flag_name(key: str) -> str:
    """The shown name, without dashes in front, of the field with the dotted YAML `key`."""
    if key in _NAMES:
        return _NAMES[key]
    section, _, name = key.rpartition(".")
    if section and (section in _PREFIXED_SECTIONS or _field_counts()[name] > 1):
        name = f"{section}-{name}"
    return name.replace("_", "-")


def flag_names(key: str) -> tuple[str, ...]:
    """All names of a field's flag, the shown one first."""
    return (flag_name(key), *_ALIASES.get(key, ()))


def options(*, search: bool = True) -> list[click.Option]:
    """One option for each configuration field; the parameter's name is the dotted YAML key.

    Values stay text: the configuration itself judges them, so a flag and a YAML key get the same
        message.

    Args:
        search: those of the sections that only `dreamfleet tune` reads, too.
    """
    return [
        _option(key, info)
        for key, info in flat_fields().items()
        if search or key.partition(".")[0] not in SEARCH_SECTIONS
    ]


def overrides(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Those configuration values, by dotted key, that were given on the command line."""
    fields = flat_fields()
    given = {_key(name): value for name, value in parameters.items() if value not in (None, ())}
    return {key: _value(key, fields[key], value) for key, value in given.items() if key in fields}


def keyword_overrides(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """Python keywords named like flags (`sude_weight=0.4`) as dotted keys.

    Raises ConfigError for a name that is no flag.
    """
    by_name = {name.replace("-", "_"): key for key in flat_fields() for name in flag_names(key)}
    unknown = [name for name in keywords if name not in by_name]
    if unknown:
        raise ConfigError(
            f"unknown setting {unknown[0]!r}{_close(unknown[0], by_name)}; "
            "settings are named like the flags of `dreamfleet personalize --help`"
        )
    return {by_name[name]: value for name, value in keywords.items()}


def _close(name: str, known: Mapping[str, str]) -> str:
    import difflib

    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


@functools.cache
def _field_counts() -> Counter[str]:
    # What is searched is named like what is set; the setting keeps the short name.
    shared = (key for key in flat_fields() if not key.startswith("space."))
    return Counter(key.rpartition(".")[2] for key in shared)


def _option(key: str, info: Any) -> click.Option:
    names = flag_names(key)
    details: dict[str, Any] = {"help": _help(key, info), "default": None}
    if _accepts(info, bool) and not _literals(info.annotation):
        declared = [f"--{name}/--no-{name}" for name in names]
    else:
        declared = [f"--{name}" for name in names]
        details |= {"metavar": _metavar(info.annotation), "multiple": _accepts(info, list)}
    return click.Option([_parameter(key), *declared], **details)


def _help(key: str, info: Any) -> str:
    """What the field means, its default where one value says it all, and its YAML key."""
    told = info.is_required() or "default" in info.description
    default = "" if told else info.get_default(call_default_factory=True)
    shown = f"; default {default}" if isinstance(default, int | float) or default else ""
    off = shown if default is not False else ""
    return f"{info.description}{off}  [{key}]"


def _parameter(key: str) -> str:
    return f"config__{key.replace('.', '__')}"


def _key(parameter: str) -> str:
    return parameter.removeprefix("config__").replace("__", ".")


def _types(annotation: Any) -> tuple[Any, ...]:
    """The plain types of an annotation: members of unions, origins of generics."""
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return tuple(plain for part in typing.get_args(annotation) for plain in _types(part))
    if origin is typing.Annotated:
        return _types(typing.get_args(annotation)[0])
    return (origin or annotation,)


def _accepts(info: Any, plain: type) -> bool:
    return plain in _types(info.annotation)


def _literals(annotation: Any) -> list[str]:
    if typing.get_origin(annotation) is Literal:
        return [str(choice) for choice in typing.get_args(annotation)]
    return [choice for part in typing.get_args(annotation) for choice in _literals(part)]


def _metavar(annotation: Any) -> str:
    choices = _literals(annotation)
    plain = _types(annotation)
    if choices:
        return "|".join([*choices, *(["true", "false"] if bool in plain else [])])
    if Interval in plain:
        return "LOW..HIGH or VALUE"
    for candidate, shown in ((int, "INTEGER"), (float, "NUMBER"), (dict, "NAME=NUMBER,...")):
        if candidate in plain:
            return shown
    return "TEXT"


def _value(key: str, info: Any, given: Any) -> Any:
    """`given` for the configuration: null is None where the field allows it, and a dict is read."""
    if isinstance(given, tuple):
        return list(given)
    if isinstance(given, str):
        if type(None) in _types(info.annotation) and given.lower() in ("null", "none"):
            return None
        if _accepts(info, dict):
            return _mapping(key, given)
    return given


def _mapping(key: str, text: str) -> Any:
    """`CPU=1,GPU=0.5`, or YAML's `{CPU: 1}`."""
    try:
        if text.lstrip().startswith("{"):
            return yaml.safe_load(text)
        return dict(part.split("=", 1) for part in text.split(",") if part.strip())
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(
            f"--{flag_name(key)} ({key}): expected NAME=NUMBER,..., got {text!r}"
        ) from error

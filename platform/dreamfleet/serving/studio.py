"""Pages for people: the studio at `/`, and the API's documentation at `/docs`. Nothing is fetched
from elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from dreamfleet import __version__
from dreamfleet.serving import schemas

TYPES = {"js": "text/javascript; charset=utf-8", "css": "text/css; charset=utf-8"}
# A report that is shown inherits this: it brings styles and pictures of its own, and no script.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; frame-src blob:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Studio:
    """The pages.

    Args:
        needs_key: whether the page asks for a key.
    """

    def __init__(self, needs_key: bool) -> None:
        self._needs_key = needs_key
        self._templates = Environment(
            loader=PackageLoader("dreamfleet.serving", "templates"),
            autoescape=select_autoescape(default=True),
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._templates.filters["marked"] = _marked
        self.headers = {
            "Cache-Control": "no-store",
            "Content-Security-Policy": POLICY,
            "Referrer-Policy": "no-referrer",
            "X-Content-Type-Options": "nosniff",
        }

    def page(self) -> str:
        """The studio."""
        return self._templates.get_template("studio.html.j2").render(
            needs_key=self._needs_key, version=__version__, limits=vars(schemas)
        )

    def part(self, kind: str) -> tuple[str, str] | None:
        """Script or style, and its type."""
        if kind not in TYPES:
            return None
        place = resources.files("dreamfleet.serving") / "templates" / f"studio.{kind}"
        return place.read_text(encoding="utf-8"), TYPES[kind]

    def docs(self, openapi: Mapping[str, Any]) -> str:
        """Every endpoint and field of an OpenAPI document, each once."""
        endpoints = _endpoints(openapi)
        shown = {endpoint["body"] for endpoint in endpoints}
        objects = [
            {"name": name, "text": _plain(schema), "fields": _fields(schema)}
            for name, schema in openapi["components"]["schemas"].items()
            if name not in shown and "properties" in schema
        ]
        return self._templates.get_template("docs.html.j2").render(
            api=openapi, endpoints=endpoints, objects=objects
        )


def _endpoints(openapi: Mapping[str, Any]) -> list[dict[str, Any]]:
    schemas = openapi["components"]["schemas"]
    return [
        _endpoint(f"{method.upper()} {path}", operation, schemas)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]


def _endpoint(
    title: str, operation: Mapping[str, Any], schemas: Mapping[str, Any]
) -> dict[str, Any]:
    body = _name(_schema(operation.get("requestBody")))
    in_path = [
        _field(own["name"], own["schema"], "required", own.get("description", ""))
        for own in operation.get("parameters", [])
    ]
    return {
        "title": title,
        "text": operation.get("description") or operation.get("summary", ""),
        "body": body,
        "fields": [*in_path, *_fields(schemas.get(body, {}))],
        "answers": [(status, _answer(own)) for status, own in operation["responses"].items()],
        "protected": bool(operation.get("security")),
    }


def _schema(part: Mapping[str, Any] | None) -> Mapping[str, Any]:
    content = (part or {}).get("content", {})
    found: Mapping[str, Any] = content.get("application/json", {}).get("schema", {})
    return found


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema.get("$ref", "")).rpartition("/")[2]


def _fields(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, type, limits, default and meaning of each field."""
    required = schema.get("required", [])
    return [
        _field(
            name,
            field,
            "required" if name in required else _default(field),
            field.get("description", ""),
        )
        for name, field in schema.get("properties", {}).items()
    ]


def _field(name: str, field: Mapping[str, Any], default: str, text: str) -> dict[str, str]:
    return {
        "name": name,
        "type": _type(field),
        "limits": _limits(field),
        "default": default,
        "text": text,
    }


def _answer(answer: Mapping[str, Any]) -> str:
    """What an answer is, and the object that it holds."""
    schema = _schema(answer)
    text = str(answer.get("description", ""))
    if text == "Successful Response":  # FastAPI's own words
        return f"`{_name(schema)}`" if "$ref" in schema else ""
    return text


def _plain(schema: Mapping[str, Any]) -> str:
    return " ".join(str(schema.get("description", "")).split())


def _default(field: Mapping[str, Any]) -> str:
    """As JSON has it, texts without their quotes."""
    value = field.get("default")
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def _number(value: float) -> str:
    return f"{value:.0f}" if float(value).is_integer() else str(value)


def _marked(text: str) -> Markup:
    """A text whose `names` are code."""
    parts = text.split("`")
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if index % 2 else part
        for index, part in enumerate(parts)
    )


def _kinds(field: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The field itself, or the members of a union but null."""
    return [kind for kind in field.get("anyOf", [field]) if kind.get("type") != "null"]


def _type(field: Mapping[str, Any]) -> str:
    found = []
    for kind in _kinds(field):
        if "enum" in kind or "const" in kind:
            found.append(" | ".join(str(own) for own in kind.get("enum", [kind.get("const")])))
        elif kind.get("type") == "array":
            found.append(f"list of {_type(kind.get('items', {}))}")
        else:
            found.append(str(kind.get("type") or _name(kind)))
    return " or ".join(found)


def _limits(field: Mapping[str, Any]) -> str:
    """The bounds in words."""
    words = {
        "minimum": "from {}",
        "maximum": "up to {}",
        "minLength": "from {}",
        "maxLength": "up to {} characters",
        "maxItems": "at most {} entries",
    }
    return " ".join(
        text.format(_number(kind[name]))
        for kind in _kinds(field)
        for name, text in words.items()
        if name in kind
    )

"""The page that explains the API, rendered from the OpenAPI document. It loads nothing: no script, font or image."""

import json
import re
from functools import lru_cache
from typing import Any

import jinja2
import msgspec
from markupsafe import Markup, escape

from core.events import API_VERSION, EVENT_TYPES
from server.api.docs.examples import EXAMPLES, curl, node, python
from server.api.docs.problem_codes import PROBLEM_CODES
from server.api.docs.samples import example, reply_example


@lru_cache(maxsize=1)
def page(encoded: bytes) -> bytes:
    """The page of an OpenAPI document in JSON, as HTML."""
    document = msgspec.json.decode(encoded)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("server.api.docs"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["prose"] = _prose
    schemas = document["components"]["schemas"]
    tags: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tags[operation["tags"][0]].append(_shown(method.upper(), path, operation, schemas))
    rendered = environment.get_template("docs.html").render(
        info=document["info"],
        tags=tags,
        events=[(name, text, _pretty(msgspec.to_builtins(example(name)))) for name, text in EVENT_TYPES.items()],
        problem_codes=PROBLEM_CODES,
        schemas=schemas,
        kind=_kind,
        api_version=API_VERSION,
    )
    return rendered.encode()


def _shown(method: str, path: str, operation: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """An operation with its example: the request in three languages, and the first reply."""
    example = EXAMPLES[operation["operationId"]]
    needs_key = any(field["name"] == "Idempotency-Key" for field in operation["parameters"])
    status = next(iter(operation["responses"]))
    body = reply_example(operation["operationId"], operation["responses"][status], schemas)
    return {
        **operation,
        "method": method,
        "path": path,
        "requests": {
            "curl": curl(method, path, example, needs_key=needs_key),
            "Python": python(example),
            "node": node(method, path, example, needs_key=needs_key),
        },
        "reply_status": status,
        "reply": body if body is None or isinstance(body, str) else _pretty(body),
    }


def _pretty(body: Any) -> str:
    return json.dumps(body, indent=2)


def _prose(text: str) -> Markup:
    """A description as HTML: what stands between backticks is code."""
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704 - it is escaped first


def _kind(schema: dict[str, Any]) -> str:
    """The type of a field in a few words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_kind(one) for one in schema["anyOf"]))
    if "enum" in schema:
        return " | ".join("null" if one is None else str(one) for one in schema["enum"])
    kind = str(schema.get("format") or schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    bounds = [f"{word} {schema[name]}" for name, word in _BOUNDS.items() if name in schema]
    return kind + (f" ({', '.join(bounds)})" if bounds else "")


_BOUNDS = {"minimum": "from", "maximum": "to", "minLength": "length from", "maxLength": "length to"}

"""The OpenAPI 3.1 document of the API, generated from its routes and the types that validate requests."""

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec

from core.events import API_VERSION, EVENT_TYPES
from server import resources
from server.api.parsing import UNDOCUMENTED
from server.api.routing import Parameter, Route

_PROBLEM = "application/problem+json"
_ALWAYS = (401, 403, 413, 500, 503)
_REASONS = {
    400: "The request cannot be read.",
    401: "No API key, or one that is unknown or was revoked.",
    402: "Declined.",
    403: "The key lacks the scope, or may not be used from this network.",
    404: "It does not exist.",
    408: "The batch's deadline passed; `resume_token` resumes what is unfinished. Repeating the request gives the same reply.",
    405: "This path supports other methods.",
    409: "The current state does not allow it, or the first request with this key is under way.",
    413: "The body is too large.",
    422: "The request breaks a rule; `path` names the field.",
    500: "An internal error.",
    502: "The PSP could not be reached, or refused the request.",
    503: "Try again after `Retry-After` seconds.",
    504: "The PSP did not answer in time; the outcome will be settled.",
}
_DESCRIPTION = f"""
Payments and everything about them. Amounts are integers in minor units: 1999 EUR is 19.99 €. Send your key as
`Authorization: Bearer`.

Every POST that changes something needs an `Idempotency-Key`: the same key with the same body gives the same reply. Problems are
`application/problem+json` (RFC 9457) with a stable `code`. Ignore fields that you do not know.

Version {API_VERSION}. Events arrive by webhook, over the websocket `GET /v1/stream?after=SEQ` and from `GET /v1/events`: one
sequence, the same documents.
""".strip()


def document(routes: Sequence[Route]) -> dict[str, Any]:
    """The whole document. It is deterministic, so that it can be compared."""
    shown = [route for route in routes if not route.is_hidden]
    types = [resources.Problem, *dict.fromkeys(one for route in shown for one in _types(route))]
    schemas, components = msgspec.json.schema_components(types, ref_template="#/components/schemas/{name}")
    for schema in components.values():
        properties = schema.get("properties", {})
        for name in [name for name, field in properties.items() if UNDOCUMENTED in field]:
            del properties[name]
    schema_of = dict(zip(types, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Florin", "version": metadata.version("florin"), "description": _DESCRIPTION},
        "security": [{"key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in shown)],
        "paths": paths,
        "webhooks": {name: _webhook(name, text, schema_of[resources.Event]) for name, text in EVENT_TYPES.items()},
        "components": {
            "schemas": dict(sorted(components.items())),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "fl_test_... or fl_live_..."}},
        },
    }


def _types(route: Route) -> list[Any]:
    replies = [one for one in route.replies.values() if one is not None and not isinstance(one, tuple)]
    return [*([route.body] if route.body is not None else []), *replies]


def _operation(route: Route, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.handle.__qualname__.replace("Api.", "_").lower(),
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [*_path_parameters(route.path), *map(_parameter, route.parameters)],
        "responses": {str(status): _reply(one, schema_of) for status, one in route.replies.items()},
    }
    if route.tells_lines:
        operation["responses"]["200"]["content"]["application/x-ndjson"] = {"schema": {"type": "string"}}
    if route.needs_key:
        operation["parameters"].append(_IDEMPOTENCY_KEY)
    operation["security"] = [] if route.is_public else [{"key": [route.scope.value]}]
    if not route.is_public:
        operation["description"] = f"A restricted key needs the scope `{route.scope}`."
    if route.body is not None:
        is_needed = any(field.required for field in msgspec.structs.fields(route.body))
        operation["requestBody"] = {"required": is_needed, "content": {"application/json": {"schema": schema_of[route.body]}}}
    for status in sorted({*route.problems, *_ALWAYS} - set(route.replies)):
        content = {_PROBLEM: {"schema": schema_of[resources.Problem]}}
        operation["responses"][str(status)] = {"description": _REASONS[status], "content": content}
    return operation


_IDEMPOTENCY_KEY = {
    "name": "Idempotency-Key",
    "in": "header",
    "required": True,
    "description": "a new random value for each operation, the same value for its retries",
    "schema": {"type": "string", "minLength": 1, "maxLength": 255},
}


def _path_parameters(path: str) -> list[dict[str, Any]]:
    names = [segment[1:-1] for segment in path.split("/") if segment.startswith("{")]
    kinds = {"seq": {"type": "integer", "minimum": 1}}
    return [{"name": one, "in": "path", "required": True, "schema": kinds.get(one, {"type": "string"})} for one in names]


def _parameter(parameter: Parameter) -> dict[str, Any]:
    place = "header" if parameter.is_header else "query"
    return {"name": parameter.name, "in": place, "schema": dict(parameter.schema), "description": parameter.description}


def _reply(reply: Any, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    if reply is None:
        return {"description": "Done."}
    if isinstance(reply, tuple):
        return {"description": "As asked.", "content": {media: {} for media in reply}}
    described: dict[str, Any] = {"description": "As asked.", "content": {"application/json": {"schema": schema_of[reply]}}}
    return described


def _webhook(name: str, text: str, event: Any) -> dict[str, Any]:
    return {
        "post": {
            "operationId": f"on_{name.replace('.', '_')}",
            "summary": text,
            "description": "Signed as Standard Webhooks says: `webhook-id`, `webhook-timestamp`, `webhook-signature`.",
            "requestBody": {"content": {"application/json": {"schema": event}}},
            "responses": {"2XX": {"description": "Received."}},
        }
    }

"""The page that explains the API, rendered from the OpenAPI document. It loads nothing: no script, font or image."""

import json
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import jinja2
import msgspec

from core.events import API_VERSION, ENDPOINT_DISABLED, EVENT_TYPES
from server import resources

_NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


@lru_cache(maxsize=1)
def page(encoded: bytes) -> bytes:
    """The page of an OpenAPI document in JSON, as HTML."""
    document = msgspec.json.decode(encoded)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("server.api"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    tags: dict[str, list[dict[str, Any]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tags[operation["tags"][0]].append({**operation, "method": method.upper(), "path": path})
    events = [(name, text, _pretty(example(name))) for name, text in EVENT_TYPES.items()]
    schemas = document["components"]["schemas"]
    rendered = environment.get_template("docs.html").render(
        info=document["info"], tags=tags, events=events, schemas=schemas, kind=_kind, api_version=API_VERSION
    )
    return rendered.encode()


def example(event_type: str) -> resources.Event:
    """An example event of that type."""
    family = event_type.partition(".")[0]
    data: Any = _payment(event_type)
    if family == "refund":
        data = _refund(event_type)
    elif family == "webhook_endpoint":
        is_disabled = event_type == ENDPOINT_DISABLED
        data = {
            "id": "we_01936a1c2e5b7c3d8f10a2b3c4d5e6f7",
            "object": "webhook_endpoint",
            "url": "https://shop.example/webhooks",
            "enabled": not is_disabled,
            "disabled_reason": "failing" if is_disabled else None,
        }
    return resources.Event(
        id="evt_01936a1c2e5b7c3d8f10a2b3c4d5e6f7",
        type=event_type,
        seq=42,
        api_version=API_VERSION,
        timestamp=_NOW,
        data=data if isinstance(data, dict) else msgspec.to_builtins(data, builtin_types=(datetime,)),
    )


def _payment(event_type: str) -> resources.Payment:
    word = event_type.partition(".")[2]
    status: Any = {"authorization_expiring": "AUTHORIZED"}.get(word, "SUCCEEDED" if word.startswith("disput") else word.upper())
    took = 1_990 if status == "SUCCEEDED" else 0
    return resources.Payment(
        id="pay_01936a1c2e5b7c3d8f10a2b3c4d5e6f7",
        object="payment",
        status=status,
        awaiting=None,
        success=1 if status == "SUCCEEDED" else 0,
        amount=1_990,
        currency="EUR",
        captured_amount=took,
        refunded_amount=0,
        disputed_amount=took if word in ("disputed", "dispute_lost") else 0,
        fee_amount=0,
        capture="manual" if status == "AUTHORIZED" else "automatic",
        capture_before=_NOW if status == "AUTHORIZED" else None,
        pending_operation=None,
        order_id="order-1",
        description=None,
        statement_descriptor=None,
        metadata={},
        payment_url="https://psp.example/pay/1",
        return_url=None,
        decline_code="insufficient_funds" if status == "DECLINED" else None,
        did_check_again=status == "DECLINED",
        late=False,
        risk=None,
        expires_at=_NOW,
        created_at=_NOW,
        updated_at=_NOW,
    )


def _refund(event_type: str) -> resources.Refund:
    is_failed = event_type.endswith("failed")
    return resources.Refund(
        id="ref_01936a1c2e5b7c3d8f10a2b3c4d5e6f7",
        object="refund",
        payment_id="pay_01936a1c2e5b7c3d8f10a2b3c4d5e6f7",
        status="FAILED" if is_failed else "SUCCEEDED",
        amount=400,
        currency="EUR",
        reason=None,
        failure_code="expired_card" if is_failed else None,
        created_at=_NOW,
        updated_at=_NOW,
    )


def _pretty(event: resources.Event) -> str:
    return json.dumps(msgspec.to_builtins(event), indent=2)


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

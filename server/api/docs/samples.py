"""Example documents: events, and a reply of every operation, made from the types of the API.

Payments, refunds and events are whole and make sense; other replies are filled in from their schema by the names of their fields.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from core.events import API_VERSION, ENDPOINT_DISABLED
from server import resources
from server.api.docs.examples import BATCH_ID, ENDPOINT_ID, EVENT_ID, KEY_ID, PAYMENT_ID, REFUND_ID, RESUME_TOKEN, SEQ

_NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)
_TIME = "2026-11-21T08:30:00Z"
_IDS = {
    "Payment": PAYMENT_ID,
    "Refund": REFUND_ID,
    "Batch": BATCH_ID,
    "BatchReport": BATCH_ID,
    "Endpoint": ENDPOINT_ID,
    "Event": EVENT_ID,
    "ApiKey": KEY_ID,
}
_VALUES: Mapping[str, Any] = {
    "payment_id": PAYMENT_ID,
    "endpoint_id": ENDPOINT_ID,
    "event_id": EVENT_ID,
    "resume_token": RESUME_TOKEN,
    "event_type": "payment.succeeded",
    "event_types": ["payment.*", "refund.*"],
    "order_id": "1001",
    "currency": "EUR",
    "amount": 1990,
    "balance": 1990,
    "seq": SEQ,
    "acked_seq": SEQ,
    "from_seq": 1,
    "count": 2,
    "outcomes": {"SUCCEEDED": 2},
    "item": 1,
    "position": 1,
    "payment_status": "SUCCEEDED",
    "success": 1,
    "concurrency": 32,
    "concurrency_max": 32,
    "deadline_seconds": 300,
    "run": 1,
    "deliveries": 1,
    "attempts": 1,
    "number": 1,
    "last_status": 200,
    "milliseconds": 38,
    "name": "bookkeeping",
    "ends_in": "9a5c",
    "scopes": ["payments:write", "read"],
    "epoch": "01936a1a-0a1b-7c2d-8e3f-4a5b6c7d8e9f",
    "recovered": True,
    "enabled": True,
    "secret": "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD",
    "ticket": "st_4f0c2b7a9d8e6f51",
    "version": 3,
    "source": "webhook",
    "kind": "captured",
    "headers": {"content-type": "application/json", "webhook-id": EVENT_ID},
}
_URLS = {
    "StreamTicket": "wss://florin.example/v1/stream?ticket=st_4f0c2b7a9d8e6f51",
    "Endpoint": "https://shop.example/webhooks",
    "SentRequest": "https://shop.example/webhooks",
}
_PAYMENTS = {"payments_create": "payment.pending", "operations_cancel": "payment.canceled"}
"""The state of the payment in the reply, where it is not paid."""

_TEXTS = {
    "text/csv": "seq,created_at,currency,wallet,reason,amount,balance,amount_text,payment_id,transfer_id\n...",
    "application/jose": "eyJhbGciOiJFZERTQSIsImtpZCI6Ii4uLiJ9.eyJwYXltZW50Ijp7...",
    "application/jwk-set+json": '{"keys": [{"kty": "OKP", "crv": "Ed25519", "kid": "...", "x": "..."}]}',
}


def reply_example(operation_id: str, reply: Mapping[str, Any], components: Mapping[str, Any]) -> Any:
    """An example of a reply's body, by its description in OpenAPI: a document, a text, or None for no body."""
    content = reply.get("content", {})
    if operation_id in _PAYMENTS:
        return msgspec.to_builtins(_payment(_PAYMENTS[operation_id]))
    if "application/json" in content:
        return _sample(content["application/json"]["schema"], components)
    return next((_TEXTS[media] for media in content if media in _TEXTS), None)


def _sample(schema: Mapping[str, Any], components: Mapping[str, Any], *, field: str = "", of: str = "") -> Any:
    if "$ref" in schema:
        return _object(schema["$ref"].rpartition("/")[2], components)
    if field == "id" and of in _IDS:
        return _IDS[of]
    if field == "url":
        return _URLS[of]
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        return (
            _VALUES[field] if _VALUES.get(field) in values else next(one for one in values if one is not None or len(values) == 1)
        )
    if "anyOf" in schema:
        kinds = schema["anyOf"]
        if {"type": "null"} in kinds and field not in _VALUES:
            return None
        return _sample(next(one for one in kinds if one != {"type": "null"}), components, field=field, of=of)
    if field in _VALUES:
        return _VALUES[field]
    match schema.get("type"):
        case "array":
            return [_sample(schema["items"], components, field=field, of=of)]
        case "object":
            return {}
        case "integer":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case _:
            return _TIME if schema.get("format") == "date-time" else ""


def _object(name: str, components: Mapping[str, Any]) -> Any:
    if name in _WHOLE:
        return msgspec.to_builtins(_WHOLE[name]())
    properties = components[name].get("properties", {})
    return {field: _sample(one, components, field=field, of=name) for field, one in properties.items()}


def example(event_type: str) -> resources.Event:
    """An example event of that type."""
    family = event_type.partition(".")[0]
    data: Any = _payment(event_type)
    if family == "refund":
        data = _refund(event_type)
    elif family in _OTHERS:
        data = _OTHERS[family](event_type.partition(".")[2].upper())
    elif family == "webhook_endpoint":
        is_disabled = event_type == ENDPOINT_DISABLED
        data = {
            "id": ENDPOINT_ID,
            "object": "webhook_endpoint",
            "url": "https://shop.example/webhooks",
            "enabled": not is_disabled,
            "disabled_reason": "failing" if is_disabled else None,
        }
    return resources.Event(
        id=EVENT_ID,
        type=event_type,
        seq=SEQ,
        api_version=API_VERSION,
        timestamp=_NOW,
        data=data if isinstance(data, dict) else msgspec.to_builtins(data, builtin_types=(datetime,)),
    )


def _payment(event_type: str) -> resources.Payment:
    word = event_type.partition(".")[2]
    status: Any = {"authorization_expiring": "AUTHORIZED", "outcome_unknown": "UNKNOWN"}.get(
        word, "SUCCEEDED" if word.startswith("disput") else word.upper()
    )
    took = 1_990 if status == "SUCCEEDED" else 0
    return resources.Payment(
        id=PAYMENT_ID,
        object="payment",
        status=status,
        awaiting="customer" if status == "PENDING" else None,
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
        order_id="1001",
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
        id=REFUND_ID,
        object="refund",
        payment_id=PAYMENT_ID,
        status="FAILED" if is_failed else "SUCCEEDED",
        amount=400,
        currency="EUR",
        reason=None,
        failure_code="expired_card" if is_failed else None,
        created_at=_NOW,
        updated_at=_NOW,
    )


_WHOLE: Mapping[str, Any] = {
    "Payment": lambda: _payment("payment.succeeded"),
    "Refund": lambda: _refund("refund.succeeded"),
    "Event": lambda: example("payment.succeeded"),
}


def _payout(word: str) -> resources.Payout:
    return resources.Payout(
        id="po_01936a1f1b2c7d3e9f4a5b6c7d8e9f0a",
        object="payout",
        status="PENDING" if word == "CREATED" else "FAILED" if word == "FAILED" else "SUCCEEDED",
        amount=199_000,
        currency="EUR",
        reference=None if word == "CREATED" else "E2E-1001",
        failure="account closed" if word == "FAILED" else None,
        created_at=_NOW,
        updated_at=_NOW,
    )


def _adjustment(_: str) -> resources.Adjustment:
    return resources.Adjustment(
        id="adj_01936a1f2c3d7e4f8a5b6c7d8e9f0a1b",
        object="adjustment",
        amount=500,
        currency="EUR",
        account="goodwill",
        reason="a payout that was late",
        payment_id=None,
        created_at=_NOW,
    )


def _batch(word: str) -> resources.BatchState:
    outcomes = {"SUCCEEDED": 2} if word == "COMPLETED" else {"SUCCEEDED": 1, "NOT_STARTED": 1}
    status: Any = word
    return resources.BatchState(id=BATCH_ID, object="batch", status=status, count=2, outcomes=outcomes, run=1, finished_at=_NOW)


def _api_key(_: str) -> resources.ApiKey:
    return resources.ApiKey(
        id=KEY_ID,
        object="api_key",
        name="checkout",
        ends_in="9a5c",
        scopes=["payments:write", "read"],
        networks=[],
        expires_at=_NOW,
        last_used_at=_NOW,
        revoked_at=None,
        replaced_by=None,
        created_at=_NOW,
    )


_OTHERS = {"payout": _payout, "adjustment": _adjustment, "batch": _batch, "api_key": _api_key}
"""The data of events that are about no payment, by their family."""

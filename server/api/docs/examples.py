"""An example request for each operation: its body, and the same call with the Python client.

curl and node are rendered from the route, so they cannot name another path. A test makes every call with the client and compares
the request with the route.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PAYMENT_ID = "pay_01936a1c2e5b7c3d8f10a2b3c4d5e6f7"
REFUND_ID = "ref_01936a1d5f6a7b8c9d0e1f2a3b4c5d6e"
BATCH_ID = "bat_01936a1e0a1b7c2d8e3f4a5b6c7d8e9f"
ENDPOINT_ID = "we_01936a1b7c8d7e9f8a0b1c2d3e4f5a6b"
EVENT_ID = "evt_01936a1c9d8e7f6a8b5c4d3e2f1a0b9c"
KEY_ID = "key_01936a1a4e5f7a6b9c8d7e6f5a4b3c2d"
RESUME_TOKEN = f"{BATCH_ID}.1.4f0c2b7a9d8e6f51"
SEQ = 42
_SEGMENTS = {
    "{payment_id}": PAYMENT_ID,
    "{refund_id}": REFUND_ID,
    "{batch_id}": BATCH_ID,
    "{endpoint_id}": ENDPOINT_ID,
    "{key_id}": KEY_ID,
    "{seq}": str(SEQ),
    "{name}": "bookkeeping",
}


@dataclass(frozen=True, slots=True)
class Example:
    """An example request. `python` is an expression of `florin`, the client; `yields`: it gives objects one by one. `query` has
    no question mark.
    """

    python: str
    body: Mapping[str, Any] | None = None
    query: str = ""
    yields: bool = False


_CHARGE = {"type": "charge", "order_id": "1002", "amount": 1990, "currency": "EUR", "token": "tok_paid"}
_REFUND = {"type": "refund", "payment_id": PAYMENT_ID, "amount": 500}
_ENDPOINT = {"url": "https://shop.example/webhooks", "event_types": ["payment.*", "refund.*"]}

EXAMPLES: Mapping[str, Example] = {
    "payments_create": Example(
        'payments.create(amount=1990, currency="EUR", order_id="1001", return_url="https://shop.example/return")',
        {"amount": 1990, "currency": "EUR", "order_id": "1001", "return_url": "https://shop.example/return"},
    ),
    "payments_list": Example(
        'payments.list(status="SUCCEEDED", order_id="1001")', query="status=SUCCEEDED&order_id=1001", yields=True
    ),
    "payments_read": Example(f'payments.get("{PAYMENT_ID}", wait_seconds=10)'),
    "payments_logs": Example(f'payments.logs("{PAYMENT_ID}")'),
    "payments_refunds": Example(f'payments.refunds("{PAYMENT_ID}")'),
    "operations_refund": Example(
        f'payments.refund("{PAYMENT_ID}", amount=500, reason="damaged")', {"amount": 500, "reason": "damaged"}
    ),
    "payments_refund": Example(f'payments.get_refund("{PAYMENT_ID}", "{REFUND_ID}")'),
    "payments_verify": Example(f'payments.verify("{PAYMENT_ID}")'),
    "operations_capture": Example(f'payments.capture("{PAYMENT_ID}", amount=1500)', {"amount": 1500}),
    "operations_cancel": Example(f'payments.cancel("{PAYMENT_ID}")', {}),
    "batches_create": Example(
        "batches.submit(\n"
        "    [\n"
        '        {"type": "charge", "order_id": "1002", "amount": 1990, "currency": "EUR", "token": "tok_paid"},\n'
        f'        {{"type": "refund", "payment_id": "{PAYMENT_ID}", "amount": 500}},\n'
        "    ],\n"
        "    deadline_seconds=300,\n"
        ")",
        {"items": [_CHARGE, _REFUND], "deadline_seconds": 300},
    ),
    "batches_list": Example("batches.list()", yields=True),
    "batches_read": Example(f'batches.get("{BATCH_ID}", wait_seconds=10)'),
    "batches_items": Example(f'batches.items("{BATCH_ID}")', query="after=0", yields=True),
    "batches_stop": Example(f'batches.stop("{BATCH_ID}")'),
    "batches_resume": Example(f'batches.resume("{BATCH_ID}", "{RESUME_TOKEN}")', {"resume_token": RESUME_TOKEN}),
    "ledger_wallets": Example("ledger.wallets()"),
    "ledger_statement": Example('ledger.statement(currency="EUR")', query="format=csv&currency=EUR", yields=True),
    "ledger_receipt": Example(f'payments.receipt("{PAYMENT_ID}")'),
    "ledger_receipt_keys": Example("ledger.receipt_keys()"),
    "events_list_all": Example(
        f'events.stream(after_seq={SEQ}, event_types=["payment.*"])', query=f"after={SEQ}&types=payment.*&wait=30", yields=True
    ),
    "events_read": Example(f"events.get({SEQ})"),
    "events_consumers": Example("consumers.list()"),
    "events_place_consumer": Example(f'consumers.acknowledge("bookkeeping", {SEQ})', {"acked_seq": SEQ}),
    "events_remove_consumer": Example('consumers.delete("bookkeeping")'),
    "events_ticket": Example(
        'events.create_ticket(origin="https://shop.example", event_types=["payment.*"])',
        {"origin": "https://shop.example", "event_types": ["payment.*"]},
    ),
    "endpoints_create": Example(
        'webhook_endpoints.create(url="https://shop.example/webhooks", event_types=["payment.*", "refund.*"])', _ENDPOINT
    ),
    "endpoints_list_all": Example("webhook_endpoints.list()"),
    "endpoints_read": Example(f'webhook_endpoints.get("{ENDPOINT_ID}")'),
    "endpoints_change": Example(f'webhook_endpoints.update("{ENDPOINT_ID}", enabled=True)', {"enabled": True}),
    "endpoints_remove": Example(f'webhook_endpoints.delete("{ENDPOINT_ID}")'),
    "endpoints_rotate": Example(
        f'webhook_endpoints.rotate_secret("{ENDPOINT_ID}", overlap_seconds=86400)', {"overlap_seconds": 86400}
    ),
    "keys_list_all": Example("api_keys.list()"),
    "keys_rotate": Example(f'api_keys.rotate("{KEY_ID}", overlap_seconds=86400)', {"overlap_seconds": 86400}),
    "endpoints_test": Example(f'webhook_endpoints.test("{ENDPOINT_ID}")'),
    "endpoints_replay": Example(
        f'webhook_endpoints.replay("{ENDPOINT_ID}", from_seq=1, to_seq={SEQ})', {"from_seq": 1, "to_seq": SEQ}
    ),
    "endpoints_deliveries": Example(
        f'webhook_endpoints.deliveries("{ENDPOINT_ID}", state="DEAD")', query="state=DEAD", yields=True
    ),
    "endpoints_delivery": Example(f'webhook_endpoints.delivery("{ENDPOINT_ID}", {SEQ})'),
    "endpoints_resend": Example(f'webhook_endpoints.resend("{ENDPOINT_ID}", {SEQ})'),
    "endpoints_dead_letters": Example(
        f'dead_letters.list(endpoint_id="{ENDPOINT_ID}")', query=f"endpoint_id={ENDPOINT_ID}", yields=True
    ),
    "endpoints_retry_letters": Example(f'dead_letters.retry(endpoint_id="{ENDPOINT_ID}")', {"endpoint_id": ENDPOINT_ID}),
    "endpoints_drop_letters": Example(
        f'dead_letters.drop(endpoint_id="{ENDPOINT_ID}", seq={SEQ})', {"endpoint_id": ENDPOINT_ID, "seq": SEQ}
    ),
}
"""By operation id."""


def concrete(path: str, example: Example) -> str:
    """A path with example identifiers, and the query."""
    for name, value in _SEGMENTS.items():
        path = path.replace(name, value)
    return f"{path}?{example.query}" if example.query else path


def curl(method: str, path: str, example: Example, *, needs_key: bool) -> str:
    """The request by curl."""
    target = concrete(path, example)
    url = f'"$FLORIN_API_URL{target}"'
    lines = [f"curl {'' if method == 'GET' else f'-X {method} '}{url}", '-H "Authorization: Bearer $FLORIN_API_KEY"']
    if needs_key:
        lines.append('-H "Idempotency-Key: $(openssl rand -hex 16)"')
    if example.body is not None:
        lines.append(f"-d '{json.dumps(example.body)}'")
    return " \\\n  ".join(lines)


def node(method: str, path: str, example: Example, *, needs_key: bool) -> str:
    """The request by node's fetch."""
    headers = ["Authorization: `Bearer ${process.env.FLORIN_API_KEY}`"]
    if needs_key:
        headers.append('"Idempotency-Key": crypto.randomUUID()')
    lines = [] if method == "GET" else [f'  method: "{method}",']
    lines.append(f"  headers: {{ {', '.join(headers)} }},")
    if example.body is not None:
        lines.append(f"  body: JSON.stringify({json.dumps(example.body)}),")
    target = concrete(path, example)
    return "\n".join(
        [f"const reply = await fetch(`${{process.env.FLORIN_API_URL}}{target}`, {{", *lines, "});", _node_result(method, path)]
    )


def _node_result(method: str, path: str) -> str:
    if method == "DELETE":
        return "console.log(reply.status);"
    is_text = path.endswith(("/statement", "/receipt"))
    return f"console.log(reply.status, await reply.{'text' if is_text else 'json'}());"


def python(example: Example) -> str:
    """The call by the client, which draws the idempotency key and repeats what was lost."""
    call = f"florin.{example.python}"
    return f"for one in {call}:\n    print(one)" if example.yields else f"print({call})"

"""The sandbox's control API: POST /control with a JSON object sets faults of the PSP, and makes it act by itself.

- Faults of calls, with `answer` for none (answer, slow, hang, hang_before, refuse, drop, lose, reset_before, reset_after, half,
  drip, throttle, conflict; see `server.sandbox.faults`): {"create" | "capture" | "close" | "void" | "refund" | "fetch" | "list":
  FAULT}, or {"fault": FAULT, "times": n} in its place; {"latency": {"seconds": s}} or {"from_seconds", "to_seconds"} or
  {"p50_seconds", "p99_seconds"}, null for none; {"outage_seconds": s, "outage": "reset" | "unavailable" | "hang"};
  {"requests_per_second_max": n}, past which it answers 429; {"count": "anew"} resets the counts.
- Webhooks: {"webhooks": "send" | "hold" | "release" | "reverse" | "repeat" | "lose" | "forge"}, {"webhook_delay_seconds": s},
  {"webhook_copies": n}.
- Acts of the PSP itself: {"refunds_end_as": "succeeded" | "pending" | "failed"}, {"end_refund": refund, "of": intent, "as": ...},
  {"refund_at_psp": intent, "amount_minor": n} (somebody refunds in the dashboard), {"expire": intent}, {"capture_late": intent},
  {"dispute": intent, "as": "opened" | "won" | "lost", "amount_minor": n}, {"emit": type} (an event of an unknown type).

The answer shows the settings and the counts: requests, the most in one second, and floods, the requests that got 429.
"""

from typing import Any
from uuid import uuid4

import msgspec

from core.nearest import unknown
from server.http.asgi import Send, respond
from server.sandbox.faults import CALLS, Faults, parse_seconds, require_one_of
from server.sandbox.intents import Intents, Step
from server.sandbox.webhooks import Webhooks

REPEATED = 20
"""The number of last events that the PSP sends again on request, or forges."""

COPIES_MAX = 100

_KNOWN = frozenset(
    {
        *CALLS,
        *("latency", "outage_seconds", "outage", "requests_per_second_max", "count"),
        *("webhooks", "webhook_delay_seconds", "webhook_copies", "refunds_end_as", "end_refund", "of", "as", "refund_at_psp"),
        *("amount_minor", "expire", "capture_late", "dispute", "emit"),
    }
)
_HOW = ("send", "hold", "release", "reverse", "repeat", "lose", "forge")
_REFUND_ENDS = ("succeeded", "pending", "failed")


async def control(intents: Intents, webhooks: Webhooks, faults: Faults, body: bytes, send: Send) -> None:
    """Carry out a control request; 422 if it is invalid."""
    try:
        wanted = msgspec.json.decode(body or b"{}", type=dict[str, Any])
        _require_known(intents, wanted)
        faults.set(wanted)
        forged = await _webhooks(webhooks, wanted)
        intents.refunds_end_as = wanted.get("refunds_end_as", intents.refunds_end_as)
        step = _act(intents, wanted)
        if step is not None and step.event_type:
            webhooks.emit(step.event_type, step.intent)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        await _json(send, 422, {"error": str(error)})
        return
    await _json(send, 200, {"webhooks_sent": webhooks.sent, "forged": forged, **faults.shown()})


def _require_known(intents: Intents, wanted: dict[str, Any]) -> None:
    for name in wanted:
        if name not in _KNOWN:
            raise ValueError(unknown("field", name, sorted(_KNOWN)))
    for name, values in (("webhooks", _HOW), ("refunds_end_as", _REFUND_ENDS)):
        if name in wanted:
            require_one_of(name, wanted[name], values)
    copies = wanted.get("webhook_copies", 1)
    if type(copies) is not int or not 1 <= copies <= COPIES_MAX:
        raise ValueError(f"webhook_copies: expected a number from 1 to {COPIES_MAX}")
    parse_seconds(wanted.get("webhook_delay_seconds", 0))
    for name in ("of", "refund_at_psp", "expire", "capture_late", "dispute"):
        if name in wanted:
            _known(intents, wanted[name])


async def _webhooks(webhooks: Webhooks, wanted: dict[str, Any]) -> dict[str, int]:
    webhooks.delay_seconds = float(wanted.get("webhook_delay_seconds", webhooks.delay_seconds))
    webhooks.copies = wanted.get("webhook_copies", webhooks.copies)
    match wanted.get("webhooks"):
        case "hold":
            webhooks.are_held = True
        case "release" | "send":
            webhooks.are_silent = False
            webhooks.release()
        case "reverse":
            webhooks.release(reverse=True)
        case "repeat":
            webhooks.repeat(REPEATED)
        case "lose":
            webhooks.are_silent = True
        case "forge":
            return await webhooks.forge(REPEATED)
    return {}


def _act(intents: Intents, wanted: dict[str, Any]) -> Step | None:
    """Carry out an act of the PSP itself."""
    match wanted:
        case {"end_refund": refund_id, "of": intent_id, "as": status}:
            return intents.end_refund(_known(intents, intent_id), refund_id, status)
        case {"refund_at_psp": intent_id, "amount_minor": amount}:
            return intents.refund(_known(intents, intent_id), f"re_{uuid4().hex}", amount)
        case {"expire": intent_id}:
            return intents.expire(_known(intents, intent_id))
        case {"capture_late": intent_id}:
            return intents.capture_late(_known(intents, intent_id))
        case {"dispute": intent_id, "as": ("opened" | "won" | "lost") as end, "amount_minor": amount}:
            return intents.dispute(_known(intents, intent_id), end, amount)
        case {"emit": str(event_type)}:
            return Step({"object": "unknown kind"}, event_type)
        case _:
            return None


def _known(intents: Intents, intent_id: str) -> dict[str, Any]:
    intent = intents.find(intent_id)
    if intent is None:
        raise ValueError(f"there is no intent {str(intent_id)[:60]!r}")
    return intent


async def _json(send: Send, status: int, answer: dict[str, Any]) -> None:
    await respond(send, status, msgspec.json.encode(answer), content_type=b"application/json")

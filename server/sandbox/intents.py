"""The sandbox PSP's own books: payment intents, pure and synchronous.

An intent is `open` until it is paid (`captured`, or `authorized` with manual capture), closed (`expired`, `canceled`) or ended
(`declined`). A refused card leaves it open for another one. The first to pay or close wins. An authorization is captured once, in
full or in part, or voided. A capture can be refunded up to its amount. Every movement of money is in a ledger, with which
Florin's is compared. An intent and its movements are one record of one journal, so a step and its movement are stored together or
not at all.
"""

import hashlib
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from server.sandbox.journal import Journal

PAID_CARD = "4242424242424242"
REFUSED_CARDS = {"4000000000000002": "card_declined", "4000000000009995": "insufficient_funds"}
LAST_CARD = "4000000000000069"
"""Ends the intent: declined for good, no other card is accepted."""

CHALLENGED_CARD = "4000000000003220"
"""The customer's bank asks the customer to confirm: 3-D Secure."""

CHALLENGED_TOKEN = "tok_3ds"  # noqa: S105 - a test card's
TOKENS = {
    "tok_paid": None,
    CHALLENGED_TOKEN: None,
    "tok_declined": "card_declined",
    "tok_insufficient_funds": "insufficient_funds",
}
"""Tokens that a merchant can send instead of a card, and their decline codes. Every account knows them."""

UNKNOWN_TOKEN = "unknown_token"  # noqa: S105 - the code of an error
ISSUED_BY = "_of_"
"""A token with this and an account's name is known to that account only, as real tokens are."""

AUTHORIZATION_SECONDS = 7 * 86_400

FINAL = frozenset({"captured", "expired", "canceled", "declined"})


class UnknownToken(ValueError):
    """The account does not know the token."""


@dataclass(frozen=True, slots=True)
class Step:
    """An intent after a step, and the type of the event to send, if any."""

    intent: dict[str, Any]
    event_type: str | None


class Intents:
    """The intents of one account."""

    def __init__(self, journal: Journal, public_url: str, *, account: str = "") -> None:
        self._journal = journal
        self.public_url = public_url
        self._account = account
        self.refunds_end_as = "succeeded"
        movements = [one for record in journal.entries.values() for one in record["movements"]]
        self._movements: list[dict[str, Any]] = sorted(movements, key=lambda one: one["number"])

    def create(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Open an intent, once per operation. Raises ValueError for invalid fields."""
        operation_id = str(UUID(fields["operation_id"]))
        known = self.of_operation(operation_id)
        if known is not None:
            return known
        amount = fields["amount_minor"]
        if type(amount) is not int or amount <= 0:
            raise ValueError("amount_minor must be a positive integer")
        intent_id = _intent_id(operation_id)
        intent: dict[str, Any] = {
            "id": intent_id,
            "status": "open",
            "amount_minor": amount,
            "currency": str(fields["currency"]),
            "payment_url": f"{self.public_url}/pay/{intent_id}",
            "return_url": fields.get("return_url"),
            "description": fields.get("description"),
            "order_id": fields.get("order_id"),
            "merchant_id": str(UUID(fields["merchant_id"])),
            "payment_id": str(UUID(fields["payment_id"])),
            "operation_id": operation_id,
            "created": int(time.time()),
            "challenge": None,
            "last_decline_code": None,
            "attempts": 0,
            "capture": "manual" if fields.get("capture") == "manual" else "automatic",
            "captured_minor": 0,
            "capture_before": None,
            "statement_descriptor": fields.get("statement_descriptor"),
            "refunds": {},
        }
        if fields.get("token") is not None:
            intent = self._charged(intent, str(fields["token"]))
        self._store(intent, ("charge", amount) if intent["status"] == "captured" else None)
        return intent

    def _charged(self, intent: dict[str, Any], token: str) -> dict[str, Any]:
        """The intent after its token was charged, in one step with opening it."""
        token, _, issuer = token.partition(ISSUED_BY)
        if issuer not in ("", self._account):
            raise UnknownToken("unknown token: another account has issued it")
        if token not in TOKENS:
            raise UnknownToken(f"unknown token: the sandbox has {', '.join(TOKENS)}")
        code = TOKENS[token]
        if token == CHALLENGED_TOKEN:
            return {**intent, "challenge": "token", "attempts": 1}
        if code is not None:
            return {**intent, "status": "declined", "last_decline_code": code, "attempts": 1}
        return {**intent, **self._paid(intent), "attempts": 1}

    def _paid(self, intent: dict[str, Any]) -> dict[str, Any]:
        if intent["capture"] == "manual":
            return {"status": "authorized", "capture_before": int(time.time()) + AUTHORIZATION_SECONDS}
        return {"status": "captured", "captured_minor": intent["amount_minor"]}

    def find(self, intent_id: str) -> dict[str, Any] | None:
        """The intent of that id."""
        record = self._journal.entries.get(intent_id)
        return record["intent"] if record is not None else None

    def of_operation(self, operation_id: str) -> dict[str, Any] | None:
        """The intent of one of Florin's operations, from which its id is derived. Raises ValueError if it is not a UUID."""
        return self.find(_intent_id(operation_id))

    def pay(self, intent: dict[str, Any], card: str) -> Step:
        """Try a card. Raises ValueError for one that is not a test card."""
        if intent["status"] != "open":
            return Step(intent, None)
        digits = "".join(character for character in card if character.isdigit())
        attempts = intent["attempts"] + 1
        if digits == PAID_CARD:
            return self._pay(intent, attempts=attempts)
        if digits == CHALLENGED_CARD:
            challenged = {**intent, "challenge": "card", "attempts": attempts}
            self._store(challenged)
            return Step(challenged, None)
        if digits == LAST_CARD:
            return self._step(intent, "intent.declined", status="declined", attempts=attempts, last_decline_code="card_blocked")
        if digits in REFUSED_CARDS:
            code = REFUSED_CARDS[digits]
            return self._step(intent, "intent.attempt_failed", attempts=attempts, last_decline_code=code)
        raise ValueError("This is not one of the test cards below.")

    def confirm(self, intent: dict[str, Any], *, is_customer: bool) -> Step:
        """End the bank's check with its result. A payment by token has no second card."""
        if intent["status"] != "open" or not intent["challenge"]:
            return Step(intent, None)
        if is_customer:
            return self._pay(intent, challenge=None)
        code = "authentication_failed"
        if intent["challenge"] == "token":
            return self._step(intent, "intent.declined", status="declined", challenge=None, last_decline_code=code)
        return self._step(intent, "intent.attempt_failed", challenge=None, last_decline_code=code)

    def _pay(self, intent: dict[str, Any], **changes: Any) -> Step:
        paid = self._paid(intent)
        charged = ("charge", intent["amount_minor"]) if paid["status"] == "captured" else None
        return self._step(intent, f"intent.{paid['status']}", charged, **changes, **paid)

    def close(self, intent: dict[str, Any], status: str) -> Step:
        """Close an open intent as `expired` or `canceled`. One that is not open is not changed."""
        if status not in ("expired", "canceled"):
            raise ValueError("close as expired or canceled")
        if intent["status"] != "open":
            return Step(intent, None)
        return self._step(intent, f"intent.{status}", status=status)

    def void(self, intent: dict[str, Any]) -> Step:
        """Release an authorization. An intent that is over is not changed. Raises ValueError for an open one."""
        if intent["status"] == "open":
            raise ValueError("nothing is authorized: close it instead")
        if intent["status"] != "authorized":
            return Step(intent, None)
        return self._step(intent, "intent.canceled", status="canceled")

    def capture_late(self, intent: dict[str, Any]) -> Step:
        """Capture although the intent is over, which no PSP should do and some do."""
        amount = intent["amount_minor"]
        return self._step(intent, "intent.captured", ("charge", amount), status="captured", captured_minor=amount)

    def expire(self, intent: dict[str, Any]) -> Step:
        """Let an open page or an authorization end by itself."""
        if intent["status"] in FINAL:
            return Step(intent, None)
        return self._step(intent, "intent.expired", status="expired")

    def capture(self, intent: dict[str, Any], amount_minor: int) -> Step:
        """Capture an authorization, once; the rest is released. Raises ValueError if that is not possible."""
        if intent["status"] == "captured" and intent["captured_minor"] == amount_minor:
            return Step(intent, None)
        if intent["status"] != "authorized":
            raise ValueError(f"an intent that is {intent['status']} cannot be captured")
        if type(amount_minor) is not int or not 0 < amount_minor <= intent["amount_minor"]:
            raise ValueError("amount_minor must be from 1 to what is authorized")
        charged = "charge", amount_minor
        return self._step(intent, "intent.captured", charged, status="captured", captured_minor=amount_minor)

    def refund(self, intent: dict[str, Any], refund_id: str, amount_minor: int) -> Step:
        """Refund, once per refund id. Raises ValueError if that is not possible."""
        if refund_id in intent["refunds"]:
            return Step(intent, None)
        before = sum(one["amount_minor"] for one in intent["refunds"].values() if one["status"] != "failed")
        if type(amount_minor) is not int or not 0 < amount_minor <= intent["captured_minor"] - before:
            raise ValueError("amount_minor must be from 1 to what is captured and not refunded")
        status = self.refunds_end_as
        given = ("refund", -amount_minor) if status == "succeeded" else None
        return self._with_refund(intent, refund_id, {"amount_minor": amount_minor, "status": status}, given)

    def end_refund(self, intent: dict[str, Any], refund_id: str, status: str) -> Step:
        """Let a refund succeed or fail later, even one that had succeeded. Raises ValueError if that is not possible."""
        if status not in ("succeeded", "failed") or refund_id not in intent["refunds"]:
            raise ValueError("unknown refund or end of a refund")
        known = intent["refunds"][refund_id]
        moved: Movement | None = None
        if known["status"] != status and "succeeded" in (known["status"], status):
            amount = known["amount_minor"]
            moved = ("refund", -amount) if status == "succeeded" else ("refund_failed", amount)
        return self._with_refund(intent, refund_id, {**known, "status": status}, moved)

    def _with_refund(self, intent: dict[str, Any], refund_id: str, refund: dict[str, Any], moved: "Movement | None") -> Step:
        return self._step(intent, "refund.updated", moved, refunds={**intent["refunds"], refund_id: refund})

    def dispute(self, intent: dict[str, Any], end: str, amount_minor: int) -> Step:
        """Open, win or lose a dispute: a customer's bank withholds money, and may return it. Raises ValueError for an intent that
        cannot be disputed.
        """
        if not intent["captured_minor"] or type(amount_minor) is not int or amount_minor <= 0:
            raise ValueError("only captured money can be disputed")
        if end in ("opened", "won"):
            self._store(intent, (f"dispute_{end}", -amount_minor if end == "opened" else amount_minor))
        return Step({**intent, "dispute": {"id": f"dis_{intent['id']}", "amount_minor": amount_minor}}, f"dispute.{end}")

    def window(self, *, created_from: int, created_before: int, after: str, limit: int) -> list[dict[str, Any]]:
        """A page of the intents of a time window, oldest first, behind the one of that id."""
        found: list[dict[str, Any]] = []
        is_after = not after
        for record in self._journal.entries.values():
            intent = record["intent"]
            if is_after and created_from <= intent.get("created", 0) < created_before:
                found.append(intent)
                if len(found) == limit:
                    break
            is_after = is_after or intent["id"] == after
        return found

    def movements(self, *, after: str, limit: int) -> list[dict[str, Any]]:
        """A page of the ledger, oldest first, behind the movement of that id."""
        start = next((at + 1 for at, one in enumerate(self._movements) if one["id"] == after), 0)
        return self._movements[start : start + limit]

    def balances(self) -> dict[str, int]:
        """The sum of all movements, by currency."""
        sums: dict[str, int] = {}
        for one in self._movements:
            sums[one["currency"]] = sums.get(one["currency"], 0) + one["amount_minor"]
        return sums

    def _step(self, intent: dict[str, Any], event_type: str, moved: "Movement | None" = None, **changes: Any) -> Step:
        after = {**intent, **changes}
        self._store(after, moved)
        return Step(after, event_type)

    def _store(self, intent: dict[str, Any], moved: "Movement | None" = None) -> None:
        """Store an intent with a movement of its money, if any. Raises OSError, having stored nothing."""
        record = self._journal.entries.get(intent["id"])
        movements = record["movements"] if record is not None else []
        if moved is None:
            self._journal.put(intent["id"], {"intent": intent, "movements": movements})
            return
        kind, amount_minor = moved
        movement = {
            "id": f"txn_{uuid4().hex}",
            "number": self._movements[-1]["number"] + 1 if self._movements else 1,
            "type": kind,
            "intent": intent["id"],
            "payment_id": intent["payment_id"],
            "amount_minor": amount_minor,
            "currency": intent["currency"],
            "created": int(time.time()),
        }
        self._journal.put(intent["id"], {"intent": intent, "movements": [*movements, movement]})
        self._movements.append(movement)


Movement = tuple[str, int]
"""The type of a movement, and its amount in minor units: negative if money leaves the merchant."""


def account_name(api_key: str) -> str:
    """The name of the account of an API key, for tokens that only it knows."""
    return hashlib.sha256(api_key.encode()).hexdigest()[:8]


def upgraded(intents: Journal, ledger: Path) -> None:
    """Move the movements of an older version, which had a journal of their own, into the records of their intents."""
    by_intent: dict[str, list[dict[str, Any]]] = {}
    if ledger.exists():
        with closing(Journal(ledger)) as old:
            for number, movement in enumerate(old.entries.values(), start=1):
                by_intent.setdefault(movement["intent"], []).append({**movement, "number": number})
    for key, intent in list(intents.entries.items()):
        if "intent" not in intent:
            intents.put(key, {"intent": intent, "movements": by_intent.get(key, [])})
    ledger.unlink(missing_ok=True)


def _intent_id(operation_id: str) -> str:
    return "int_" + UUID(operation_id).hex

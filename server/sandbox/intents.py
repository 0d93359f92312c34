"""The sandbox PSP's own books: payment intents, pure and synchronous.

An intent is `open` until it is paid (`captured`), closed (`expired`, `canceled`) or ended (`declined`). A refused card leaves
it open for another one. Whoever pays or closes first wins; after that nothing changes any more.
"""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

from server.sandbox.journal import Journal

PAID_CARD = "4242424242424242"
REFUSED_CARDS = {"4000000000000002": "card_declined", "4000000000009995": "insufficient_funds"}
LAST_CARD = "4000000000000069"
"""Ends the intent: declined for good, no other card is taken."""

FINAL = frozenset({"captured", "expired", "canceled", "declined"})


@dataclass(frozen=True, slots=True)
class Step:
    """An intent after something happened, and the type of the event to send, if there is one."""

    intent: dict[str, Any]
    event_type: str | None


class Intents:
    """The intents of one account."""

    def __init__(self, journal: Journal, public_url: str) -> None:
        self._journal = journal
        self._public_url = public_url

    def create(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Open an intent, once per operation. Raises ValueError for fields that cannot be."""
        operation_id = str(UUID(fields["operation_id"]))
        known = self.of_operation(operation_id)
        if known is not None:
            return known
        amount = fields["amount_minor"]
        if type(amount) is not int or amount <= 0:
            raise ValueError("amount_minor must be a positive whole number")
        intent_id = _intent_id(operation_id)
        intent = {
            "id": intent_id,
            "status": "open",
            "amount_minor": amount,
            "currency": str(fields["currency"]),
            "payment_url": f"{self._public_url}/pay/{intent_id}",
            "return_url": fields.get("return_url"),
            "description": fields.get("description"),
            "merchant_id": str(UUID(fields["merchant_id"])),
            "payment_id": str(UUID(fields["payment_id"])),
            "operation_id": operation_id,
            "last_decline_code": None,
            "attempts": 0,
        }
        self._store(intent)
        return intent

    def find(self, intent_id: str) -> dict[str, Any] | None:
        """The intent of that id."""
        return self._journal.entries.get(intent_id)

    def of_operation(self, operation_id: str) -> dict[str, Any] | None:
        """The intent that was opened for an operation of Florin's, which gave it its id. Raises ValueError for no UUID."""
        return self.find(_intent_id(operation_id))

    def pay(self, intent: dict[str, Any], card: str) -> Step:
        """Try a card. Raises ValueError for something that is not a test card."""
        if intent["status"] in FINAL:
            return Step(intent, None)
        digits = "".join(character for character in card if character.isdigit())
        attempts = intent["attempts"] + 1
        if digits == PAID_CARD:
            return self._step(intent, "intent.captured", status="captured", attempts=attempts)
        if digits == LAST_CARD:
            return self._step(intent, "intent.declined", status="declined", attempts=attempts, last_decline_code="card_blocked")
        if digits in REFUSED_CARDS:
            code = REFUSED_CARDS[digits]
            return self._step(intent, "intent.attempt_failed", attempts=attempts, last_decline_code=code)
        raise ValueError("This is not one of the test cards below.")

    def close(self, intent: dict[str, Any], status: str) -> Step:
        """Close an open intent as `expired` or `canceled`; one that is not open stays as it is."""
        if status not in ("expired", "canceled"):
            raise ValueError("close as expired or canceled")
        if intent["status"] in FINAL:
            return Step(intent, None)
        return self._step(intent, f"intent.{status}", status=status)

    def _step(self, intent: dict[str, Any], event_type: str, **changes: Any) -> Step:
        after = {**intent, **changes}
        self._store(after)
        return Step(after, event_type)

    def _store(self, intent: dict[str, Any]) -> None:
        self._journal.put(intent["id"], intent)


def _intent_id(operation_id: str) -> str:
    return "int_" + UUID(operation_id).hex

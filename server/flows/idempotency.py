"""One effect for one key, for what is asked of a payment that exists: capture, cancel, refund.

The key is committed before anything else happens. A request that died is taken over, once, by a later one with its key, which
finds out from the payment (or the refund, whose id was drawn with the key) how far it had come.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import trio

from core.idempotency import InFlight, Mismatch, Replay, Resume, StoredKey, decide
from core.ids import MerchantId, PaymentId, RefundId
from server.db.payments.idempotency_keys import claim_key, end_flight, find_key, store_reply, take_over_key
from server.flows.services import Services

IN_FLIGHT_MARGIN_SECONDS = 5.0
CALLS_MAX = 4
"""How many calls to a PSP a capture, cancel or refund may make, one after the other."""

POLL_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Request:
    """A merchant's request: its key and fingerprint, and how long it is willing to wait for another one with the key."""

    merchant_id: MerchantId
    key: str
    fingerprint: bytes
    wait_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Claimed:
    """The key is ours until then. `resumed`: an earlier request with it died on the way."""

    refund_id: RefundId | None
    resumed: bool
    in_flight_until: datetime


async def claim(
    services: Services, request: Request, payment_id: PaymentId, *, operation: str, refund_id: RefundId | None = None
) -> Claimed | Replay | Mismatch | InFlight:
    """Take the key, or say why it cannot be taken. Raises `DatabaseUnavailable`, `Overloaded`."""
    give_up_at = trio.current_time() + request.wait_seconds
    while True:
        now = services.now()
        in_flight_until = now + timedelta(seconds=CALLS_MAX * services.psp_seconds + IN_FLIGHT_MARGIN_SECONDS)
        async with services.db.pool.connection() as connection:
            stored = await claim_key(
                connection,
                request.merchant_id,
                payment_id,
                key=request.key,
                fingerprint=request.fingerprint,
                operation=operation,
                refund_id=refund_id,
                in_flight_until=in_flight_until,
                now=now,
            )
            if stored is None:
                return Claimed(refund_id, resumed=False, in_flight_until=in_flight_until)
            decision = decide(stored, request.fingerprint, now=now)
            if isinstance(decision, Resume):
                if await take_over_key(connection, request.merchant_id, request.key, stored, in_flight_until=in_flight_until):
                    return Claimed(stored.refund_id, resumed=True, in_flight_until=in_flight_until)
                decision = InFlight()
        if not isinstance(decision, InFlight) or trio.current_time() >= give_up_at:
            return decision
        await trio.sleep(POLL_SECONDS)


async def wait_for_reply(services: Services, request: Request) -> StoredKey | None:
    """What is stored under a key that is in flight, once it no longer is; None where it still is after the request's patience."""
    give_up_at = trio.current_time() + request.wait_seconds
    while trio.current_time() < give_up_at:
        await trio.sleep(POLL_SECONDS)
        async with services.db.pool.connection() as connection:
            stored = await find_key(connection, request.merchant_id, request.key)
        if stored is not None and not isinstance(decide(stored, request.fingerprint, now=services.now()), InFlight):
            return stored
    return None


async def answer(services: Services, request: Request, *, status: int, body: bytes) -> None:
    """Keep a definitive reply where no change carries it."""
    async with services.db.pool.connection() as connection:
        await store_reply(connection, request.merchant_id, request.key, status=status, body=body)


async def give_up(services: Services, request: Request, claimed: Claimed) -> None:
    """The request ends without a definitive reply: its retry need not wait."""
    async with services.db.pool.connection() as connection:
        await end_flight(connection, request.merchant_id, request.key, in_flight_until=claimed.in_flight_until)

"""One effect and one reply per idempotency key, for requests about existing objects.

Capture, cancel and refund claim their key themselves; requests about webhook endpoints go through `once`. The key is committed
before anything else happens. A later request with the key of a dead one takes it over, once, and finds out from the payment (or
the refund, whose id was drawn with the key) how far it had come.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from types import TracebackType
from uuid import UUID

import msgspec
import trio

from core.errors import DatabaseUnavailable, Overloaded, PspError, RequestError
from core.idempotency import InFlight, KeyedOperation, Mismatch, Replay, Reply, Resume, StoredKey, decide
from core.ids import MerchantId, ResourceId
from server.db.payments.idempotency_keys import (
    Flight,
    claim_key,
    find_key,
    forget_key,
    release_key,
    store_reply,
    take_over_key,
)
from server.flows.contexts import Keys, SealedKeys
from server.psp.turn import Turn

IN_FLIGHT_MARGIN_SECONDS = 5.0
CALLS_MAX = 4
"""The most calls to a PSP that a capture, cancel or refund makes, one after another."""

END_SECONDS = 2.0
"""The longest time for which a reply waits for the end of its flight."""

POLL_SECONDS = 0.05
_PLACE = "idempotency_keys.reply"


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """A merchant's request: its key and fingerprint, and how long it waits for another request with the same key.

    What it creates gets its `id`, so one request is passed to a flow once.

    `reply_status` is the HTTP status of its definitive reply, decided by the API and stored with the reply.
    """

    id: UUID
    merchant_id: MerchantId
    key: str
    fingerprint: bytes
    reply_status: int
    wait_seconds: float = 0.0


class Claimed(msgspec.Struct, frozen=True):
    """The key is ours until `in_flight_until`. `resumed`: an earlier request with it died."""

    made_id: ResourceId | None
    resumed: bool
    in_flight_until: datetime


async def claim(
    context: Keys,
    request: Request,
    resource_id: ResourceId,
    *,
    operation: KeyedOperation,
    made_id: ResourceId | None = None,
    turn: Turn | None = None,
) -> Claimed | Replay | Mismatch | InFlight:
    """Claim the key, or return why it cannot be claimed. `turn` gives its place back before another request is waited for.

    Raises `DatabaseUnavailable`, `Overloaded`.
    """
    give_up_at = trio.current_time() + request.wait_seconds
    while True:
        now = context.now()
        in_flight_until = now + timedelta(seconds=CALLS_MAX * context.psp_seconds + IN_FLIGHT_MARGIN_SECONDS)
        async with context.pool.connection() as connection:
            stored = await claim_key(
                connection,
                request.merchant_id,
                key=request.key,
                fingerprint=request.fingerprint,
                operation=operation,
                resource_id=resource_id,
                made_id=made_id,
                in_flight_until=in_flight_until,
                owner=context.worker_id,
                now=now,
            )
            if stored is None:
                return Claimed(made_id, resumed=False, in_flight_until=in_flight_until)
            decision = decide(stored, request.fingerprint)
            if isinstance(decision, Resume):
                is_ours = await take_over_key(
                    connection, request.merchant_id, request.key, stored, in_flight_until=in_flight_until, owner=context.worker_id
                )
                if is_ours:
                    return Claimed(stored.made_id, resumed=True, in_flight_until=in_flight_until)
                decision = InFlight()
        if not isinstance(decision, InFlight) or trio.current_time() >= give_up_at:
            return decision
        if turn is not None:
            turn.release()
        await trio.sleep(POLL_SECONDS)


async def wait_for_reply(context: Keys, request: Request) -> StoredKey | None:
    """Return what is stored under a key once it is no longer in flight, or None if it still is when the request's wait is
    over.
    """
    give_up_at = trio.current_time() + request.wait_seconds
    while trio.current_time() < give_up_at:
        await trio.sleep(POLL_SECONDS)
        async with context.pool.connection() as connection:
            stored = await find_key(connection, request.merchant_id, request.key)
        if stored is not None and not isinstance(decide(stored, request.fingerprint), InFlight):
            return stored
    return None


async def answer(context: Keys, request: Request, body: bytes) -> None:
    """Store a definitive reply that no change carries."""
    async with context.pool.connection() as connection:
        await store_reply(connection, request.merchant_id, request.key, Reply(request.reply_status, body))


async def give_up(context: Keys, request: Request, claimed: Claimed) -> None:
    """End the request without a definitive reply, so that its retry need not wait."""
    await end_flight(context, request, in_flight_until=claimed.in_flight_until)


async def end_flight(context: Keys, request: Request, *, in_flight_until: datetime) -> None:
    """End the flight of a key. If the database cannot do so now, the heartbeat does it later."""
    try:
        async with context.pool.connection() as connection:
            await release_key(connection, request.merchant_id, request.key, in_flight_until=in_flight_until)
    except (DatabaseUnavailable, Overloaded):
        context.flights.add(Flight(request.merchant_id, request.key, in_flight_until))


class EndedByFailure:
    """A block that carries out a request whose key is ours until `in_flight_until`: `end_failed_flight` if it fails."""

    __slots__ = ("_context", "_in_flight_until", "_request")

    def __init__(self, context: Keys, request: Request, *, in_flight_until: datetime) -> None:
        self._context = context
        self._request = request
        self._in_flight_until = in_flight_until

    async def __aenter__(self) -> None:
        pass

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, Exception):
            # shielded and bounded there
            await end_failed_flight(  # noqa: ASYNC102 - see above
                self._context, self._request, error, in_flight_until=self._in_flight_until
            )


async def end_failed_flight(context: Keys, request: Request, error: Exception, *, in_flight_until: datetime) -> None:
    """End the flight of a request that has failed, whose key is ours until `in_flight_until`, so that a retry need not wait:
    before the reply if the PSP has failed, soon after it if our database has.
    """
    if isinstance(error, PspError):
        with trio.move_on_after(END_SECONDS, shield=True) as scope:
            await end_flight(context, request, in_flight_until=in_flight_until)
        if not scope.cancelled_caught:
            return
    context.flights.add(Flight(request.merchant_id, request.key, in_flight_until))


async def once(
    context: SealedKeys, request: Request, work: Callable[[UUID], Awaitable[bytes]], *, about: UUID | None = None
) -> Reply | Replay | Mismatch | InFlight:
    """Carry out a request about webhook endpoints, unless it was carried out before.

    `work` returns the body of the reply. It gets an id that is drawn with the key for what it creates, so a request that takes
    over from a dead one creates the same object; it must tolerate being run twice with the same id. `about` is the endpoint
    concerned, or None for a new one. An exception of `work` is not a definitive reply. Replies are stored sealed: they may
    contain a secret that is shown only to requests with this key.
    """
    made = request.id
    outcome = await claim(
        context, request, ResourceId(about or made), operation=KeyedOperation.ENDPOINT, made_id=ResourceId(made)
    )
    if isinstance(outcome, Replay):
        return Replay(Reply(outcome.reply.status, _opened(context, request, outcome.reply.body)))
    if isinstance(outcome, Mismatch | InFlight):
        return outcome
    assert outcome.made_id is not None
    failure: Exception | None = None
    try:
        body = await work(outcome.made_id)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = error
    if failure is not None:
        if isinstance(failure, RequestError) and not outcome.resumed:  # nothing was done: the key is free for a corrected request
            async with context.pool.connection() as connection:
                await forget_key(connection, request.merchant_id, request.key)
        else:
            await give_up(context, request, outcome)
        raise failure
    await answer(context, request, _sealed(context, request, body))
    return Reply(request.reply_status, body)


def _sealed(context: SealedKeys, request: Request, body: bytes) -> bytes:
    return base64.b64encode(context.sealer.seal(body.decode(), table=_PLACE, row=_row(request), merchant=request.merchant_id))


def _opened(context: SealedKeys, request: Request, body: bytes) -> bytes:
    sealed = base64.b64decode(body)
    return context.sealer.open(sealed, table=_PLACE, row=_row(request), merchant=request.merchant_id).encode()


def _row(request: Request) -> UUID:
    """The name of a key's row, which ties a sealed reply to its own key."""
    return UUID(bytes=hashlib.sha256(request.key.encode()).digest()[:16])

"""Fetches payments from the PSP and applies the result (promise:unknown-not-declined)."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

import structlog
import trio
from msgspec.structs import replace

from core.errors import (
    DatabaseUnavailable,
    FlorinError,
    NotFound,
    Overloaded,
    PspBusy,
    PspError,
    PspOutcomeUnknown,
)
from core.evidence import Evidence, EvidenceKind, Source
from core.ids import PaymentId
from core.payment import Payment, Status, is_provisionally_declined
from server.db.payments.payments import find_payment, postpone
from server.flows.contexts import Psps
from server.flows.idempotency import Request
from server.flows.payments.settle import settle

SYNC_EXPIRES_SECONDS = 60
"""The time for which a sync payment without an answer is left to its request. After that it is fetched and never charged."""

ABSENCES_MIN = 3
ABSENCE_PAUSE_SECONDS = 2.0
"""A charge that the PSP says so often not to know, in such intervals, was never received."""

CONCURRENCY_MAX = 2_500
_log = structlog.get_logger()
BUSY_SECONDS = 0.1
TRIES_MAX = 3_600
"""The most tries of one payment while the PSP or our limits have no room: an hour, at a second each."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The payment after a fetch; `failure` says why nothing was learned."""

    payment: Payment
    failure: FlorinError | None = None


async def look(context: Psps, payment: Payment, *, source: Source) -> Evidence:
    """Fetch the payment from the PSP. Raises `PspError` if nothing was learned within the PSP deadline."""
    try:
        with trio.fail_after(context.psp_seconds), context.turn(payment.merchant_id):
            adapter = await context.psps.of(payment.psp_account_id)
            return await adapter.fetch(payment, source=source)
    except trio.TooSlowError as error:
        raise PspOutcomeUnknown("the PSP did not answer in time") from error


async def verify(context: Psps, payment: Payment, *, source: Source) -> Payment:
    """Fetch a payment's operation and return the payment after it. Never charges.

    A decline or an absence is evidence only about the payment as it was when the PSP was asked. If it changed meanwhile, the
    evidence is dropped, so the second check of a decline is always younger than the first.

    Raises `PspError` if nothing was learned within the PSP deadline, `DatabaseUnavailable`, `Overloaded`.
    """
    evidence = await look(context, payment, source=source)
    if evidence.kind is EvidenceKind.NOT_FOUND and source is Source.RECHECK and payment.status is Status.UNKNOWN:
        evidence = await proven(context, payment, evidence)
    about_then = evidence.kind in (EvidenceKind.DECLINED, EvidenceKind.NOT_FOUND, EvidenceKind.UNREACHABLE)
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment, only_if_unchanged=about_then)
    assert settled is not None
    if settled.changed and settled.payment.status is Status.DECLINED:
        await _close_declined(context, settled.payment)
    if evidence.kind is EvidenceKind.NOT_FOUND and settled.payment.status is Status.UNKNOWN:
        await look_once_it_proves(context, settled.payment)
    return settled.payment


async def absence_proves_at(context: Psps, payment: Payment) -> datetime:
    """The time from which a charge that the PSP does not know can no longer arrive there."""
    adapter = await context.psps.of(payment.psp_account_id)
    seconds = SYNC_EXPIRES_SECONDS + context.psp_seconds + adapter.capabilities.arrival_seconds
    return payment.created_at + timedelta(seconds=seconds)


async def look_once_it_proves(context: Psps, payment: Payment) -> None:
    """Have a charge that the PSP does not know looked at as soon as its absence proves that it was never received."""
    if not payment.is_sync or payment.reference is not None or payment.due_at is None:
        return
    proves_at = await absence_proves_at(context, payment)
    if proves_at < payment.due_at or payment.status is Status.PENDING:
        async with context.pool.connection() as connection:
            await postpone(connection, payment, due_at=proves_at)


async def proven(context: Psps, payment: Payment, absent: Evidence) -> Evidence:
    """Fetch a charge that the PSP does not know several times more, once it can no longer arrive. If the PSP never knows it, it
    was never received: UNREACHABLE. Returns `absent` if that cannot be told yet.
    """
    if not payment.is_sync or payment.reference is not None or context.now() <= await absence_proves_at(context, payment):
        return absent
    for _ in range(ABSENCES_MIN - 1):
        await trio.sleep(ABSENCE_PAUSE_SECONDS)
        evidence = await look(context, payment, source=Source.RECHECK)
        if evidence.kind is not EvidenceKind.NOT_FOUND:
            return evidence
    return replace(absent, kind=EvidenceKind.UNREACHABLE)


async def _close_declined(context: Psps, payment: Payment) -> None:
    """Close, in the background, a declined payment that could be paid in another way at a PSP that charges in two steps."""
    adapter = await context.psps.find(payment.psp_account_id)
    if adapter is None or not payment.is_sync or adapter.two_steps is None:
        return
    try:
        context.background.start(partial(close_ended_payment, context, payment))
    except Overloaded:
        _log.warning("a declined payment is left open at its PSP", payment=payment.public_id)


async def close_ended_payment(context: Psps, payment: Payment) -> None:
    """Close what the PSP has open of a payment that is over. If that fails, money that arrives is late."""
    with trio.move_on_after(context.psp_seconds), context.turn(payment.merchant_id):
        try:
            adapter = await context.psps.of(payment.psp_account_id)
            evidence = await adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.CREATE)
        except PspError as error:
            _log.warning("a payment that is over is left open at its PSP", payment=payment.public_id, error=str(error))
            return
        await settle(context, payment.merchant_id, payment.id, evidence, known=payment)


async def verify_if_possible(context: Psps, payment: Payment, *, source: Source, seconds: float) -> Payment:
    """Like `verify`, but any failure within `seconds` leaves the payment as it was known."""
    with trio.move_on_after(seconds):
        try:
            return await verify(context, payment, source=source)
        except (PspError, DatabaseUnavailable, Overloaded):
            pass
    return payment


async def verify_again(context: Psps, payment: Payment) -> Payment:
    """Fetch a declined payment for the second time. If nothing can be learned now, the follow-up job does it."""
    return await verify_if_possible(context, payment, source=Source.RECHECK, seconds=context.psp_seconds)


async def verify_all(
    context: Psps,
    payments: Iterable[Payment],
    send: trio.MemorySendChannel[Verified],
    *,
    source: Source,
    seconds: float = math.inf,
    concurrency: int = CONCURRENCY_MAX,
) -> None:
    """Fetch any number of payments, with that concurrency, and send each result as soon as it is committed.

    A new decline is fetched exactly once more. While the PSP or our own limits have no room, a payment waits, and nothing has
    been sent. After `seconds` the fetching stops: payments not fetched by then are not sent, and committed results stay.
    `payments` is read only as far as needed, so it may be endless; memory is used for `concurrency` calls. `send` is closed at
    the end.
    """
    left = iter(payments)
    async with send:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for _ in range(concurrency):
                    first = next(left, None)
                    if first is None:
                        break
                    nursery.start_soon(_verify_one_after_another, context, first, left, send, source)


async def _verify_one_after_another(
    context: Psps, first: Payment, left: Iterator[Payment], send: trio.MemorySendChannel[Verified], source: Source
) -> None:
    payment: Payment | None = first
    while payment is not None:
        await send.send(await verify_or_wait(context, payment, source))
        payment = next(left, None)


async def verify_or_wait(context: Psps, payment: Payment, source: Source) -> Verified:
    """Verify a payment, with the second check of a decline. Waits while there is no room."""
    for _ in range(TRIES_MAX):
        try:
            after = await verify(context, payment, source=source)
            if is_provisionally_declined(after) and not is_provisionally_declined(payment):
                after = await verify_again(context, after)
            return Verified(after)
        except (PspBusy, Overloaded) as error:
            failure, wait_seconds = error, error.retry_after_seconds if isinstance(error, PspBusy) else BUSY_SECONDS
        except FlorinError as error:
            return Verified(payment, error)
        await trio.sleep(max(wait_seconds, BUSY_SECONDS))
    return Verified(payment, failure)


async def read(context: Psps, request: Request, payment_id: PaymentId) -> Payment:
    """The merchant's payment. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, request.merchant_id, payment_id)
    if payment is None:
        raise NotFound("no such payment")
    return payment


async def load(context: Psps, request: Request, payment_id: PaymentId) -> Payment:
    """The merchant's payment; an UNKNOWN one is fetched first. Raises `NotFound`."""
    payment = await read(context, request, payment_id)
    if payment.status is Status.UNKNOWN:
        payment = await verify_if_possible(context, payment, source=Source.ACCESS, seconds=context.psp_seconds)
    return payment

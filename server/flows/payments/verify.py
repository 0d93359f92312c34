"""Ask the PSP how payments stand, and apply what it says."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

import structlog
import trio

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
from server.db.payments.payments import find_payment
from server.flows.contexts import Psps
from server.flows.idempotency import Request
from server.flows.payments.settle import settle

CONCURRENCY_MAX = 2_500
_log = structlog.get_logger()
BUSY_SECONDS = 0.1
PATIENCE_MAX = 3_600
"""How often one payment is tried while there is no room: with every wait a second, an hour."""


@dataclass(frozen=True, slots=True)
class Verified:
    """A payment after it was asked about; `failure` says why nothing was learned."""

    payment: Payment
    failure: FlorinError | None = None


async def look(context: Psps, payment: Payment, *, source: Source) -> Evidence:
    """How the payment stands at the PSP. Raises `PspError` where nothing was learned within the PSP deadline."""
    try:
        with trio.fail_after(context.psp_seconds):
            adapter = await context.psps.of(payment.psp_account_id)
            return await adapter.fetch(payment, source=source)
    except trio.TooSlowError as error:
        raise PspOutcomeUnknown("the PSP did not answer in time") from error


async def verify(context: Psps, payment: Payment, *, source: Source) -> Payment:
    """The payment after a fetch of its operation. Never charges.

    A decline or an absence is evidence only about the payment as it was when we asked: with another change in between it is
    dropped, so that the second look at a decline is always younger than the first.

    Raises `PspError` where nothing was learned within the PSP deadline, `DatabaseUnavailable`, `Overloaded`.
    """
    evidence = await look(context, payment, source=source)
    about_then = evidence.kind in (EvidenceKind.DECLINED, EvidenceKind.NOT_FOUND)
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment, only_if_unchanged=about_then)
    assert settled is not None
    if settled.changed and settled.payment.status is Status.DECLINED:
        await _close_declined(context, settled.payment)
    return settled.payment


async def _close_declined(context: Psps, payment: Payment) -> None:
    """At a PSP that charges in two steps what was declined could be paid in another way: close it, behind the reply."""
    adapter = await context.psps.find(payment.psp_account_id)
    if adapter is None or not payment.is_sync or adapter.two_steps is None:
        return
    try:
        context.background.start(partial(close_what_is_over, context, payment))
    except Overloaded:
        _log.warning("a declined payment is left open at its PSP", payment=str(payment.id))


async def close_what_is_over(context: Psps, payment: Payment) -> None:
    """Close what the PSP has open of a payment that is over. Where that fails, money that comes is late."""
    with trio.move_on_after(context.psp_seconds):
        try:
            adapter = await context.psps.of(payment.psp_account_id)
            evidence = await adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.CREATE)
        except PspError as error:
            _log.warning("a payment that is over is left open at its PSP", payment=str(payment.id), error=str(error))
            return
        await settle(context, payment.merchant_id, payment.id, evidence, known=payment)


async def verify_if_possible(context: Psps, payment: Payment, *, source: Source, seconds: float) -> Payment:
    """Like `verify`, but whatever goes wrong within `seconds` leaves the payment as it was known."""
    with trio.move_on_after(seconds):
        try:
            return await verify(context, payment, source=source)
        except (PspError, DatabaseUnavailable, Overloaded):
            pass
    return payment


async def verify_again(context: Psps, payment: Payment) -> Payment:
    """The second look at a decline; where nothing can be learned now, the follow-up job looks."""
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
    """Ask about any number of payments, so many at once, and send each result the moment it is committed.

    A decline that is heard of first is looked at exactly once more. While the PSP, or our own limits, have no room, it waits:
    nothing was sent then. After `seconds` it stops: what was not asked about by then is not sent, and what was committed stays.
    `payments` is read as far as it is needed, so it may be endless; the memory used is that of `concurrency` calls. `send` is
    closed.
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
        await send.send(await verify_patiently(context, payment, source))
        payment = next(left, None)


async def verify_patiently(context: Psps, payment: Payment, source: Source) -> Verified:
    """Verify a payment, with the second look at a decline; while there is no room, wait."""
    for _ in range(PATIENCE_MAX):
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


async def load(context: Psps, request: Request, payment_id: PaymentId) -> Payment:
    """The merchant's payment; one that is UNKNOWN is asked about first. Raises `NotFound`."""
    async with context.pool.connection() as connection:
        payment = await find_payment(connection, request.merchant_id, payment_id)
    if payment is None:
        raise NotFound("no such payment")
    if payment.status is Status.UNKNOWN:
        payment = await verify_if_possible(context, payment, source=Source.ACCESS, seconds=context.psp_seconds)
    return payment

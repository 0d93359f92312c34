"""Give money back: in full, in part, several times.

The refund is committed and the wallet charged before the PSP is asked; its id is the PSP's idempotency key. Whatever the PSP
says, at once or days later, goes through the refund's transition function. One whose request died is finished by the follow-up
job.
"""

from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid5

import structlog
import trio

from core.due import COMPLETE_AFTER_SECONDS
from core.errors import Conflict, PspError, PspOutcomeUnknown, PspRejected, PspUnreachable
from core.evidence import Evidence, EvidenceKind, Source
from core.idempotency import InFlight, Mismatch, Replay
from core.ids import PaymentId, RefundId
from core.payment import Payment, Status
from core.refund import Refund, RefundStatus
from core.refund_transition import Balances, request_refund
from server.db.change_batch import ChangeRow
from server.db.payments import find_payment
from server.db.refunds import find_refund
from server.db.under_lock import change_under_lock
from server.flows.idempotent import Claimed, Request, answer, claim, give_up
from server.flows.operate import PSP_KEY_LIFETIME, load
from server.flows.services import Services
from server.flows.settle import Answering, encode_refund, row_of, settle_refund
from server.new_ids import uuid7

CREATED = 201
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Refunded:
    """The refund as it stands; `failure` says why nothing is known of it yet, `is_answered` that the reply is stored."""

    refund: Refund
    failure: PspError | None = None
    replayed: bool = False
    is_answered: bool = False


Outcome = Refunded | Replay | Mismatch | InFlight


async def refund(
    services: Services, request: Request, payment_id: PaymentId, *, amount_minor: int | None, reason: str | None
) -> Outcome:
    """Refund an amount, or all that is left. Raises `NotFound`, `Conflict`."""
    payment = await load(services, request, payment_id)
    if payment.status is not Status.SUCCEEDED:
        raise Conflict(f"a payment that is {payment.status} has no money to give back", code="not_refundable")
    claimed = await claim(services, request, payment_id, operation="refund", refund_id=RefundId(uuid7()))
    if not isinstance(claimed, Claimed):
        return claimed
    assert claimed.refund_id is not None
    accepted = await accept(
        services, payment, claimed.refund_id, amount_minor=amount_minor, reason=reason, source=Source.MERCHANT
    )
    if isinstance(accepted, Conflict):
        await give_up(services, request)
        raise accepted
    sent = await send(services, payment, accepted, answering=Answering(request.key, CREATED))
    if sent.failure is not None:
        await give_up(services, request)
    elif not sent.is_answered:
        await answer(services, request, status=CREATED, body=encode_refund(sent.refund))
    return Refunded(sent.refund, failure=sent.failure, replayed=claimed.resumed)


async def accept(
    services: Services, payment: Payment, refund_id: RefundId, *, amount_minor: int | None, reason: str | None, source: Source
) -> Refund | Conflict:
    """Commit a refund, once per id; a `Conflict` where payment or wallet do not hold enough."""

    def decide(locked: Payment, balances: Balances) -> ChangeRow:
        amount = amount_minor if amount_minor is not None else locked.refundable_minor
        change = request_refund(
            locked, refund_id, amount_minor=amount, reason=reason, balances=balances, source=source, now=services.now()
        )
        return row_of(change)

    async with services.db.pool.connection() as connection:
        known = await find_refund(connection, payment.merchant_id, payment.id, refund_id)
        if known is not None:
            return known
        try:
            written = await change_under_lock(connection, services.db.change_batch, payment.merchant_id, payment.id, decide)
        except Conflict as error:
            return error
    assert written is not None
    accepted = written[0].change.refund
    assert accepted is not None
    return accepted


async def send(services: Services, payment: Payment, accepted: Refund, *, answering: Answering | None = None) -> Refunded:
    """Ask the PSP for a refund and apply what it says. Repeating it changes nothing."""
    failure: PspError | None = None
    try:
        with trio.fail_after(services.psp_seconds):
            adapter = await services.psps.of(payment.psp_account_id)
            evidence = await adapter.refund(payment, accepted)
    except PspUnreachable as error:
        return Refunded(accepted, failure=error)
    except PspRejected as error:
        _log.warning("the PSP refused a refund", refund=str(accepted.id), error=str(error))
        evidence = _about(payment, accepted, EvidenceKind.REFUND_FAILED, code="refused_by_the_psp")
    except (PspOutcomeUnknown, trio.TooSlowError) as error:
        failure = error if isinstance(error, PspError) else PspOutcomeUnknown("the PSP did not answer in time")
        evidence, answering = _about(payment, accepted, EvidenceKind.REFUND_LOST), None
    settled = await settle_refund(services, payment.merchant_id, payment.id, accepted.id, evidence, answering=answering)
    assert settled is not None
    assert settled.refund is not None
    is_open = settled.refund.status in (RefundStatus.PENDING, RefundStatus.UNKNOWN)
    return Refunded(settled.refund, failure=failure if is_open else None, is_answered=settled.changed and answering is not None)


async def finish_refund(services: Services, due: Refund) -> None:
    """Find out how a refund stands; repeat it where the PSP does not know it, within the PSP's key lifetime.

    Raises `PspError` where nothing was learned.
    """
    async with services.db.pool.connection() as connection:
        payment = await find_payment(connection, due.merchant_id, due.payment_id)
    assert payment is not None
    with trio.fail_after(services.psp_seconds):
        adapter = await services.psps.of(due.psp_account_id)
        evidence = await adapter.fetch_refund(payment, due, source=Source.RECHECK)
    is_absent = evidence.kind is EvidenceKind.REFUND_NOT_FOUND
    age = services.now() - due.created_at
    if is_absent and timedelta(seconds=COMPLETE_AFTER_SECONDS / 2) < age < PSP_KEY_LIFETIME:
        sent = await send(services, payment, due)
        if sent.failure is not None:
            raise sent.failure
        return
    await settle_refund(services, due.merchant_id, due.payment_id, due.id, evidence)


async def look_in_vain(services: Services, due: Refund) -> None:
    """Count a look at a refund that brought nothing, so that looking ends with a finding for a person."""
    async with services.db.pool.connection() as connection:
        payment = await find_payment(connection, due.merchant_id, due.payment_id)
    assert payment is not None
    evidence = _about(payment, due, EvidenceKind.REFUND_NOT_FOUND, source=Source.RECHECK)
    await settle_refund(services, due.merchant_id, due.payment_id, due.id, evidence)


async def give_back(services: Services, payment: Payment) -> None:
    """Refund money that came after its payment was over, once: the refund's id is the payment's own.

    Raises `Conflict` where the wallet does not hold enough: the next look tries again.
    """
    refund_id = RefundId(uuid5(payment.id, "late"))
    accepted = await accept(services, payment, refund_id, amount_minor=None, reason="paid too late", source=Source.POLICY)
    if isinstance(accepted, Conflict):
        raise accepted
    await send(services, payment, accepted)


def _about(
    payment: Payment, refund: Refund, kind: EvidenceKind, *, code: str | None = None, source: Source = Source.MERCHANT
) -> Evidence:
    return Evidence(
        kind=kind,
        source=source,
        psp_account_id=refund.psp_account_id,
        operation_id=payment.operation_id,
        money=refund.money if kind is EvidenceKind.REFUND_FAILED else None,
        code=code,
        refund_id=refund.id,
    )

"""Accept a payment and open it at the PSP.

Durable intent first: key, payment and operation are committed before the first byte leaves for the PSP, the PSP is called outside
any transaction, and what it answered goes through the transition function. A request that died in between is taken up by the
next one with its key, or by the follow-up job: both ask or repeat with the operation's id, which the PSP knows as the key.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog
import trio

from core.errors import DatabaseUnavailable, PspError, PspOutcomeUnknown, PspRejected, PspUnreachable
from core.evidence import Evidence, EvidenceKind, Source
from core.idempotency import InFlight, Mismatch, Replay, Resume, decide
from core.ids import LogId, OperationId, PaymentId
from core.money import Money
from core.payment import FINAL, Payment, Status, first_due_at
from server.db.create_batch import Creation, is_own
from server.db.merchants import Merchant
from server.db.payments import find_payment, store_reply
from server.flows.services import Services
from server.flows.settle import Answering, encode_payment, settle
from server.new_ids import uuid7

CREATED = 201
PSP_KEY_LIFETIME = timedelta(hours=23)
"""How long a PSP may be sent the same operation again."""

_IN_FLIGHT_MARGIN_SECONDS = 5.0
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True, kw_only=True)
class NewPayment:
    """What a merchant asks for, validated."""

    money: Money
    order_id: str
    description: str | None
    return_url: str | None
    expires_in_seconds: int


@dataclass(frozen=True, slots=True)
class Opened:
    """The payment as it stands after the PSP was asked. `replayed`: an earlier request had accepted it."""

    payment: Payment
    replayed: bool = False


Outcome = Opened | Replay | Mismatch | InFlight


async def create(services: Services, merchant: Merchant, wanted: NewPayment, *, key: str, fingerprint: bytes) -> Outcome:
    """Accept a payment once per key, and open it at the PSP.

    Cancelled in between, it is completed by a retry or by the follow-up job. Raises `Overloaded` or `DatabaseUnavailable`.
    """
    creation = _creation(services, merchant, wanted, key=key, fingerprint=fingerprint)
    stored = await services.db.creations.submit(creation)
    if stored is None or is_own(stored, creation):
        return Opened(await _open_in_time(services, creation))
    decision = decide(stored, fingerprint, now=services.now())
    if not isinstance(decision, Resume):
        return decision
    return Opened(await _resume(services, merchant, decision.payment_id, key=key), replayed=True)


async def _open_in_time(services: Services, creation: Creation) -> Payment:
    """Open a payment that was just accepted, unless accepting it took so long that a retry may be doing so already."""
    if services.now() + timedelta(seconds=services.psp_seconds) > creation.in_flight_until:
        return creation.payment
    return await _open(services, creation.payment, key=creation.key, is_first=True)


async def _resume(services: Services, merchant: Merchant, payment_id: PaymentId, *, key: str) -> Payment:
    """Take up a payment whose first request died, or was answered by something that was not definitive."""
    async with services.db.pool.connection() as connection:
        payment = await find_payment(connection, merchant.id, payment_id)
    if payment is None:
        raise DatabaseUnavailable("a stored key names a payment that does not exist")
    if is_opened(payment):
        await _store_reply(services, payment, key)
        return payment
    now = services.now()
    is_over = now - payment.created_at > PSP_KEY_LIFETIME
    # Once it expires the PSP may be found to know nothing of it; no request must be under way then.
    is_nearly_over = now + timedelta(seconds=services.psp_seconds) > payment.expires_at
    if payment.status in FINAL or is_over or is_nearly_over:
        return payment
    return await _open(services, payment, key=key, is_first=False)


def is_opened(payment: Payment) -> bool:
    """Whether the payment has its page, and so a definitive reply."""
    return payment.payment_url is not None


async def _open(services: Services, payment: Payment, *, key: str, is_first: bool) -> Payment:
    evidence = await _ask(services, payment, is_first=is_first)
    if evidence is None:
        return payment
    is_open = evidence.kind is EvidenceKind.OPENED
    settled = await settle(
        services,
        payment.merchant_id,
        payment.id,
        evidence,
        known=payment,
        answering=Answering(key, CREATED if is_open else None),
        only_if_unchanged=evidence.kind in (EvidenceKind.UNREACHABLE, EvidenceKind.REJECTED),
    )
    assert settled is not None
    if is_open and not settled.changed:
        await _store_reply(services, settled.payment, key)
    if is_open and settled.payment.status in (Status.EXPIRED, Status.CANCELED):
        await _close_again(services, settled.payment)
    return settled.payment


async def _store_reply(services: Services, payment: Payment, key: str) -> None:
    """Keep the first definitive reply where no change of the payment carries it."""
    async with services.db.pool.connection() as connection:
        await store_reply(connection, payment.merchant_id, key, status=CREATED, body=encode_payment(payment))


async def _close_again(services: Services, payment: Payment) -> None:
    """The page was opened after the payment was over: close it. Where that fails, money that comes is still kept, as late."""
    with trio.move_on_after(services.psp_seconds):
        try:
            adapter = await services.psps.of(payment.psp_account_id)
            evidence = await adapter.close(payment, as_kind=EvidenceKind.CANCELED, source=Source.CREATE)
        except PspError as error:
            _log.warning("a page that was opened too late could not be closed", payment=str(payment.id), error=str(error))
            return
        await settle(services, payment.merchant_id, payment.id, evidence, known=payment)


async def _ask(services: Services, payment: Payment, *, is_first: bool) -> Evidence | None:
    """Call the PSP; what was learned, or None for nothing."""
    try:
        with trio.fail_after(services.psp_seconds):
            adapter = await services.psps.of(payment.psp_account_id)
            return await adapter.create_intent(payment)
    except PspUnreachable:
        # An earlier request may have reached the PSP before it died; then this one's failure proves nothing.
        return _about(payment, EvidenceKind.UNREACHABLE) if is_first else None
    except PspRejected as error:
        return _about(payment, EvidenceKind.REJECTED, code=str(error)) if is_first else None
    except (PspOutcomeUnknown, trio.TooSlowError):
        return _about(payment, EvidenceKind.LOST)


def _about(payment: Payment, kind: EvidenceKind, *, code: str | None = None) -> Evidence:
    return Evidence(
        kind=kind,
        source=Source.CREATE,
        psp_account_id=payment.psp_account_id,
        operation_id=payment.operation_id,
        code=code,
    )


def _creation(services: Services, merchant: Merchant, wanted: NewPayment, *, key: str, fingerprint: bytes) -> Creation:
    now = services.now()
    expires_at = now + timedelta(seconds=wanted.expires_in_seconds)
    payment = Payment(
        id=PaymentId(uuid7()),
        merchant_id=merchant.id,
        psp_account_id=merchant.psp_account_id,
        operation_id=OperationId(uuid7()),
        order_id=wanted.order_id,
        money=wanted.money,
        status=Status.PENDING,
        version=1,
        expires_at=expires_at,
        created_at=now,
        updated_at=now,
        due_at=first_due_at(created_at=now, expires_at=expires_at),
        return_url=wanted.return_url,
        description=wanted.description,
    )
    return Creation(
        payment=payment,
        log_id=LogId(uuid7()),
        key=key,
        fingerprint=fingerprint,
        in_flight_until=_in_flight_until(now, services.psp_seconds),
    )


def _in_flight_until(now: datetime, psp_seconds: float) -> datetime:
    return now + timedelta(seconds=psp_seconds + _IN_FLIGHT_MARGIN_SECONDS)

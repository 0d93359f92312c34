"""Rows to write to the database without a server."""

from datetime import timedelta
from uuid import UUID

from core.evidence import Evidence, EvidenceKind, Source
from core.ids import EventId, LogId, MerchantId, OperationId, PaymentId, PspAccountId
from core.ledger import transfer_of
from core.money import Money
from core.payment import Payment, Status
from core.transition import apply
from server.clock import utc_now
from server.db.payments.change_row import ChangeRow
from server.db.payments.creations import Creation
from server.uuid7 import uuid7

ACCOUNT = PspAccountId(UUID(int=7))


def a_payment(merchant: MerchantId, payment_id: UUID | None = None) -> Payment:
    now = utc_now()
    return Payment(
        id=PaymentId(payment_id or uuid7()),
        merchant_id=merchant,
        psp_account_id=ACCOUNT,
        operation_id=OperationId(uuid7()),
        order_id='it\'s {an} "order", \\ NULL',
        money=Money(100, "EUR"),
        status=Status.PENDING,
        version=1,
        expires_at=now + timedelta(minutes=30),
        created_at=now,
        updated_at=now,
        due_at=now + timedelta(minutes=1),
    )


def a_creation(payment: Payment, key: str | None = None) -> Creation:
    return Creation(
        payment=payment,
        log_id=LogId(uuid7()),
        key=key or payment.id.hex,
        fingerprint=b"f" * 32,
        in_flight_until=payment.created_at,
    )


def a_change(payment: Payment, kind: EvidenceKind = EvidenceKind.CAPTURED) -> ChangeRow:
    evidence = Evidence(
        kind=kind,
        source=Source.WEBHOOK,
        psp_account_id=ACCOUNT,
        operation_id=payment.operation_id,
        reference="int_1",
        money=payment.money if kind is EvidenceKind.CAPTURED else None,
    )
    change = apply(payment, evidence, now=utc_now())
    assert change is not None
    return ChangeRow(
        change=change,
        log_id=LogId(uuid7()),
        now=change.after.updated_at,
        transfer=transfer_of(change),
        event_id=EventId(uuid7()),
        event_type="payment.succeeded",
        event_data=b'{"a": "\\"b\\\\"}',
    )

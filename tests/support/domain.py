"""Payments and evidence of the pure domain, all with the same ids and the same time."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from core.evidence import WITH_MONEY, Evidence, EvidenceKind, Source
from core.ids import MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import Payment, Status

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ACCOUNT = PspAccountId(UUID(int=3))
OPERATION = OperationId(UUID(int=4))
REQUESTED = OperationId(UUID(int=5))
REQUESTS = (EvidenceKind.CAPTURE_REQUESTED, EvidenceKind.VOID_REQUESTED)
MONEY = Money(1_990, "EUR")
OTHER_ACCOUNT = PspAccountId(UUID(int=99))


def a_payment(status: Status = Status.PENDING) -> Payment:
    return Payment(
        id=PaymentId(UUID(int=1)),
        merchant_id=MerchantId(UUID(int=2)),
        psp_account_id=ACCOUNT,
        operation_id=OPERATION,
        order_id="order-1",
        money=MONEY,
        status=status,
        version=1,
        expires_at=NOW + timedelta(minutes=30),
        created_at=NOW,
        updated_at=NOW,
        due_at=None,
        captured_minor=MONEY.amount_minor if status is Status.SUCCEEDED else 0,
    )


def evidence(kind: EvidenceKind, source: Source = Source.WEBHOOK, **fields: object) -> Evidence:
    given_fields: dict[str, object] = {
        "reference": "int_1",
        "money": MONEY if kind in WITH_MONEY else None,
        "requested_id": REQUESTED if kind in (*REQUESTS, EvidenceKind.REROUTED) else None,
        "rerouted_to": OTHER_ACCOUNT if kind is EvidenceKind.REROUTED else None,
        **fields,
    }
    return Evidence(kind=kind, source=source, psp_account_id=ACCOUNT, operation_id=OPERATION, **given_fields)  # type: ignore[arg-type]

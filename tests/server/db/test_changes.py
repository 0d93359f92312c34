"""A group of changes writes every field of a payment that may change, and nothing if another change was faster."""

from msgspec.structs import replace

from core.evidence import EvidenceKind, Risk
from core.ids import EventId, LogId, MerchantId, OperationId, PspAccountId
from core.payment import Capture, OperationKind, Payment, PaysOnce, PendingOperation, Status, Terms
from server.clock import utc_now
from server.db.connection import Connection
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.creations import CreationGroup
from server.db.payments.payments import find_payment
from server.uuid7 import uuid7
from tests.support.changes import a_change, a_creation, a_payment

CONSTANT = {"id", "merchant_id", "order_id", "money", "created_at", "return_url", "description", "capture", "is_sync"}
CONSTANT |= {"is_exclusive", "statement_descriptor", "metadata", "terms"}
"""Fields of a payment that no change touches."""


async def test_the_loser_of_a_compare_and_set_writes_nothing(database_url: str, connection: Connection) -> None:
    payment = a_payment(MerchantId(uuid7()))
    batch = ChangeGroup(delivery_lease_seconds=30)
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    assert [type(one) for one in await batch.write(connection, [a_change(payment)])] == [Applied]
    assert await batch.write(connection, [a_change(payment)]) == [Lost()]
    assert await connection.query("SELECT count(*) FROM ledger_entries") == [(2,)]
    assert await connection.query("SELECT last_seq FROM merchant_sequences") == [(1,)]


async def test_a_creation_writes_every_field_that_is_set_then(connection: Connection) -> None:
    """A field that is not written, or not read, comes back as its column's default."""
    terms = Terms(
        fee_basis_points=150,
        fee_fixed_minor=25,
        refunds_fee=True,
        settlement_delay_seconds=60,
        refunds_late=True,
        pays_once=PaysOnce.ALWAYS,
    )
    created: dict[str, object] = {
        "return_url": "https://shop.example/thanks",
        "description": "two cups",
        "capture": Capture.MANUAL,
        "is_sync": True,
        "is_exclusive": True,
        "statement_descriptor": "SHOP",
        "metadata": {"cart": "7"},
        "terms": terms,
    }
    always = {"id", "merchant_id", "order_id", "money", "created_at"}
    assert {*created, *always} == CONSTANT
    assert {name for name in Terms.__struct_fields__ if getattr(terms, name) != getattr(Terms(), name)} == set(
        Terms.__struct_fields__
    )
    payment = replace(a_payment(MerchantId(uuid7())), **created)
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    assert await find_payment(connection, payment.merchant_id, payment.id) == payment


async def test_a_change_writes_every_field_that_may_change(connection: Connection) -> None:
    """A field that a change omits is set to its column's default, so none may be omitted by mistake."""
    payment = a_payment(MerchantId(uuid7()))
    await CreationGroup(worker_id=uuid7()).write(connection, [a_creation(payment)])
    row, now = a_change(payment, EvidenceKind.DECLINED), utc_now()
    changed: dict[str, object] = {
        "status": Status.SUCCEEDED,
        "captured_minor": 100,
        "refunded_minor": 10,
        "disputed_minor": 4,
        "lost_minor": 5,
        "fee_returned_minor": 1,
        "pending_taken_minor": 2,
        "due_at": now,
        "reference": "int_2",
        "payment_url": "https://psp.example/2",
        "late": True,
        "suspended": True,
        "decline_code": "declined",
        "did_check_again": True,
        "checks": 3,
        "capture_before": now,
        "pending": PendingOperation(id=OperationId(uuid7()), kind=OperationKind.VOID, amount_minor=None, since=now),
        "is_warned": True,
        "release_at": now,
        "is_given_back": True,
        "risk": Risk.REVIEW,
        "is_operators_word": True,
        "from_suspense": True,
        "psp_account_id": PspAccountId(uuid7()),
        "operation_id": OperationId(uuid7()),
        "expires_at": now,
        "updated_at": row.now,
        "version": 2,
    }
    assert set(Payment.__struct_fields__) == {*changed, *CONSTANT}
    capture = PendingOperation(id=OperationId(uuid7()), kind=OperationKind.CAPTURE, amount_minor=6, since=now)
    states = [
        replace(payment, **changed),
        replace(payment, version=3, updated_at=row.now, status=Status.AUTHORIZED, pending=capture),
        replace(payment, version=4, updated_at=row.now),
    ]
    before = payment
    for after in states:
        step = replace(row.change, before=before, after=after)
        row = replace(row, log_id=LogId(uuid7()), event_id=EventId(uuid7()), change=step, transfer=None)
        assert isinstance((await ChangeGroup(delivery_lease_seconds=30).write(connection, [row]))[0], Applied)
        assert await find_payment(connection, payment.merchant_id, payment.id) == after
        before = after

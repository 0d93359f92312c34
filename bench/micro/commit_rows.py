"""The items of `bench.micro.commit`: sync payments, made beforehand with everything that is written for them."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from core.evidence import Evidence, EvidenceKind, Source
from core.ids import EndpointId, LogId, MerchantId, OperationId, PaymentId, PspAccountId
from core.money import Money
from core.payment import Payment, Status
from core.transition import apply
from server.clock import utc_now
from server.db.connection import Connection, open_session
from server.db.merchants import merchants
from server.db.migrate import migrate
from server.db.payments.change_row import ChangeRow
from server.db.payments.creations import Creation
from server.db.webhooks.endpoints import Endpoint, add_endpoint
from server.flows.idempotency import Request
from server.flows.payments.settle import Answering, row_of
from server.uuid7 import uuid7

ACCOUNT = PspAccountId(UUID(int=1))
FIRST_MERCHANT = 4_096
"""Merchants are numbered, so that pgbench can name them."""

_FINGERPRINT = bytes(32)


@dataclass(frozen=True, slots=True)
class Item:
    """One payment's two transactions."""

    creation: Creation
    change: ChangeRow


async def prepare(url: str, *, count: int) -> tuple[list[MerchantId], list[MerchantId]]:
    """A migrated database with that many merchants, each with an endpoint, and one hot merchant."""
    async with open_session(url) as connection:
        await migrate(connection)
        made = [MerchantId(UUID(int=FIRST_MERCHANT + number)) for number in range(count + 1)]
        now = utc_now()
        for merchant_id in made:
            await _add(connection, merchant_id, now)
    return made[:-1], made[-1:]


async def _add(connection: Connection, merchant_id: MerchantId, now: datetime) -> None:
    await merchants.add_merchant(connection, merchants.Merchant(merchant_id, "Bench", "test", ACCOUNT, now))
    hour_ago = now - timedelta(hours=1)
    endpoint = Endpoint(
        id=EndpointId(uuid7()),
        merchant_id=merchant_id,
        url="http://127.0.0.1/",
        sealed_secret=b"sealed",
        created_at=hour_ago,
        updated_at=hour_ago,
    )
    await add_endpoint(connection, endpoint)


def items(merchant_ids: list[MerchantId], count: int) -> list[Item]:
    """That many payments, in turn of the merchants."""
    return [_item(merchant_ids[number % len(merchant_ids)]) for number in range(count)]


def _item(merchant_id: MerchantId) -> Item:
    now = utc_now()
    payment = Payment(
        id=PaymentId(uuid7()),
        merchant_id=merchant_id,
        psp_account_id=ACCOUNT,
        operation_id=OperationId(uuid7()),
        order_id="order-4711",
        money=Money(1_990, "EUR"),
        status=Status.PENDING,
        version=1,
        expires_at=now + timedelta(seconds=60),
        created_at=now,
        updated_at=now,
        due_at=now + timedelta(seconds=60),
        is_sync=True,
    )
    key = uuid7().hex
    evidence = Evidence(
        kind=EvidenceKind.CAPTURED,
        source=Source.CREATE,
        psp_account_id=ACCOUNT,
        operation_id=payment.operation_id,
        reference=f"int_{payment.operation_id.hex}",
        money=payment.money,
    )
    change = apply(payment, evidence, now=now)
    assert change is not None
    creation = Creation(payment=payment, log_id=LogId(uuid7()), key=key, fingerprint=_FINGERPRINT, in_flight_until=now)
    request = Request(id=uuid7(), merchant_id=merchant_id, key=key, fingerprint=_FINGERPRINT, reply_status=201)
    return Item(creation, row_of(change, answering=Answering(request, lambda _: True)))

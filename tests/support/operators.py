"""Operators for tests, and what they ask for and approve."""

from dataclasses import dataclass

from core.ids import PAYMENT, MerchantId, PaymentId, decode_id
from core.operator_requests import Document
from core.operators import Operator, OperatorRole
from server.clock import utc_now
from server.db.connection import Connection
from server.db.operators.operators import TOTP_TABLE, add_operator
from server.db.operators.requests import OperatorRequest, RequestState, find_request
from server.flows.operators.requests import Asked, approve, ask
from server.passwords import hash_password, recovery_codes, recovery_hash, totp_code, totp_secret
from server.sealing import Sealer
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually

PASSWORD = "correct horse battery"


@dataclass(frozen=True, slots=True)
class Person:
    """An operator with everything that a login needs."""

    operator: Operator
    secret: str
    codes: list[str]

    def code(self, steps_ahead: int = 0) -> str:
        return totp_code(self.secret, utc_now(), steps_ahead=steps_ahead)


async def add_person(
    connection: Connection, sealer: Sealer, name: str, role: OperatorRole = OperatorRole.FINANCE, *, password: str = PASSWORD
) -> Person:
    """A new operator."""
    operator = Operator(id=uuid7(), name=name, role=role)
    secret, codes = totp_secret(), recovery_codes()
    added = await add_operator(
        connection,
        operator,
        password_hash=await hash_password(password),
        sealed_totp_secret=sealer.seal(secret, table=TOTP_TABLE, row=operator.id),
        key_sha256=None,
        recovery_hashes=[recovery_hash(one) for one in codes],
        now=utc_now(),
    )
    assert added
    return Person(operator, secret, codes)


ADA, GRACE = (Operator(id=uuid7(), name=name, role=OperatorRole.FINANCE) for name in ("ada", "grace"))
"""Two who only ask and approve, which their names and ids are enough for."""


_ADD = """
INSERT INTO operators (id, name, role, password_hash, sealed_totp_secret, created_at) VALUES ($1, $2, 'finance', '', '', now())
ON CONFLICT (name) DO NOTHING
"""


async def asked(
    florin: Florin, document: Document, payment_id: str | None = None, *, act: str = "payment.resolve", by: Operator = ADA
) -> OperatorRequest:
    """A request of one operator."""
    for one in (ADA, GRACE):
        await florin.connection.run(_ADD, one.id, one.name)
    wish = Asked(
        act=act,
        merchant_id=MerchantId(florin.demo.merchant_id),
        document=document,
        reason="as the dashboard says",
        summary="a test",
        payment_id=PaymentId(decode_id(PAYMENT, payment_id)) if payment_id is not None else None,
    )
    return await ask(florin.connection, wish, by, now=utc_now())


async def ended(florin: Florin, request: OperatorRequest) -> OperatorRequest:
    """The request once a worker has ended it."""

    async def look() -> OperatorRequest | None:
        found = await find_request(florin.connection, request.id)
        assert found is not None
        return found if found.state not in (RequestState.REQUESTED, RequestState.APPROVED) else None

    return await eventually(look)


async def approved(florin: Florin, request: OperatorRequest, *, by: Operator = GRACE) -> OperatorRequest:
    """The request once another operator has approved it and a worker has ended it."""
    await approve(florin.connection, request, by, now=utc_now())
    return await ended(florin, request)

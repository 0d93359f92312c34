"""One effect and one reply for one idempotency key, for whatever is asked of a merchant's webhook endpoints.

What is made gets an id that is drawn with the key, so that a request which takes over a dead one's key makes the same thing.
Replies are stored sealed: they may hold a secret that is shown once, to whoever asks with this key.
"""

import base64
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from uuid import UUID

from core.errors import RequestError
from core.idempotency import InFlight, Mismatch, Replay
from core.ids import PaymentId, RefundId
from server.db.payments.idempotency_keys import forget_key
from server.flows.idempotency import Request, answer, claim, give_up
from server.flows.services import Services
from server.uuid7 import uuid7

_PLACE = "idempotency_keys.reply"


@dataclass(frozen=True, slots=True)
class Reply:
    """A definitive reply."""

    status: int
    body: bytes


async def once(
    services: Services, request: Request, work: Callable[[UUID], Awaitable[Reply]], *, about: UUID | None = None
) -> Reply | Replay | Mismatch | InFlight:
    """Do it, unless it was done. `work` gets the id of what it makes, and must bear to be done twice with the same id.

    `about` is the endpoint it concerns; None where it makes one. What `work` raises is no definitive reply.
    """
    made = uuid7()
    outcome = await claim(services, request, PaymentId(about or made), operation="endpoint", refund_id=RefundId(made))
    if isinstance(outcome, Replay):
        return Replay(outcome.status, _opened(services, request, outcome.body))
    if isinstance(outcome, Mismatch | InFlight):
        return outcome
    assert outcome.refund_id is not None
    failure: Exception | None = None
    try:
        reply = await work(outcome.refund_id)
    except Exception as error:  # noqa: BLE001 - raised again below
        failure = error
    if failure is not None:
        if isinstance(failure, RequestError) and not outcome.resumed:  # nothing was done: the key is free for a better request
            async with services.db.pool.connection() as connection:
                await forget_key(connection, request.merchant_id, request.key)
        else:
            await give_up(services, request, outcome)
        raise failure
    await answer(services, request, status=reply.status, body=_sealed(services, request, reply.body))
    return reply


def _sealed(services: Services, request: Request, body: bytes) -> bytes:
    return base64.b64encode(services.sealer.seal(body.decode(), table=_PLACE, row=_row(request), merchant=request.merchant_id))


def _opened(services: Services, request: Request, body: bytes) -> bytes:
    sealed = base64.b64decode(body)
    return services.sealer.open(sealed, table=_PLACE, row=_row(request), merchant=request.merchant_id).encode()


def _row(request: Request) -> UUID:
    """What stands for a key's row, so that a sealed reply is good under its own key only."""
    return UUID(bytes=hashlib.sha256(request.key.encode()).digest()[:16])

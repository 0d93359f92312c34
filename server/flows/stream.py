"""Where a reader of events begins, by its own word or by its consumer's cursor."""

from dataclasses import dataclass
from uuid import UUID

from core.errors import Conflict
from core.ids import MerchantId
from core.stream import Resumption, Sequence, resume
from server.db.connection import Connection
from server.db.events import find_sequence
from server.db.streams import CONSUMERS_MAX, Consumer, find_consumer, place_consumer
from server.flows.services import Services


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """What a reader says of where it is: the last event it has, of which epoch, or which consumer it is."""

    after_seq: int | None = None
    epoch: UUID | None = None
    consumer: str | None = None


async def begin(services: Services, merchant_id: MerchantId, position: Position) -> tuple[Sequence, Resumption]:
    """The merchant's sequence, and where to go on in it. A consumer that is new begins there. Raises `Conflict`."""
    async with services.db.pool.connection() as connection:
        sequence = await find_sequence(connection, merchant_id)
        after_seq = position.after_seq
        if position.consumer is not None and after_seq is None:
            known = await find_consumer(connection, merchant_id, position.consumer)
            after_seq = known.acked_seq if known is not None else None
        resumption = resume(sequence, after_seq=after_seq, epoch=position.epoch)
        if position.consumer is not None:
            await place(services, connection, merchant_id, position.consumer, acked_seq=resumption.after_seq, only_new=True)
    return sequence, resumption


async def place(
    services: Services, connection: Connection, merchant_id: MerchantId, name: str, *, acked_seq: int, only_new: bool = False
) -> Consumer:
    """Put a consumer somewhere, or, with `only_new`, leave one where it is. Raises `Conflict`."""
    consumer = await place_consumer(connection, merchant_id, name, acked_seq=acked_seq, only_new=only_new, now=services.now())
    if consumer is None:
        raise Conflict(f"a merchant has at most {CONSUMERS_MAX} consumers: remove one", code="too_many_consumers")
    return consumer

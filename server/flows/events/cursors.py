"""Decides where a reader of events begins: at a position it names, or at its consumer's."""

from dataclasses import dataclass
from uuid import UUID

from core.errors import Conflict, Unprocessable
from core.ids import MerchantId
from core.resumption import Resumption, Sequence, resume
from server.db.events.consumers import CONSUMERS_MAX, Consumer, count_consumers, find_consumer, place_consumer
from server.db.events.events import find_sequence
from server.flows.contexts import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A reader's position: the last event it has, with its epoch, or the name of its consumer."""

    after_seq: int | None = None
    epoch: UUID | None = None
    consumer: str | None = None


async def begin(context: Storage, merchant_id: MerchantId, position: Position) -> tuple[Sequence, Resumption]:
    """Return the merchant's sequence and where to continue in it. Changes nothing.

    A consumer without acknowledgements begins at the first event. Raises `Conflict` for one consumer too many.
    """
    async with context.pool.connection() as connection:
        sequence = await find_sequence(connection, merchant_id)
        after_seq = position.after_seq
        if position.consumer is not None:
            known = await find_consumer(connection, merchant_id, position.consumer)
            if known is None and await count_consumers(connection, merchant_id) >= CONSUMERS_MAX:
                raise _too_many()
            if after_seq is None:
                after_seq = known.acked_seq if known is not None else 0
    return sequence, resume(sequence, after_seq=after_seq, epoch=position.epoch)


async def place(context: Storage, merchant_id: MerchantId, name: str, *, acked_seq: int) -> Consumer:
    """Set a consumer's position, forward or back. Raises `Unprocessable`, `Conflict`."""
    async with context.pool.connection() as connection:
        last_seq = (await find_sequence(connection, merchant_id)).last_seq
        if acked_seq > last_seq:
            raise Unprocessable(f"the last event is number {last_seq}", code="invalid_field", path="$.acked_seq")
        consumer = await place_consumer(connection, merchant_id, name, acked_seq=acked_seq, now=context.now())
    if consumer is None:
        raise _too_many()
    return consumer


def _too_many() -> Conflict:
    return Conflict(f"a merchant has at most {CONSUMERS_MAX} consumers: delete one", code="too_many_consumers")

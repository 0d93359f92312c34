"""Transaction 2 and every later step of a payment, for a whole group.

One statement per group: compare-and-set of the payment, its log row, the operations' states, the ledger postings, the wallets,
the event with the merchant's next sequence number, the deliveries, the PSP event it came from, a finding, a refund, and the reply
to its request. Invariants:

- Rows are locked in the order of `server.db`: payments, keys, then sequences and wallets, each by key. The upserts lock in the
  order of their sorted input.
- Payments are locked by key, one at a time (LATERAL ... LIMIT 1), in order, and updated by ctid, so the planner knows their
  number and joins the rest by hash. A row rewritten between the statement's snapshot and its lock, as by a claim, has a ctid that
  the snapshot does not see: it was locked and not changed, and its change is written again.
- A reply that is the event's own data is stored as the event's number.
- A change that lost its compare-and-set, or whose PSP event was applied before, writes nothing at all and gets no sequence
  number, so a merchant's sequences have no gaps and commit in order.
- Deliveries are created with a lease of the worker that commits them; a dead worker's are claimed when the lease ends.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from uuid import UUID

import msgspec

from core.ids import EndpointId
from server.db import json_records
from server.db.connection import Connection
from server.db.events.events import Event
from server.db.payments.change_row import ChangeRow, record_of
from server.db.payments.change_sql import WRITE_CHANGES


class Target(msgspec.Struct, frozen=True):
    """An endpoint that an event goes to. Unless the endpoint is ordered, this worker makes the first attempt at once."""

    endpoint_id: EndpointId
    is_ordered: bool


class Applied(msgspec.Struct, frozen=True):
    """The change is in the database, with its event and deliveries."""

    event: Event | None
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Another change of the payment, or the same PSP event, came first: read the payment and decide again."""


TRIES_MAX = 10
"""Tries to write a row that others keep rewriting."""


class LogRecord(msgspec.Struct, frozen=True):
    """The log row of a change, by its key."""

    merchant_id: UUID
    payment_id: UUID
    version: int


_RECOGNIZE = f"""
SELECT l.id
  FROM payment_logs l
  JOIN json_to_recordset($1::json) AS i ({json_records.columns(LogRecord)})
    ON (l.merchant_id, l.payment_id, l.version) = (i.merchant_id, i.payment_id, i.version)
"""  # noqa: S608 - own columns


class ChangeGroup:
    """Writes changes. A new delivery is leased to the worker that commits it for `delivery_lease_seconds`."""

    def __init__(self, *, delivery_lease_seconds: float) -> None:
        self._delivery_lease_seconds = delivery_lease_seconds

    def conflict_key(self, item: ChangeRow) -> Hashable:
        """One change per payment in a group."""
        return item.change.before.id

    async def write(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost]:
        """Write the group. The result of a change whose payment has changed meanwhile is `Lost`."""
        applied: dict[UUID, tuple[int | None, list[Target]]] = {}
        left = items
        for _ in range(TRIES_MAX):
            document = json_records.encode([record_of(item) for item in left])
            rows = await connection.query(WRITE_CHANGES, document, self._delivery_lease_seconds)
            missed = set()
            for payment_id, is_applied, seq, endpoint_id, is_ordered in rows:
                if not is_applied:
                    missed.add(payment_id)
                    continue
                _, targets = applied.setdefault(payment_id, (seq, []))
                if endpoint_id is not None:
                    targets.append(Target(endpoint_id, is_ordered))
            if not missed:
                break
            left = [item for item in left if item.change.after.id in missed]
        return [_result(item, applied.get(item.change.after.id)) for item in items]

    async def recognize(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost | None]:
        """Recognize a change by its log id. Its event and deliveries are left to the jobs."""
        rows = await connection.query(
            _RECOGNIZE,
            json_records.encode(
                [LogRecord(one.merchant_id, one.id, one.version) for one in (item.change.after for item in items)]
            ),
        )
        written = {row[0] for row in rows}
        return [Applied(None) if item.log_id in written else None for item in items]


def _result(item: ChangeRow, applied: tuple[int | None, list[Target]] | None) -> Applied | Lost:
    if applied is None:
        return Lost()
    seq, targets = applied
    if seq is None:
        return Applied(None)
    event = Event(
        merchant_id=item.change.after.merchant_id,
        seq=seq,
        id=item.event_id,
        type=item.event_type or "",
        data=item.event_data,
        created_at=item.now,
    )
    return Applied(event, tuple(targets))

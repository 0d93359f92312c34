"""Transaction 2 and every later step of a payment, for a whole batch.

One statement per batch: compare-and-set of the payment, its log row, the operation's state, the ledger postings, the wallets, the
event with the merchant's next sequence number, the deliveries, the PSP event it came from, a finding, and the reply of the
idempotent request it answers. Invariants:

- Rows are locked in the order of `server.db`: payments by key, then sequences and wallets by key. The upserts lock in
  the order of their sorted input.
- A change that lost its compare-and-set, or whose PSP event was applied before, writes nothing at all and gets no sequence
  number, so a merchant's sequence has no gaps and commits in order.
- Deliveries are born leased to the worker that commits them; a dead worker's are taken over when the lease ends.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.evidence import EvidenceKind
from core.ids import EndpointId, EventId, LogId, MerchantId, PaymentId
from core.ledger import Transfer, WalletKind
from core.payment import Change
from server.db.arrays import plain, quoted
from server.db.connection import Connection

_OPERATION_STATE = {
    EvidenceKind.LOST: "LOST",
    EvidenceKind.UNREACHABLE: "FAILED",
    EvidenceKind.REJECTED: "FAILED",
    EvidenceKind.NOT_FOUND: None,
    EvidenceKind.UNANSWERED: None,
    EvidenceKind.OPENED: "DONE",
    EvidenceKind.ATTEMPT_FAILED: "DONE",
    EvidenceKind.AUTHORIZED: "DONE",
    EvidenceKind.CAPTURED: "DONE",
    EvidenceKind.DECLINED: "DONE",
    EvidenceKind.EXPIRED: "DONE",
    EvidenceKind.CANCELED: "DONE",
}
"""What the evidence says of the operation that opened the payment; None is nothing."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The reply to the request with this idempotency key. It is no longer in flight; only a definitive reply is stored."""

    key: str
    definitive: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class PspEvent:
    """The PSP's event that brought the evidence."""

    id: str
    type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """A change with everything that is written with it. `event_data` is the payment as merchants see it, in JSON."""

    change: Change
    log_id: LogId
    now: datetime
    transfer: Transfer | None
    event_id: EventId
    event_type: str | None
    event_data: bytes
    psp_event: PspEvent | None = None
    reply: Reply | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewDelivery:
    """A notification that was committed and is ours to send at once."""

    merchant_id: MerchantId
    endpoint_id: EndpointId
    event_seq: int
    event_id: EventId
    event_type: str
    event_data: bytes
    payment_id: PaymentId
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Applied:
    """The change is in the database."""

    deliveries: tuple[NewDelivery, ...]


@dataclass(frozen=True, slots=True)
class Lost:
    """Another change of the payment, or the same PSP event, came first: read it again and think again."""


_WRITE = """
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::integer[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::boolean[],
        $10::boolean[], $11::text[], $12::boolean[], $13::integer[], $14::timestamptz[], $15::timestamptz[], $16::text[],
        $17::text[], $18::text[], $19::text[], $20::uuid[], $21::text[], $22::text[], $23::text[], $24::text[], $25::text[],
        $26::integer[], $27::text[], $28::text[], $29::uuid[]
    ) AS i (merchant_id, payment_id, version, log_id, status, reference, payment_url, captured_minor, late,
            suspended, decline_code, did_check_again, checks, due_at, now, source,
            kind, code, operation_state, event_id, event_type, event_data, psp_event_id, psp_event_type, reply_key,
            reply_status, reply_body, finding, psp_account_id)
), locked AS MATERIALIZED (
    SELECT p.merchant_id, p.id, p.status
      FROM payment_requests p
      JOIN input i ON p.merchant_id = i.merchant_id AND p.id = i.payment_id AND p.version = i.version
     WHERE NOT EXISTS (
            SELECT FROM psp_events e
             WHERE e.merchant_id = i.merchant_id AND e.payment_id = i.payment_id
               AND e.psp_account_id = i.psp_account_id AND e.event_id = i.psp_event_id)
     ORDER BY p.merchant_id, p.id
       FOR UPDATE OF p
), applied AS (
    UPDATE payment_requests p
       SET status = i.status, version = p.version + 1, reference = i.reference, payment_url = i.payment_url,
           captured_minor = i.captured_minor, late = i.late, suspended = i.suspended, decline_code = i.decline_code,
           did_check_again = i.did_check_again, checks = i.checks, due_at = i.due_at, updated_at = i.now
      FROM locked l JOIN input i ON l.merchant_id = i.merchant_id AND l.id = i.payment_id
     WHERE p.merchant_id = l.merchant_id AND p.id = l.id AND p.version = i.version
    RETURNING i.*, l.status AS from_status, p.operation_id
), logs AS (
    INSERT INTO payment_logs (
        merchant_id, id, payment_id, version, source, kind, from_status, to_status, code, reference, created_at)
    SELECT merchant_id, log_id, payment_id, version + 1, source, kind, from_status, status, code, reference, now
      FROM applied
), operations AS (
    UPDATE psp_operations o
       SET state = a.operation_state
      FROM applied a
     WHERE o.merchant_id = a.merchant_id AND o.payment_id = a.payment_id AND o.id = a.operation_id
       AND a.operation_state IS NOT NULL AND o.state <> a.operation_state
), replies AS (
    UPDATE idempotency_keys k
       SET reply_status = a.reply_status, reply_body = a.reply_body, in_flight_until = a.now
      FROM applied a
     WHERE k.merchant_id = a.merchant_id AND k.key = a.reply_key AND k.reply_status IS NULL
), psp AS (
    INSERT INTO psp_events (merchant_id, psp_account_id, event_id, payment_id, type, outcome, received_at)
    SELECT merchant_id, psp_account_id, psp_event_id, payment_id, psp_event_type, 'applied', now
      FROM applied WHERE psp_event_id IS NOT NULL
    ON CONFLICT (merchant_id, payment_id, psp_account_id, event_id) DO NOTHING
), found AS (
    INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
    SELECT merchant_id, log_id, finding, payment_id, source || ' brought ' || kind, now
      FROM applied WHERE finding IS NOT NULL
), sequences AS (
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq)
    SELECT merchant_id, count(*) FROM applied WHERE event_type IS NOT NULL GROUP BY merchant_id ORDER BY merchant_id
    ON CONFLICT (merchant_id) DO UPDATE SET last_seq = s.last_seq + excluded.last_seq
    RETURNING s.merchant_id, s.last_seq
), told AS (
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT a.merchant_id,
           s.last_seq - count(*) OVER (PARTITION BY a.merchant_id)
                      + row_number() OVER (PARTITION BY a.merchant_id ORDER BY a.event_id),
           a.event_id, a.event_type, a.payment_id, a.event_data, a.now
      FROM applied a JOIN sequences s USING (merchant_id) WHERE a.event_type IS NOT NULL
    RETURNING merchant_id, seq, payment_id
), postings AS (
    SELECT * FROM unnest($30::uuid[], $31::uuid[], $32::uuid[], $33::text[], $34::text[], $35::text[], $36::bigint[])
        AS t (merchant_id, payment_id, transfer_id, transfer_kind, account, currency, amount_minor)
), entries AS (
    INSERT INTO ledger_entries (
        merchant_id, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT t.merchant_id, t.transfer_id, t.transfer_kind, t.account, t.payment_id, t.currency, t.amount_minor, a.now
      FROM postings t JOIN applied a USING (merchant_id, payment_id)
    RETURNING merchant_id, currency, account, amount_minor, created_at
), wallet AS (
    INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, currency, account, sum(amount_minor), max(created_at)
      FROM entries WHERE account = ANY ($37::text[])
     GROUP BY merchant_id, currency, account ORDER BY merchant_id, currency, account
    ON CONFLICT (merchant_id, currency, kind)
    DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
), sent AS (
    INSERT INTO deliveries (
        merchant_id, endpoint_id, event_seq, state, attempts, due_at, created_at, updated_at)
    SELECT t.merchant_id, e.id, t.seq, 'PENDING', 1, now() + make_interval(secs => $38::float8), now(), now()
      FROM told t JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled
    RETURNING merchant_id, endpoint_id, event_seq
)
SELECT a.merchant_id, a.payment_id, t.seq, s.endpoint_id
  FROM applied a
  LEFT JOIN told t ON t.merchant_id = a.merchant_id AND t.payment_id = a.payment_id
  LEFT JOIN sent s ON s.merchant_id = t.merchant_id AND s.event_seq = t.seq
"""

_RECOGNIZE = """
SELECT l.id
  FROM payment_logs l
  JOIN unnest($1::uuid[], $2::uuid[], $3::integer[]) AS i (merchant_id, payment_id, version)
    ON (l.merchant_id, l.payment_id, l.version) = (i.merchant_id, i.payment_id, i.version)
"""

_WALLET_ACCOUNTS = plain(WalletKind)


class ChangeBatch:
    """Writes changes. `delivery_lease_seconds`: how long a new delivery is left to the worker that committed it."""

    def __init__(self, *, delivery_lease_seconds: float) -> None:
        self._delivery_lease_seconds = delivery_lease_seconds

    def conflict_key(self, item: ChangeRow) -> Hashable:
        """One change per payment in a batch."""
        return item.change.before.id

    async def write(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost]:
        """Write the batch; a change whose payment has moved on meanwhile is `Lost`."""
        rows = await connection.query(
            _WRITE, *_columns(items), *_posting_columns(items), _WALLET_ACCOUNTS, self._delivery_lease_seconds
        )
        applied: dict[tuple[UUID, UUID], list[tuple[int, UUID]]] = {}
        for merchant_id, payment_id, seq, endpoint_id in rows:
            endpoints = applied.setdefault((merchant_id, payment_id), [])
            if endpoint_id is not None:
                endpoints.append((seq, endpoint_id))
        return [self._result(item, applied) for item in items]

    async def recognize(self, connection: Connection, items: Sequence[ChangeRow]) -> list[Applied | Lost | None]:
        """A change is recognized by its log id. Its deliveries are then left to whoever finds them overdue."""
        rows = await connection.query(
            _RECOGNIZE,
            plain(item.change.after.merchant_id for item in items),
            plain(item.change.after.id for item in items),
            plain(item.change.after.version for item in items),
        )
        written = {row[0] for row in rows}
        return [Applied(()) if item.log_id in written else None for item in items]

    def _result(self, item: ChangeRow, applied: dict[tuple[UUID, UUID], list[tuple[int, UUID]]]) -> Applied | Lost:
        payment = item.change.after
        endpoints = applied.get((payment.merchant_id, payment.id))
        if endpoints is None:
            return Lost()
        return Applied(
            tuple(
                NewDelivery(
                    merchant_id=payment.merchant_id,
                    endpoint_id=EndpointId(endpoint_id),
                    event_seq=seq,
                    event_id=item.event_id,
                    event_type=item.event_type or "",
                    event_data=item.event_data,
                    payment_id=payment.id,
                    created_at=item.now,
                )
                for seq, endpoint_id in endpoints
            )
        )


def _columns(items: Sequence[ChangeRow]) -> Iterable[str]:
    after = [item.change.after for item in items]
    evidence = [item.change.evidence for item in items]
    yield plain(payment.merchant_id for payment in after)
    yield plain(payment.id for payment in after)
    yield plain(item.change.before.version for item in items)
    yield plain(item.log_id for item in items)
    yield plain(payment.status for payment in after)
    yield quoted(payment.reference for payment in after)
    yield quoted(payment.payment_url for payment in after)
    yield plain(payment.captured_minor for payment in after)
    yield plain(payment.late for payment in after)
    yield plain(payment.suspended for payment in after)
    yield quoted(payment.decline_code for payment in after)
    yield plain(payment.did_check_again for payment in after)
    yield plain(payment.checks for payment in after)
    yield quoted(payment.due_at for payment in after)
    yield quoted(item.now for item in items)
    yield plain(fact.source for fact in evidence)
    yield plain(fact.kind for fact in evidence)
    yield quoted(fact.code for fact in evidence)
    yield plain(None if item.change.finding else _OPERATION_STATE[item.change.evidence.kind] for item in items)
    yield plain(item.event_id for item in items)
    yield plain(item.event_type for item in items)
    yield quoted(item.event_data.decode() for item in items)
    yield quoted(item.psp_event.id if item.psp_event else None for item in items)
    yield quoted(item.psp_event.type if item.psp_event else None for item in items)
    yield quoted(item.reply.key if item.reply else None for item in items)
    definitive = [item.reply.definitive if item.reply else None for item in items]
    yield plain(reply[0] if reply else None for reply in definitive)
    yield quoted(reply[1].decode() if reply else None for reply in definitive)
    yield plain(item.change.finding for item in items)
    yield plain(fact.psp_account_id for fact in evidence)


def _posting_columns(items: Sequence[ChangeRow]) -> Iterable[str]:
    rows = [
        (item.change.after, item.transfer, posting)
        for item in items
        if item.transfer is not None
        for posting in item.transfer.postings
    ]
    yield plain(payment.merchant_id for payment, _, _ in rows)
    yield plain(payment.id for payment, _, _ in rows)
    yield plain(transfer.id for _, transfer, _ in rows)
    yield plain(transfer.kind for _, transfer, _ in rows)
    yield plain(posting.account for _, _, posting in rows)
    yield plain(posting.money.currency for _, _, posting in rows)
    yield plain(posting.money.amount_minor for _, _, posting in rows)

"""Transaction 2 and every later step of a payment, for a whole batch.

One statement per batch: compare-and-set of the payment, its log row, the operations' states, the ledger postings, the wallets,
the event with the merchant's next sequence number, the deliveries, the PSP event it came from, a finding, a refund, and the reply
of the request that it answers. Invariants:

- Rows are locked in the order of `server.db`: payments, keys, then sequences and wallets, each by key. The upserts lock in
  the order of their sorted input.
- Payments are locked by key, one at a time (LATERAL ... LIMIT 1), in order, and changed by their place (ctid): so the planner
  knows how many there are, and joins the rest by hash. A row that was rewritten between the statement's snapshot and its lock, as
  by a claim, has a place that the snapshot does not see: it was locked and not changed, and is written again.
- A reply that is the event's own data is stored as the event's number.
- A change that lost its compare-and-set, or whose PSP event was applied before, writes nothing at all and gets no sequence
  number, so a merchant's sequences have no gaps and commit in order.
- Deliveries are born leased to the worker that commits them; a dead worker's are taken over when the lease ends.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from core.ids import EndpointId, EventId, LogId
from core.ledger import Transfer, WalletKind
from core.payment import Change
from core.values import quick
from server.db import change_columns
from server.db.arrays import plain, uuids
from server.db.connection import Connection
from server.db.events import IS_WANTED, Event


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


@quick
@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """A change with everything that is written with it. `event_data` is what merchants see of it, in JSON."""

    change: Change
    log_id: LogId
    now: datetime
    transfer: Transfer | None
    event_id: EventId
    event_type: str | None
    event_data: bytes
    psp_event: PspEvent | None = None
    reply: Reply | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """An endpoint that an event goes to; where not in order, the first attempt is ours to make at once."""

    endpoint_id: EndpointId
    is_ordered: bool


@dataclass(frozen=True, slots=True)
class Applied:
    """The change is in the database, with its event and where that goes."""

    event: Event | None
    targets: tuple[Target, ...] = ()


@dataclass(frozen=True, slots=True)
class Lost:
    """Another change of the payment, or the same PSP event, came first: read it again and think again."""


TRIES_MAX = 10
"""How often a row is written again that others rewrite all the time."""

_WRITE = f"""
/* florin: payments change */
WITH input AS (
    SELECT * FROM unnest(
        $1::uuid[], $2::uuid[], $3::integer[], $4::uuid[], $5::text[], $6::text[], $7::text[], $8::bigint[], $9::timestamptz[],
        $10::timestamptz[], $11::text[], $12::text[], $13::text[], $14::text[], $15::uuid[], $16::text[], $17::uuid[],
        $18::text[], $19::text[], $20::integer[], $21::uuid[], $22::text[], $23::text[], $24::text[], $25::integer[],
        $26::text[]
    ) AS i (merchant_id, payment_id, version, log_id, status, reference, payment_url, captured_minor, due_at,
            now, source, kind, code, log_reference, operation_id, operation_state, event_id,
            event_type, event_data, entries, psp_account_id, psp_event_id, psp_event_type, reply_key, reply_status,
            reply_body)
), rare AS (
    SELECT * FROM unnest(
        $27::uuid[], $28::boolean[], $29::boolean[], $30::text[], $31::boolean[], $32::integer[], $33::bigint[],
        $34::bigint[], $35::bigint[], $36::timestamptz[], $37::uuid[], $38::text[], $39::bigint[], $40::timestamptz[],
        $41::boolean[], $42::timestamptz[], $43::boolean[], $44::bigint[], $45::bigint[], $46::text[], $47::uuid[], $48::uuid[],
        $49::timestamptz[], $50::text[]
    ) AS r (payment_id, late, suspended, decline_code, did_check_again, checks, refunded_minor,
            disputed_minor, lost_minor, capture_before, pending_id, pending_kind, pending_minor, pending_since,
            is_warned, release_at, is_given_back, pending_taken_minor, fee_returned_minor, finding, psp_account_id, operation_id,
            expires_at, risk)
), locked AS MATERIALIZED (
    SELECT p.id, p.status, p.ctid AS place
      FROM (SELECT * FROM unnest($1::uuid[], $2::uuid[], $3::integer[], $21::uuid[], $22::text[])
                       AS u (merchant_id, payment_id, version, psp_account_id, psp_event_id)
             ORDER BY u.merchant_id, u.payment_id) i
     CROSS JOIN LATERAL (
            SELECT p.id, p.status, p.ctid FROM payment_requests p
             WHERE p.merchant_id = i.merchant_id AND p.id = i.payment_id AND p.version = i.version
               AND (i.psp_event_id IS NULL OR NOT EXISTS (
                    SELECT FROM psp_events e
                     WHERE e.merchant_id = i.merchant_id AND e.payment_id = i.payment_id
                       AND e.psp_account_id = i.psp_account_id AND e.event_id = i.psp_event_id))
             LIMIT 1 FOR UPDATE OF p
           ) p
), applied AS (
    UPDATE payment_requests p
       SET status = i.status, version = p.version + 1, reference = i.reference, payment_url = i.payment_url,
           captured_minor = i.captured_minor, due_at = i.due_at, updated_at = i.now,
           live_order_id = CASE WHEN i.status IN ('PENDING', 'UNKNOWN', 'AUTHORIZED') THEN p.live_order_id END,
           late = coalesce(r.late, p.late), suspended = coalesce(r.suspended, p.suspended),
           decline_code = CASE WHEN r.payment_id IS NULL THEN p.decline_code ELSE r.decline_code END,
           did_check_again = coalesce(r.did_check_again, p.did_check_again), checks = coalesce(r.checks, p.checks),
           refunded_minor = coalesce(r.refunded_minor, p.refunded_minor),
           disputed_minor = coalesce(r.disputed_minor, p.disputed_minor), lost_minor = coalesce(r.lost_minor, p.lost_minor),
           capture_before = coalesce(r.capture_before, p.capture_before),
           pending_id = CASE WHEN r.payment_id IS NULL THEN p.pending_id ELSE r.pending_id END,
           pending_kind = CASE WHEN r.payment_id IS NULL THEN p.pending_kind ELSE r.pending_kind END,
           pending_minor = CASE WHEN r.payment_id IS NULL THEN p.pending_minor ELSE r.pending_minor END,
           pending_since = CASE WHEN r.payment_id IS NULL THEN p.pending_since ELSE r.pending_since END,
           is_warned = coalesce(r.is_warned, p.is_warned),
           release_at = CASE WHEN r.payment_id IS NULL THEN p.release_at ELSE r.release_at END,
           is_given_back = coalesce(r.is_given_back, p.is_given_back),
           pending_taken_minor = coalesce(r.pending_taken_minor, p.pending_taken_minor),
           fee_returned_minor = coalesce(r.fee_returned_minor, p.fee_returned_minor),
           psp_account_id = coalesce(r.psp_account_id, p.psp_account_id),
           operation_id = coalesce(r.operation_id, p.operation_id),
           expires_at = coalesce(r.expires_at, p.expires_at), risk = coalesce(r.risk, p.risk)
      FROM locked l
      JOIN input i ON i.payment_id = l.id
      LEFT JOIN rare r ON r.payment_id = l.id
     WHERE p.ctid = l.place
    RETURNING i.*, l.status AS from_status, r.finding, p.psp_account_id AS account_id
), logs AS (
    INSERT INTO payment_logs (
        merchant_id, id, payment_id, version, source, kind, from_status, to_status, code, reference, created_at)
    SELECT merchant_id, log_id, payment_id, version + 1, source, kind, from_status, status, code, log_reference, now
      FROM applied
), requested AS (
    INSERT INTO psp_operations (
        merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
    SELECT a.merchant_id, o.id, a.payment_id, a.account_id, o.kind, o.amount_minor, o.currency, 'SENT', a.now
      FROM unnest($51::uuid[], $52::uuid[], $53::text[], $54::bigint[], $55::text[])
           AS o (payment_id, id, kind, amount_minor, currency)
      JOIN applied a USING (payment_id)
    ON CONFLICT (merchant_id, payment_id, id) DO NOTHING
), operations AS (
    UPDATE psp_operations o
       SET state = a.operation_state
      FROM applied a
     WHERE o.merchant_id = a.merchant_id AND o.payment_id = a.payment_id AND o.id = a.operation_id
       AND o.state <> a.operation_state
), psp AS (
    INSERT INTO psp_events (merchant_id, psp_account_id, event_id, payment_id, type, outcome, received_at)
    SELECT merchant_id, psp_account_id, psp_event_id, payment_id, psp_event_type, 'applied', now
      FROM applied WHERE psp_event_id IS NOT NULL
    ON CONFLICT (merchant_id, payment_id, psp_account_id, event_id) DO NOTHING
), found AS (
    INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
    SELECT merchant_id, log_id, finding, payment_id, source || ' brought ' || kind, now
      FROM applied WHERE finding IS NOT NULL
), refunded AS (
    INSERT INTO refunds AS r (
        merchant_id, payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
        reason, reference, failure_code, is_accepted, checks, due_at, created_at, updated_at)
    SELECT a.merchant_id, a.payment_id, n.id, n.psp_account_id, n.amount_minor, n.currency, n.status, n.from_pending_minor,
           n.fee_minor, n.reason, n.reference, n.failure_code, n.is_accepted, n.checks, n.due_at, n.created_at, n.updated_at
      FROM unnest(
            $56::uuid[], $57::uuid[], $58::uuid[], $59::bigint[], $60::text[], $61::text[], $62::bigint[], $63::bigint[],
            $64::text[], $65::text[], $66::text[], $67::boolean[], $68::integer[], $69::timestamptz[], $70::timestamptz[],
            $71::timestamptz[]
        ) AS n (payment_id, id, psp_account_id, amount_minor, currency, status, from_pending_minor, fee_minor,
                reason, reference, failure_code, is_accepted, checks, due_at, created_at,
                updated_at)
      JOIN applied a USING (payment_id)
    ON CONFLICT (merchant_id, payment_id, id) DO UPDATE
       SET status = excluded.status, reference = excluded.reference, failure_code = excluded.failure_code,
           is_accepted = excluded.is_accepted, checks = excluded.checks, due_at = excluded.due_at,
           updated_at = excluded.updated_at
), sequences AS (
    INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq)
    SELECT merchant_id, count(event_type), sum(entries)
      FROM applied WHERE event_type IS NOT NULL OR entries > 0 GROUP BY merchant_id ORDER BY merchant_id
    ON CONFLICT (merchant_id) DO UPDATE
       SET last_seq = s.last_seq + excluded.last_seq, last_ledger_seq = s.last_ledger_seq + excluded.last_ledger_seq
    RETURNING s.merchant_id, s.last_seq, s.last_ledger_seq
), told AS (
    INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
    SELECT a.merchant_id,
           s.last_seq - count(*) OVER (PARTITION BY a.merchant_id)
                      + row_number() OVER (PARTITION BY a.merchant_id ORDER BY a.event_id),
           a.event_id, a.event_type, a.payment_id, a.event_data, a.now
      FROM applied a JOIN sequences s USING (merchant_id) WHERE a.event_type IS NOT NULL
    RETURNING merchant_id, seq, payment_id, type
), replies AS (
    UPDATE idempotency_keys k
       SET reply_status = a.reply_status, reply_body = a.reply_body, in_flight_until = a.now,
           reply_seq = CASE WHEN a.reply_body IS NULL AND a.reply_status IS NOT NULL THEN t.seq END
      FROM applied a
      LEFT JOIN told t ON t.payment_id = a.payment_id
     WHERE k.merchant_id = a.merchant_id AND k.key = a.reply_key AND k.reply_status IS NULL
), entries AS (
    INSERT INTO ledger_entries (
        merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
    SELECT a.merchant_id,
           s.last_ledger_seq - count(*) OVER (PARTITION BY a.merchant_id)
                             + row_number() OVER (PARTITION BY a.merchant_id ORDER BY t.number),
           t.transfer_id, t.transfer_kind, t.account, a.payment_id, t.currency, t.amount_minor, a.now
      FROM unnest($72::uuid[], $73::uuid[], $74::text[], $75::text[], $76::text[], $77::bigint[]) WITH ORDINALITY
           AS t (payment_id, transfer_id, transfer_kind, account, currency, amount_minor, number)
      JOIN applied a USING (payment_id) JOIN sequences s USING (merchant_id)
    RETURNING merchant_id, currency, account, amount_minor, created_at
), wallet AS (
    INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
    SELECT merchant_id, currency, account, sum(amount_minor), max(created_at)
      FROM entries WHERE account = ANY ($78::text[])
     GROUP BY merchant_id, currency, account ORDER BY merchant_id, currency, account
    ON CONFLICT (merchant_id, currency, kind)
    DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
), sent AS (
    INSERT INTO deliveries (
        merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
    SELECT t.merchant_id, e.id, t.seq, 'PENDING', e.mode = 'ordered', CASE e.mode WHEN 'ordered' THEN 0 ELSE 1 END,
           CASE e.mode WHEN 'ordered' THEN NULL ELSE now() + make_interval(secs => $79::float8) END, now(), now()
      FROM told t
      JOIN webhook_endpoints e ON e.merchant_id = t.merchant_id AND e.enabled AND {IS_WANTED.format("t.type")}
    RETURNING merchant_id, endpoint_id, event_seq, is_ordered
)
SELECT l.id, a.payment_id IS NOT NULL, t.seq, s.endpoint_id, s.is_ordered
  FROM locked l
  LEFT JOIN applied a ON a.payment_id = l.id
  LEFT JOIN told t ON t.payment_id = l.id
  LEFT JOIN sent s ON s.merchant_id = t.merchant_id AND s.event_seq = t.seq
"""  # noqa: S608 - own conditions

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
        applied: dict[UUID, tuple[int | None, list[Target]]] = {}
        left = items
        for _ in range(TRIES_MAX):
            columns = change_columns.of(left)
            rows = await connection.query(_WRITE, *columns, _WALLET_ACCOUNTS, self._delivery_lease_seconds)
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
        """A change is recognized by its log id. Its event and deliveries are then left to whoever finds them."""
        rows = await connection.query(
            _RECOGNIZE,
            uuids(item.change.after.merchant_id for item in items),
            uuids(item.change.after.id for item in items),
            plain(item.change.after.version for item in items),
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

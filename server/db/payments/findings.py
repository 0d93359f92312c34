"""Findings: what a person has to look at, from its discovery to its explanation or mend."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.evidence import Finding
from core.findings import FINDING_TRANSITIONS, MENDED_BY_OUTCOME, FindingState
from core.ids import MerchantId, PaymentId
from core.ledger import Transfer
from core.money import Money
from core.payment import Payment
from server.db.connection import Connection

_BY_ITSELF = "florin"
"""The operator of findings that have been mended by what a PSP told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FindingRow:
    """A finding with what is at stake: the money in suspense, else the payment's, None without a payment."""

    merchant_id: MerchantId
    id: UUID
    kind: Finding
    payment_id: PaymentId
    detail: str
    state: FindingState
    operator: str | None
    note: str | None
    state_at: datetime | None
    created_at: datetime
    at_stake: Money | None
    payment_status: str | None


async def has_open_finding(connection: Connection, payment: Payment, kind: Finding) -> bool:
    """Return whether a finding of this kind is open already."""
    rows = await connection.query(
        """
        SELECT 1 FROM findings
         WHERE merchant_id = $1 AND payment_id = $2 AND kind = $3 AND resolved_at IS NULL LIMIT 1
        """,
        payment.merchant_id,
        payment.id,
        kind.value,
    )
    return bool(rows)


async def has_transfer(connection: Connection, merchant_id: MerchantId, transfer: Transfer) -> bool:
    """Return whether a transfer is in the ledger already."""
    rows = await connection.query(
        "SELECT 1 FROM ledger_entries WHERE merchant_id = $1 AND transfer_id = $2 AND kind = $3 LIMIT 1",
        merchant_id,
        transfer.id,
        transfer.kind.value,
    )
    return bool(rows)


async def add_finding(
    connection: Connection,
    merchant_id: MerchantId,
    payment_id: PaymentId,
    finding_id: UUID,
    *,
    kind: Finding,
    detail: str,
    now: datetime,
) -> None:
    """Write a finding that does not come with a change of a payment."""
    await connection.run(
        """
        INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at) VALUES ($1, $2, $3, $4, $5, $6)
        """,
        merchant_id,
        finding_id,
        kind.value,
        payment_id,
        detail,
        now,
    )


_SELECT = """
SELECT f.merchant_id, f.id, f.kind, f.payment_id, f.detail, f.state, f.operator, f.note, f.state_at, f.created_at,
       coalesce(s.amount_minor, p.amount_minor), coalesce(s.currency, p.currency), p.status
  FROM findings f
  LEFT JOIN payment_requests p ON p.merchant_id = f.merchant_id AND p.id = f.payment_id
  LEFT JOIN LATERAL (
        SELECT sum(e.amount_minor)::bigint AS amount_minor, min(e.currency) AS currency FROM ledger_entries e
         WHERE f.kind = 'evidence_mismatch' AND p.suspended AND e.merchant_id = f.merchant_id AND e.payment_id = f.payment_id
           AND e.account = 'suspense' HAVING count(*) > 0
       ) s ON true
"""


def _finding(row: Sequence[Any]) -> FindingRow:
    merchant_id, finding_id, kind, payment_id, detail, state, operator, note, state_at, created_at, amount, currency, status = row
    return FindingRow(
        merchant_id=MerchantId(merchant_id),
        id=finding_id,
        kind=Finding(kind),
        payment_id=PaymentId(payment_id),
        detail=detail,
        state=FindingState(state),
        operator=operator,
        note=note,
        state_at=state_at,
        created_at=created_at,
        at_stake=Money(amount, currency) if amount is not None else None,
        payment_status=status,
    )


async def list_findings(
    connection: Connection,
    *,
    only_open: bool,
    kind: Finding | None = None,
    merchant_id: MerchantId | None = None,
    payment_id: UUID | None = None,
    limit: int,
) -> list[FindingRow]:
    """Findings, oldest first if they are open ones, else newest first."""
    rows = await connection.query(
        f"""
        {_SELECT}
         WHERE (NOT $1::boolean OR f.resolved_at IS NULL) AND ($2::text IS NULL OR f.kind = $2)
           AND ($3::uuid IS NULL OR f.merchant_id = $3) AND ($4::uuid IS NULL OR f.payment_id = $4)
         ORDER BY CASE WHEN $1 THEN f.created_at END, f.created_at DESC, f.id LIMIT $5
        """,
        only_open,
        kind.value if kind is not None else None,
        merchant_id,
        payment_id,
        limit,
    )
    return [_finding(row) for row in rows]


async def find_finding(connection: Connection, finding_id: UUID) -> FindingRow | None:
    """The finding of that id, for an operator who has only that."""
    rows = await connection.query(f"{_SELECT} WHERE f.id = $1", finding_id)
    return _finding(rows[0]) if rows else None


async def change_finding(
    connection: Connection, found: FindingRow, state: FindingState, *, operator: str, note: str, now: datetime
) -> bool:
    """Move a finding to another state in the caller's transaction. Returns False if its state does not allow that any more."""
    is_closed = not FINDING_TRANSITIONS[state]
    return (
        await connection.run(
            """
        UPDATE findings SET state = $3, operator = $4, note = CASE WHEN $5 = '' THEN note ELSE $5 END, state_at = $6,
               resolved_at = CASE WHEN $7 THEN $6::timestamptz END
         WHERE merchant_id = $1 AND id = $2 AND state = ANY ($8::text[])
        """,
            found.merchant_id,
            found.id,
            state.value,
            operator,
            note,
            now,
            is_closed,
            [before.value for before, after in FINDING_TRANSITIONS.items() if state in after],
        )
        == 1
    )


async def close_findings(
    connection: Connection, merchant_id: MerchantId, payment_id: PaymentId, kinds: Sequence[Finding], *, operator: str, note: str
) -> None:
    """Mark a payment's open findings of these kinds as fixed, in the caller's transaction."""
    await connection.run(
        """
        UPDATE findings SET state = 'FIXED', operator = $4, note = $5, state_at = now(), resolved_at = now()
         WHERE merchant_id = $1 AND payment_id = $2 AND kind = ANY ($3::text[]) AND resolved_at IS NULL
        """,
        merchant_id,
        payment_id,
        [kind.value for kind in kinds],
        operator,
        note[:500],
    )


async def close_told_findings(connection: Connection) -> int:
    """Mark as fixed what was unknown when it was found, and has been told by the PSP since. Returns the number."""
    return await connection.run(
        f"""
        UPDATE findings f
           SET state = 'FIXED', operator = '{_BY_ITSELF}', note = 'the payment provider has told the outcome', state_at = now(),
               resolved_at = now()
          FROM payment_requests p
         WHERE f.resolved_at IS NULL AND f.kind = ANY ($1::text[])
           AND p.merchant_id = f.merchant_id AND p.id = f.payment_id
           AND CASE f.kind WHEN 'outcome_unknown'
                    THEN p.status NOT IN ('PENDING', 'UNKNOWN') AND p.pending_id IS NULL AND NOT p.is_operators_word
                    ELSE NOT EXISTS (SELECT FROM refunds r WHERE r.merchant_id = p.merchant_id AND r.payment_id = p.id
                                        AND (r.status IN ('PENDING', 'UNKNOWN') OR r.is_operators_word)) END
        """,  # noqa: S608 - own constant
        [kind.value for kind in MENDED_BY_OUTCOME],
    )

"""Makes due what has waited for a PSP that answers again."""

from core.ids import PspAccountId
from server.db.connection import Connection

ROWS_MAX = 10_000


async def hasten(connection: Connection, account_id: PspAccountId) -> int:
    """Make due at once everything at an account whose outcome is unknown: payments, captures and voids, refunds. Returns their
    number, up to `ROWS_MAX` of each kind; the account's guard paces the fetches. Such a look is one more than the schedule has.
    """
    payments = await connection.run(
        """
        UPDATE payment_requests SET due_at = now(), checks = greatest(checks - 1, 0)
         WHERE (merchant_id, id) IN (
                SELECT merchant_id, id FROM payment_requests
                 WHERE due_at > now() AND psp_account_id = $1 AND (status = 'UNKNOWN' OR (pending_id IS NOT NULL AND checks > 0))
                 ORDER BY merchant_id, id LIMIT $2 FOR UPDATE)
        """,
        account_id,
        ROWS_MAX,
    )
    refunds = await connection.run(
        """
        UPDATE refunds SET due_at = now(), checks = greatest(checks - 1, 0)
         WHERE (merchant_id, id) IN (
                SELECT merchant_id, id FROM refunds
                 WHERE due_at > now() AND psp_account_id = $1 AND status = 'UNKNOWN'
                 ORDER BY merchant_id, id LIMIT $2 FOR UPDATE)
        """,
        account_id,
        ROWS_MAX,
    )
    return payments + refunds

"""The times that are stored, the furthest that each may lie ahead, and how one beyond is set right.

Each rule of Florin puts a time at most so far ahead of the database's clock. What lies further ahead was stored while the clock
stood ahead. It would block what waits for it, so it is set right once the clock has gone back, and the doctor tells of it.
"""

from dataclasses import dataclass

from server.db.connection import Connection

ROWS_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Bound:
    """A column, the latest time that it may hold, and the value that replaces a later one, as SQL.

    `key` are the columns of the table's key. `among` narrows the rows down to those that an index finds.
    """

    table: str
    column: str
    latest: str
    key: str = "merchant_id, id"
    value: str = "now()"
    among: str = "true"

    @property
    def condition(self) -> str:
        """The rows that are beyond it."""
        return f"{self.among} AND {self.column} > {self.latest}"


REREAD_DAYS = 2
"""A PSP's list of events is read again from so long ago after it was read up to a time in the future."""

EXPIRES_DAYS_MAX = 7
"""The longest time for which a page may be open. A page that was made a little ahead just stays open longer."""

_DAY = "now() + interval '25 hours'"
_RELEASE = "now() + make_interval(secs => settlement_delay_seconds)"
_IS_OPEN = "due_at > now()"
BOUNDS = (
    Bound(
        "payment_requests",
        "expires_at",
        f"now() + interval '{EXPIRES_DAYS_MAX} days 1 minute'",
        value="now() + (expires_at - created_at)",
        among=_IS_OPEN,
    ),
    Bound("payment_requests", "release_at", f"{_RELEASE} + interval '1 minute'", value=_RELEASE, among=_IS_OPEN),
    Bound(
        "payment_requests",
        "due_at",
        f"""CASE WHEN status = 'SUCCEEDED' THEN {_RELEASE} + interval '5 minutes'
                 WHEN status = 'AUTHORIZED' AND pending_id IS NULL THEN greatest(capture_before, {_DAY})
                 WHEN status = 'PENDING' AND pending_id IS NULL AND checks = 0
                 THEN now() + greatest(now() - created_at, interval '10 minutes') + interval '1 minute'
                 ELSE {_DAY} END""",
        among=_IS_OPEN,
    ),
    Bound("refunds", "due_at", f"greatest(now() + (now() - created_at), {_DAY})"),
    Bound("deliveries", "due_at", "now() + interval '30 hours'", key="merchant_id, endpoint_id, event_seq"),
    Bound("webhook_endpoints", "held_until", "now() + interval '30 hours'"),
    Bound("webhook_endpoints", "lease_until", "now() + interval '5 minutes'"),
    Bound("psp_inbox", "due_at", "now() + interval '2 hours'", key="merchant_id, psp_account_id, event_id"),
    Bound("alerts", "due_at", _DAY, key="merchant_id, key"),
    Bound("batches", "lease_until", "now() + interval '1 minute'", among="status = 'RUNNING'"),
    Bound("batches", "deadline_at", "now() + interval '20 minutes'", among="status = 'RUNNING'"),
    Bound("psp_states", "rate_used_until", "now() + interval '2 minutes'", key="psp_account_id"),
    Bound("psp_states", "open_until", "now() + interval '1 minute'", key="psp_account_id"),
    Bound("psp_states", "probe_until", "now() + interval '1 minute'", key="psp_account_id"),
    Bound("psp_states", "events_due_at", "now() + interval '10 minutes'", key="psp_account_id"),
    Bound(
        "psp_states",
        "events_read_until",
        "now() + interval '1 minute'",
        key="psp_account_id",
        value=f"now() - interval '{REREAD_DAYS} days'",
    ),
)


async def set_right(connection: Connection) -> list[tuple[str, int]]:
    """Set right what lies too far ahead, up to `ROWS_MAX` rows of each column. Returns the columns, with the number of rows.

    Repeating it changes nothing; several workers may do it at once.
    """
    found: list[tuple[str, int]] = []
    for bound in BOUNDS:
        rows = await connection.run(
            f"""
            UPDATE {bound.table} SET {bound.column} = {bound.value}
             WHERE ({bound.key}) IN (
                    SELECT {bound.key} FROM {bound.table} WHERE {bound.condition}
                     ORDER BY {bound.key} LIMIT {ROWS_MAX} FOR UPDATE SKIP LOCKED)
            """  # noqa: S608 - own columns
        )
        if rows:
            found.append((f"{bound.table}.{bound.column}", rows))
    return found

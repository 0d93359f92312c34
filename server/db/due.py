"""Finds, in one query, which of a worker's jobs have something to do, and whether settings have changed.

Without it each job would ask for itself, every second, in every worker. What is due is asked roughly: a job that is told to look
may find that another worker was faster.
"""

import msgspec

from server.db.connection import Connection

SETTINGS_KEPT = "1 hour"


class Due(msgspec.Struct, frozen=True):
    """`payments` includes refunds; `deliveries`: some are unfinished; `batches`: one waits for a worker; `open_items`: items of
    batches whose outcome is not known; `breakers`: one is open; `operator_requests`: some are to be carried out, or have expired.

    `settings`: those that workers cache have changed since the snapshot that was passed; `snapshot` is the one of this query.
    """

    payments: bool
    psp_events: bool
    deliveries: bool
    batches: bool
    open_items: bool
    breakers: bool
    operator_requests: bool
    settings: bool
    snapshot: str | None


_FIND = """
SELECT EXISTS (SELECT FROM payment_requests WHERE due_at <= now()) OR EXISTS (SELECT FROM refunds WHERE due_at <= now()),
       EXISTS (SELECT FROM psp_inbox WHERE due_at <= now()),
       EXISTS (SELECT FROM deliveries WHERE due_at IS NOT NULL)
           OR EXISTS (SELECT FROM deliveries WHERE is_ordered AND state = 'PENDING'),
       EXISTS (SELECT FROM batches WHERE status = 'RUNNING' AND (lease_until IS NULL OR lease_until <= now())),
       EXISTS (SELECT FROM batch_items WHERE status IN ('UNKNOWN', 'PENDING')),
       EXISTS (SELECT FROM psp_states WHERE open_until IS NOT NULL),
       EXISTS (SELECT FROM operator_requests WHERE state = 'APPROVED' OR (state = 'REQUESTED' AND expires_at <= now())),
       $1::pg_snapshot IS NULL
           OR EXISTS (SELECT FROM settings_changes
                       WHERE id >= pg_snapshot_xmin($1::pg_snapshot) AND NOT pg_visible_in_snapshot(id, $1::pg_snapshot)),
       pg_current_snapshot()::text
"""


async def find_due(connection: Connection, *, since: str | None) -> Due:
    """Return what is due, and whether settings have changed since a snapshot; with None they have."""
    return Due(*(await connection.query(_FIND, since))[0])


async def prune_settings_changes(connection: Connection) -> int:
    """Delete the changes that every worker has seen. Returns the number deleted."""
    return await connection.run(f"DELETE FROM settings_changes WHERE changed_at < now() - interval '{SETTINGS_KEPT}'")  # noqa: S608 - own constant

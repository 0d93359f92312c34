"""Webhook endpoints: the address, types, mode and health of each.

Secrets arrive sealed and leave sealed. A deleted endpoint keeps its row, for the log of its deliveries. Its lease and
`held_until` belong to the sender of ordered deliveries (`server.db.webhooks.ordered_deliveries`).
"""

from dataclasses import dataclass, fields, replace
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from core.ids import EndpointId, MerchantId
from server.db.connection import Connection


class EndpointMode(StrEnum):
    """`ORDERED`: an event that fails holds back the later ones of this endpoint."""

    PARALLEL = "parallel"
    ORDERED = "ordered"


class DisabledReason(StrEnum):
    """The reason for which an endpoint gets nothing: its merchant disabled or paused it, its own 410, days of failures, or its
    deletion.
    """

    MERCHANT = "merchant"
    PAUSED = "paused"
    GONE = "gone"
    FAILING = "failing"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One endpoint. `event_types` None means all; `kept_from_seq` is the first event that is kept for it while it is disabled or
    paused.
    """

    id: EndpointId
    merchant_id: MerchantId
    url: str
    sealed_secret: bytes
    created_at: datetime
    updated_at: datetime
    enabled: bool = True
    mode: EndpointMode = EndpointMode.PARALLEL
    event_types: tuple[str, ...] | None = None
    description: str = ""
    requests_per_second_max: int | None = None
    concurrency_max: int = 32
    disabled_reason: DisabledReason | None = None
    failing_since: datetime | None = None
    sealed_old_secret: bytes | None = None
    old_secret_until: datetime | None = None
    kept_from_seq: int | None = None


_FIELDS = tuple(field.name for field in fields(Endpoint))
_COLUMNS = ", ".join(f"e.{name}" for name in _FIELDS)


def _endpoint(row: tuple[Any, ...]) -> Endpoint:
    values = dict(zip(_FIELDS, row, strict=True))
    types, reason = values["event_types"], values["disabled_reason"]
    values |= {
        "mode": EndpointMode(values["mode"]),
        "event_types": tuple(types) if types is not None else None,
        "disabled_reason": DisabledReason(reason) if reason is not None else None,
    }
    return Endpoint(**values)


async def add_endpoint(connection: Connection, endpoint: Endpoint) -> Endpoint | None:
    """Store an endpoint. An existing one with that id is returned unchanged; None if it was deleted."""
    await connection.run(
        """
        INSERT INTO webhook_endpoints (
            merchant_id, id, url, sealed_secret, enabled, created_at, mode, event_types, description,
            requests_per_second_max, concurrency_max, updated_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $6)
        ON CONFLICT (merchant_id, id) DO NOTHING
        """,
        endpoint.merchant_id,
        endpoint.id,
        endpoint.url,
        endpoint.sealed_secret,
        endpoint.enabled,
        endpoint.created_at,
        endpoint.mode.value,
        list(endpoint.event_types) if endpoint.event_types is not None else None,
        endpoint.description,
        endpoint.requests_per_second_max,
        endpoint.concurrency_max,
    )
    return await find_endpoint(connection, endpoint.merchant_id, endpoint.id)


async def move_endpoint(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, url: str) -> None:
    """Change the address of an endpoint."""
    await connection.run(
        "UPDATE webhook_endpoints SET url = $3 WHERE merchant_id = $1 AND id = $2", merchant_id, endpoint_id, url
    )


async def find_endpoint(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, for_update: bool = False
) -> Endpoint | None:
    """Return the merchant's endpoint of that id unless it was deleted; locked if it is to be changed."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM webhook_endpoints e
         WHERE e.merchant_id = $1 AND e.id = $2 AND e.disabled_reason IS DISTINCT FROM 'deleted'
        {"FOR UPDATE" if for_update else ""}
        """,  # noqa: S608 - own columns
        merchant_id,
        endpoint_id,
    )
    return _endpoint(rows[0]) if rows else None


async def list_endpoints(connection: Connection, merchant_id: MerchantId) -> list[Endpoint]:
    """A merchant's endpoints, oldest first."""
    rows = await connection.query(
        f"""
        SELECT {_COLUMNS} FROM webhook_endpoints e
         WHERE e.merchant_id = $1 AND e.disabled_reason IS DISTINCT FROM 'deleted' ORDER BY e.created_at, e.id
        """,  # noqa: S608 - own columns
        merchant_id,
    )
    return [_endpoint(row) for row in rows]


_KEPT_FROM = """
least((SELECT min(d.event_seq) FROM deliveries d WHERE d.merchant_id = $1 AND d.endpoint_id = $2 AND d.state = 'PENDING'),
      coalesce((SELECT s.last_seq + 1 FROM merchant_sequences s WHERE s.merchant_id = $1), 1))
"""
"""The first event that an endpoint does not get because it is disabled now. One that is written at the same time may be sent and
kept.
"""


async def change_endpoint(connection: Connection, endpoint: Endpoint, *, sends_kept: bool, now: datetime) -> Endpoint:
    """Store what a merchant may change of an endpoint that the caller has locked. `sends_kept`: an enabled one gets what was kept
    for it, and `kept_from_seq` stays until that is certain (`server.db.webhooks.delivery_log.complete_kept`).

    Its failures and `held_until` are reset if it is enabled or its address changes.
    """
    await connection.run(
        f"""
        UPDATE webhook_endpoints
           SET url = $3, mode = $4, event_types = $5, description = $6, requests_per_second_max = $7, concurrency_max = $8,
               updated_at = $10, enabled = $9,
               disabled_reason = CASE WHEN $9 THEN NULL ELSE coalesce($11, disabled_reason, 'merchant') END,
               kept_from_seq = CASE WHEN $9 THEN CASE WHEN $12 THEN kept_from_seq END
                                    WHEN enabled THEN {_KEPT_FROM} ELSE coalesce(kept_from_seq, {_KEPT_FROM}) END,
               disabled_at = CASE WHEN $9 THEN NULL ELSE coalesce(disabled_at, $10) END,
               failing_since = CASE WHEN ($9 AND NOT enabled) OR url <> $3 THEN NULL ELSE failing_since END,
               held_until = CASE WHEN ($9 AND NOT enabled) OR url <> $3 THEN NULL ELSE held_until END
         WHERE merchant_id = $1 AND id = $2
        """,  # noqa: S608 - own conditions
        endpoint.merchant_id,
        endpoint.id,
        endpoint.url,
        endpoint.mode.value,
        list(endpoint.event_types) if endpoint.event_types is not None else None,
        endpoint.description,
        endpoint.requests_per_second_max,
        endpoint.concurrency_max,
        endpoint.enabled,
        now,
        endpoint.disabled_reason.value if endpoint.disabled_reason is not None and not endpoint.enabled else None,
        sends_kept,
    )
    stored = await find_endpoint(connection, endpoint.merchant_id, endpoint.id)
    assert stored is not None
    return stored


async def rotate_secret(
    connection: Connection, endpoint: Endpoint, *, sealed_secret: bytes, old_until: datetime, now: datetime
) -> Endpoint:
    """Sign with a new secret from now on, and with the previous one as well until then. The caller has locked the endpoint."""
    await connection.run(
        """
        UPDATE webhook_endpoints
           SET sealed_old_secret = sealed_secret, old_secret_until = $4, sealed_secret = $3, updated_at = $5
         WHERE merchant_id = $1 AND id = $2
        """,
        endpoint.merchant_id,
        endpoint.id,
        sealed_secret,
        old_until,
        now,
    )
    return replace(
        endpoint,
        sealed_secret=sealed_secret,
        sealed_old_secret=endpoint.sealed_secret,
        old_secret_until=old_until,
        updated_at=now,
    )


async def release_holds(connection: Connection, merchant_id: MerchantId | None, endpoint_id: EndpointId | None) -> None:
    """Allow waiting ordered deliveries to be tried now: of one endpoint, of a merchant, or all."""
    await connection.run(
        """
        UPDATE webhook_endpoints SET held_until = NULL
         WHERE held_until IS NOT NULL AND ($1::uuid IS NULL OR merchant_id = $1) AND ($2::uuid IS NULL OR id = $2)
        """,
        merchant_id,
        endpoint_id,
    )


async def disable_endpoint(
    connection: Connection,
    merchant_id: MerchantId,
    endpoint_id: EndpointId,
    reason: DisabledReason,
    *,
    now: datetime,
    url: str | None = None,
) -> bool:
    """Disable or delete an endpoint. Returns whether that changed it. A deleted one stays deleted; one whose address is no longer
    `url` is left alone.
    """
    touched = await connection.run(
        f"""
        UPDATE webhook_endpoints
           SET enabled = false, disabled_reason = $3, disabled_at = $4, updated_at = $4,
               kept_from_seq = CASE WHEN enabled THEN {_KEPT_FROM} ELSE coalesce(kept_from_seq, {_KEPT_FROM}) END
         WHERE merchant_id = $1 AND id = $2 AND disabled_reason IS DISTINCT FROM 'deleted' AND (enabled OR $3 = 'deleted')
           AND ($5::text IS NULL OR url = $5)
        """,  # noqa: S608 - own conditions
        merchant_id,
        endpoint_id,
        reason.value,
        now,
        url,
    )
    return touched == 1


async def note_health(
    connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId, *, failing_since: datetime | None
) -> datetime | None:
    """Record that an endpoint has been failing since `failing_since`, or has recovered (None). Returns the time since which it
    has been failing, the first that was reported.
    """
    rows = await connection.query(
        """
        UPDATE webhook_endpoints
           SET failing_since = CASE WHEN $3::timestamptz IS NULL THEN NULL ELSE coalesce(failing_since, $3) END
         WHERE merchant_id = $1 AND id = $2 AND enabled RETURNING failing_since
        """,
        merchant_id,
        endpoint_id,
        failing_since,
    )
    since: datetime | None = rows[0][0] if rows else None
    return since


async def count_endpoints(connection: Connection, merchant_id: MerchantId) -> int:
    """The number of a merchant's endpoints, under a lock that admits one new endpoint at a time."""
    await connection.query("SELECT pg_advisory_xact_lock(hashtextextended('endpoints ' || $1::text, 0))", merchant_id)
    rows = await connection.query(
        "SELECT count(*) FROM webhook_endpoints WHERE merchant_id = $1 AND disabled_reason IS DISTINCT FROM 'deleted'",
        merchant_id,
    )
    total: int = rows[0][0]
    return total


async def find_endpoint_owner(connection: Connection, endpoint_id: UUID) -> MerchantId | None:
    """The merchant of an endpoint, for an operator who has only its id."""
    rows = await connection.query("SELECT merchant_id FROM webhook_endpoints WHERE id = $1", endpoint_id)
    return MerchantId(rows[0][0]) if rows else None

"""The API keys of merchants: only a hash of each secret is stored."""

from collections.abc import Sequence
from datetime import datetime
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import msgspec

from core.api_keys import ApiKey, KeyScope, Network
from core.ids import MerchantId
from server.db import json_records
from server.db.connection import Connection
from server.db.merchants.merchants import MERCHANT_COLUMNS, Merchant, merchant_of


class KeyOwner(msgspec.Struct, frozen=True):
    """The merchant of a key that is not revoked, and what the key may do."""

    merchant: Merchant
    key_id: UUID
    requests_per_second_max: int | None
    scopes: frozenset[KeyScope]
    networks: tuple[Network, ...]
    expires_at: datetime | None


_COLUMNS = (
    *("id", "hint", "created_at", "revoked_at", "name", "scopes", "networks", "expires_at", "last_used_at", "replaced_by"),
    "requests_per_second_max",
)
_SELECT = ", ".join(_COLUMNS)


def _key(row: Sequence[Any]) -> ApiKey:
    values = dict(zip(_COLUMNS, row, strict=True))
    return ApiKey(**{**values, "scopes": tuple(map(KeyScope, values["scopes"])), "networks": tuple(values["networks"])})


async def add_api_key(
    connection: Connection,
    merchant_id: MerchantId,
    key_id: UUID,
    *,
    secret_sha256: bytes,
    hint: str,
    now: datetime,
    requests_per_second_max: int | None = None,
    name: str = "",
    scopes: Sequence[KeyScope] = (KeyScope.ALL,),
    networks: Sequence[str] = (),
    expires_at: datetime | None = None,
) -> None:
    """Store a key's hash. Nothing happens if there is a key of that id."""
    await connection.run(
        """
        INSERT INTO api_keys (
            merchant_id, id, secret_sha256, hint, created_at, requests_per_second_max, name, scopes, networks, expires_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10) ON CONFLICT (merchant_id, id) DO NOTHING
        """,
        merchant_id,
        key_id,
        secret_sha256,
        hint,
        now,
        requests_per_second_max,
        name,
        [one.value for one in scopes],
        list(networks),
        expires_at,
    )


async def list_api_keys(connection: Connection, merchant_id: MerchantId) -> list[ApiKey]:
    """A merchant's keys, oldest first."""
    rows = await connection.query(
        f"SELECT {_SELECT} FROM api_keys WHERE merchant_id = $1 ORDER BY created_at, id",  # noqa: S608 - own columns
        merchant_id,
    )
    return [_key(row) for row in rows]


async def lock_api_key(connection: Connection, merchant_id: MerchantId, key_id: UUID) -> ApiKey | None:
    """A merchant's key, locked until the transaction ends."""
    rows = await connection.query(
        f"SELECT {_SELECT} FROM api_keys WHERE merchant_id = $1 AND id = $2 FOR UPDATE",  # noqa: S608 - own columns
        merchant_id,
        key_id,
    )
    return _key(rows[0]) if rows else None


async def replace_api_key(
    connection: Connection, merchant_id: MerchantId, key_id: UUID, *, by: UUID, expires_at: datetime
) -> None:
    """Let a key end then, because another one takes its place."""
    await connection.run(
        "UPDATE api_keys SET replaced_by = $3, expires_at = $4 WHERE merchant_id = $1 AND id = $2",
        merchant_id,
        key_id,
        by,
        expires_at,
    )


async def revoke_api_key(connection: Connection, merchant_id: MerchantId, key_id: UUID, *, now: datetime) -> bool:
    """Revoke a key. Returns False if the merchant has no such key or it was revoked before."""
    touched = await connection.run(
        "UPDATE api_keys SET revoked_at = $3 WHERE merchant_id = $1 AND id = $2 AND revoked_at IS NULL",
        merchant_id,
        key_id,
        now,
    )
    return touched == 1


async def find_key_owner(connection: Connection, merchant_id: MerchantId, *, secret_sha256: bytes) -> KeyOwner | None:
    """The merchant whose unrevoked key has this hash."""
    rows = await connection.query(
        f"""
        SELECT {MERCHANT_COLUMNS}, k.id, k.requests_per_second_max, k.scopes, k.networks, k.expires_at
          FROM api_keys k JOIN merchants m ON m.merchant_id = k.merchant_id
         WHERE k.merchant_id = $1 AND k.secret_sha256 = $2 AND k.revoked_at IS NULL
        """,  # noqa: S608 - own columns
        merchant_id,
        secret_sha256,
    )
    for *merchant, key_id, per_second, scopes, networks, expires_at in rows:
        allowed = tuple(ip_network(one) for one in networks)
        return KeyOwner(merchant_of(merchant), key_id, per_second, frozenset(map(KeyScope, scopes)), allowed, expires_at)
    return None


class KeyRecord(msgspec.Struct, frozen=True):
    """An API key, by its ids."""

    merchant_id: UUID
    id: UUID


async def revoked_keys(connection: Connection, keys: Sequence[tuple[MerchantId, UUID]]) -> set[UUID]:
    """Return which of these keys are revoked or have expired."""
    rows = await connection.query(
        f"""
        SELECT k.id FROM api_keys k
          JOIN json_to_recordset($1::json) AS i ({json_records.columns(KeyRecord)})
            ON (k.merchant_id, k.id) = (i.merchant_id, i.id)
         WHERE k.revoked_at IS NOT NULL OR k.expires_at <= now()
        """,  # noqa: S608 - own columns
        json_records.encode([KeyRecord(*one) for one in keys]),
    )
    return {row[0] for row in rows}


async def note_uses(connection: Connection, keys: Sequence[tuple[MerchantId, UUID]]) -> None:
    """Record that these keys have been used within the last minute."""
    await connection.run(
        f"""
        UPDATE api_keys k SET last_used_at = date_trunc('minute', now())
          FROM (SELECT * FROM json_to_recordset($1::json) AS i ({json_records.columns(KeyRecord)}) ORDER BY merchant_id, id) i
         WHERE k.merchant_id = i.merchant_id AND k.id = i.id
           AND (k.last_used_at IS NULL OR k.last_used_at < date_trunc('minute', now()))
        """,  # noqa: S608 - own columns
        json_records.encode([KeyRecord(*one) for one in keys]),
    )


async def claim_expiring(connection: Connection, *, before: datetime, limit: int) -> list[tuple[MerchantId, ApiKey]]:
    """Keys that end before then, each once, in the caller's transaction: their merchants are to be told."""
    rows = await connection.query(
        f"""
        UPDATE api_keys k SET warned_at = now()
          FROM (SELECT merchant_id AS of_merchant, id AS of_id FROM api_keys
                 WHERE expires_at <= $1 AND expires_at > now() AND revoked_at IS NULL AND warned_at IS NULL
                   AND replaced_by IS NULL ORDER BY merchant_id, id LIMIT $2 FOR UPDATE) due
         WHERE k.merchant_id = due.of_merchant AND k.id = due.of_id AND k.warned_at IS NULL
        RETURNING merchant_id, {_SELECT}
        """,  # noqa: S608 - own columns
        before,
        limit,
    )
    return [(MerchantId(row[0]), _key(row[1:])) for row in rows]

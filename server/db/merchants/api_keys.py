"""The API keys of merchants: only a hash of each secret is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import msgspec

from core.ids import MerchantId
from server.db import json_records
from server.db.connection import Connection
from server.db.merchants.merchants import MERCHANT_COLUMNS, Merchant, merchant_of


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key as it can be shown: only a hash of its secret is stored."""

    id: UUID
    hint: str
    created_at: datetime
    revoked_at: datetime | None


async def add_api_key(
    connection: Connection,
    merchant_id: MerchantId,
    key_id: UUID,
    *,
    secret_sha256: bytes,
    hint: str,
    now: datetime,
    requests_per_second_max: int | None = None,
) -> None:
    """Store a key's hash."""
    await connection.run(
        """
        INSERT INTO api_keys (merchant_id, id, secret_sha256, hint, created_at, requests_per_second_max)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        merchant_id,
        key_id,
        secret_sha256,
        hint,
        now,
        requests_per_second_max,
    )


async def list_api_keys(connection: Connection, merchant_id: MerchantId) -> list[ApiKey]:
    """A merchant's keys, oldest first."""
    rows = await connection.query(
        "SELECT id, hint, created_at, revoked_at FROM api_keys WHERE merchant_id = $1 ORDER BY created_at, id",
        merchant_id,
    )
    return [ApiKey(*row) for row in rows]


async def revoke_api_key(connection: Connection, merchant_id: MerchantId, key_id: UUID, *, now: datetime) -> bool:
    """Revoke a key. Returns False if the merchant has no such key or it was revoked before."""
    touched = await connection.run(
        "UPDATE api_keys SET revoked_at = $3 WHERE merchant_id = $1 AND id = $2 AND revoked_at IS NULL",
        merchant_id,
        key_id,
        now,
    )
    return touched == 1


async def find_key_owner(
    connection: Connection, merchant_id: MerchantId, *, secret_sha256: bytes
) -> tuple[Merchant, UUID, int | None] | None:
    """The merchant whose unrevoked key has this hash, the key's id, and its own rate, if it has one."""
    rows = await connection.query(
        f"""
        SELECT {MERCHANT_COLUMNS}, k.id, k.requests_per_second_max
          FROM api_keys k JOIN merchants m ON m.merchant_id = k.merchant_id
         WHERE k.merchant_id = $1 AND k.secret_sha256 = $2 AND k.revoked_at IS NULL
        """,  # noqa: S608 - own columns
        merchant_id,
        secret_sha256,
    )
    for *merchant, key_id, per_second in rows:
        return merchant_of(merchant), key_id, per_second
    return None


class KeyRecord(msgspec.Struct, frozen=True):
    """An API key, by its ids."""

    merchant_id: UUID
    id: UUID


async def revoked_keys(connection: Connection, keys: Sequence[tuple[MerchantId, UUID]]) -> set[UUID]:
    """Return which of these keys are revoked."""
    rows = await connection.query(
        f"""
        SELECT k.id FROM api_keys k
          JOIN json_to_recordset($1::json) AS i ({json_records.columns(KeyRecord)})
            ON (k.merchant_id, k.id) = (i.merchant_id, i.id)
         WHERE k.revoked_at IS NOT NULL
        """,  # noqa: S608 - own columns
        json_records.encode([KeyRecord(*one) for one in keys]),
    )
    return {row[0] for row in rows}

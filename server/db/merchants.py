"""Merchants, their API keys and webhook endpoints, and the accounts at PSPs. Secrets arrive sealed and leave sealed."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from core.ids import EndpointId, MerchantId, PspAccountId
from server.db.connection import Connection


@dataclass(frozen=True, slots=True)
class Merchant:
    """Who sells. `mode` is test or live; the two share nothing."""

    id: MerchantId
    name: str
    mode: str
    psp_account_id: PspAccountId
    created_at: datetime


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A key as it can be shown: its secret is stored as a hash only."""

    id: UUID
    hint: str
    created_at: datetime
    revoked_at: datetime | None


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a merchant wants its events."""

    id: EndpointId
    merchant_id: MerchantId
    url: str
    sealed_secret: bytes
    enabled: bool


@dataclass(frozen=True, slots=True)
class PspAccount:
    """Our account at a PSP."""

    id: PspAccountId
    psp: str
    mode: str
    base_url: str
    sealed_api_key: bytes
    sealed_webhook_secret: bytes


_MERCHANT = "m.merchant_id, m.name, m.mode, m.psp_account_id, m.created_at"


def _merchant(row: tuple[Any, ...]) -> Merchant:
    return Merchant(MerchantId(row[0]), row[1], row[2], PspAccountId(row[3]), row[4])


async def add_psp_account(connection: Connection, account: PspAccount, *, now: datetime) -> None:
    """Store an account, or move it to another address."""
    await connection.run(
        """
        INSERT INTO psp_accounts (id, psp, mode, base_url, sealed_api_key, sealed_webhook_secret, created_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7)
        ON CONFLICT (id) DO UPDATE SET base_url = excluded.base_url
        """,
        account.id,
        account.psp,
        account.mode,
        account.base_url,
        account.sealed_api_key,
        account.sealed_webhook_secret,
        now,
    )


async def list_psp_accounts(connection: Connection) -> list[PspAccount]:
    """All accounts, oldest first."""
    rows = await connection.query(
        "SELECT id, psp, mode, base_url, sealed_api_key, sealed_webhook_secret FROM psp_accounts ORDER BY created_at, id"
    )
    return [PspAccount(PspAccountId(row[0]), *row[1:]) for row in rows]


async def add_merchant(connection: Connection, merchant: Merchant) -> None:
    """Store a new merchant."""
    await connection.run(
        "INSERT INTO merchants (merchant_id, name, mode, psp_account_id, created_at) VALUES ($1, $2, $3, $4, $5)",
        merchant.id,
        merchant.name,
        merchant.mode,
        merchant.psp_account_id,
        merchant.created_at,
    )


async def list_merchants(connection: Connection) -> list[Merchant]:
    """All merchants, oldest first."""
    rows = await connection.query(
        f"SELECT {_MERCHANT} FROM merchants m ORDER BY created_at, merchant_id"  # noqa: S608 - own columns
    )
    return [_merchant(row) for row in rows]


async def find_merchant(connection: Connection, merchant_id: MerchantId) -> Merchant | None:
    """The merchant of that id."""
    rows = await connection.query(
        f"SELECT {_MERCHANT} FROM merchants m WHERE merchant_id = $1",  # noqa: S608 - own columns
        merchant_id,
    )
    return _merchant(rows[0]) if rows else None


async def add_api_key(
    connection: Connection, merchant_id: MerchantId, key_id: UUID, *, secret_sha256: bytes, hint: str, now: datetime
) -> None:
    """Store a key's hash."""
    await connection.run(
        "INSERT INTO api_keys (merchant_id, id, secret_sha256, hint, created_at) VALUES ($1, $2, $3, $4, $5)",
        merchant_id,
        key_id,
        secret_sha256,
        hint,
        now,
    )


async def list_api_keys(connection: Connection, merchant_id: MerchantId) -> list[ApiKey]:
    """A merchant's keys, oldest first."""
    rows = await connection.query(
        "SELECT id, hint, created_at, revoked_at FROM api_keys WHERE merchant_id = $1 ORDER BY created_at, id",
        merchant_id,
    )
    return [ApiKey(*row) for row in rows]


async def revoke_api_key(connection: Connection, merchant_id: MerchantId, key_id: UUID, *, now: datetime) -> bool:
    """End a key; False where the merchant has no such key or it ended before."""
    touched = await connection.run(
        "UPDATE api_keys SET revoked_at = $3 WHERE merchant_id = $1 AND id = $2 AND revoked_at IS NULL",
        merchant_id,
        key_id,
        now,
    )
    return touched == 1


async def find_key_owner(connection: Connection, merchant_id: MerchantId, *, secret_sha256: bytes) -> Merchant | None:
    """The merchant whose unrevoked key has this hash."""
    rows = await connection.query(
        f"""
        SELECT {_MERCHANT}
          FROM api_keys k JOIN merchants m ON m.merchant_id = k.merchant_id
         WHERE k.merchant_id = $1 AND k.secret_sha256 = $2 AND k.revoked_at IS NULL
        """,  # noqa: S608 - own columns
        merchant_id,
        secret_sha256,
    )
    return _merchant(rows[0]) if rows else None


async def add_endpoint(connection: Connection, endpoint: Endpoint, *, now: datetime) -> None:
    """Store an endpoint, or move it to another address."""
    await connection.run(
        """
        INSERT INTO webhook_endpoints (merchant_id, id, url, sealed_secret, enabled, created_at)
        VALUES ($1, $2, $3, $4, $5, $6)
        ON CONFLICT (merchant_id, id) DO UPDATE SET url = excluded.url
        """,
        endpoint.merchant_id,
        endpoint.id,
        endpoint.url,
        endpoint.sealed_secret,
        endpoint.enabled,
        now,
    )


async def find_endpoint(connection: Connection, merchant_id: MerchantId, endpoint_id: EndpointId) -> Endpoint | None:
    """The merchant's endpoint of that id."""
    rows = await connection.query(
        "SELECT id, merchant_id, url, sealed_secret, enabled FROM webhook_endpoints WHERE merchant_id = $1 AND id = $2",
        merchant_id,
        endpoint_id,
    )
    return Endpoint(EndpointId(rows[0][0]), MerchantId(rows[0][1]), *rows[0][2:]) if rows else None

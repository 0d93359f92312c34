"""API keys: made by operators, rotated by operators or merchants, with an overlap in which both keys are valid."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from core.api_keys import ApiKey
from core.errors import Conflict, NotFound
from core.ids import API_KEY, encode_id
from server.credentials import api_key, key_hash
from server.db.connection import Connection
from server.db.merchants.api_keys import add_api_key, lock_api_key, replace_api_key
from server.db.merchants.merchants import Merchant

OVERLAP_SECONDS_MAX = 30 * 86_400


@dataclass(frozen=True, slots=True)
class Made:
    """A new key with its secret, which is not shown again."""

    key: ApiKey
    secret: str


async def rotate(
    connection: Connection,
    merchant: Merchant,
    key_id: UUID,
    made_id: UUID,
    *,
    overlap_seconds: int,
    renews: bool,
    secret_bytes: bytes | None = None,
    now: datetime,
) -> Made:
    """Make a key with the same name, scopes, networks and limits, in the caller's transaction; the old one ends after an overlap.

    A key with an end gets one as long again if it `renews`, else the same end. `made_id` is the new key's id, and with
    `secret_bytes` its secret is derived, so repeating the request makes nothing twice.
    Raises `NotFound`, and `Conflict` for a key that is over or was rotated before.
    """
    mode: Literal["test", "live"] = "live" if merchant.mode == "live" else "test"
    secret = api_key(mode, merchant.id, secret_bytes)
    old = await lock_api_key(connection, merchant.id, key_id)
    if old is None:
        raise NotFound("no such API key")
    if old.replaced_by == made_id:
        again = await lock_api_key(connection, merchant.id, made_id)
        assert again is not None
        return Made(again, secret)
    if old.revoked_at is not None or (old.expires_at is not None and old.expires_at <= now):
        raise Conflict("this key is no longer valid: add a new one", code="key_not_valid")
    if old.replaced_by is not None:
        replaced = encode_id(API_KEY, old.replaced_by)
        raise Conflict(f"this key was rotated before: {replaced} has taken its place", code="key_rotated")
    await add_api_key(
        connection,
        merchant.id,
        made_id,
        secret_sha256=key_hash(secret),
        hint=secret[-4:],
        now=now,
        requests_per_second_max=old.requests_per_second_max,
        name=old.name,
        scopes=old.scopes,
        networks=old.networks,
        expires_at=now + (old.expires_at - old.created_at) if renews and old.expires_at is not None else old.expires_at,
    )
    ends_at = now + timedelta(seconds=overlap_seconds)
    until = min(ends_at, old.expires_at) if old.expires_at is not None else ends_at
    await replace_api_key(connection, merchant.id, key_id, by=made_id, expires_at=until)
    made = await lock_api_key(connection, merchant.id, made_id)
    assert made is not None
    return Made(made, secret)

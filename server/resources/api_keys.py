"""API keys as merchants see them."""

from typing import Literal

import msgspec

from core.api_keys import ApiKey as Key
from core.ids import API_KEY, encode_id
from server.resources.times import Time


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """An API key. `secret` is present only if it was just made; `last_used_at` is exact to the minute. `replaced_by` is the key
    that a rotation has made.
    """

    id: str
    object: Literal["api_key"]
    name: str
    ends_in: str
    scopes: list[str]
    networks: list[str]
    expires_at: Time | None
    last_used_at: Time | None
    revoked_at: Time | None
    replaced_by: str | None
    created_at: Time
    secret: str | msgspec.UnsetType = msgspec.UNSET

    @classmethod
    def of(cls, key: Key, *, secret: str | None = None) -> "ApiKey":
        """The document of a key."""
        return cls(
            id=encode_id(API_KEY, key.id),
            object="api_key",
            name=key.name,
            ends_in=key.hint,
            scopes=[one.value for one in key.scopes],
            networks=list(key.networks),
            expires_at=key.expires_at,
            last_used_at=key.last_used_at,
            revoked_at=key.revoked_at,
            replaced_by=encode_id(API_KEY, key.replaced_by) if key.replaced_by is not None else None,
            created_at=key.created_at,
            secret=secret if secret is not None else msgspec.UNSET,
        )

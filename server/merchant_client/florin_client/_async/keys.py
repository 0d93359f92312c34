"""API keys of the merchant that calls."""

from florin_client._async.pages import whole
from florin_client._async.transport import AsyncTransport
from florin_client._requests import Request, checked_key, segment, without_none
from florin_client.resources import ApiKey, ApiKeyWithSecret


class AsyncApiKeys:
    """`/v1/api-keys`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def list(self) -> tuple[ApiKey, ...]:
        """Return all keys, without their secrets."""
        return await whole(self._transport, "/v1/api-keys", ApiKey)

    async def rotate(
        self, key_id: str, *, overlap_seconds: int | None = None, idempotency_key: str | None = None
    ) -> ApiKeyWithSecret:
        """Make a key in place of another, and return it with its `secret`. Both are valid for `overlap_seconds`, a day unless
        given.
        """
        body = without_none(overlap_seconds=overlap_seconds)
        path = f"/v1/api-keys/{segment(key_id)}/rotate"
        return await self._transport.call(Request("POST", path, ApiKeyWithSecret, body, checked_key(idempotency_key)))

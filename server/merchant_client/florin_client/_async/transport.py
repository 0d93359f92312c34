"""HTTP and time for the client on asyncio and trio. Its twin in `_blocking` is written by hand."""

import time
from collections.abc import AsyncGenerator
from typing import Any, TypeVar

import anyio
import httpx2

from florin_client._requests import (
    CONNECT_SECONDS,
    TRIES_MAX,
    Request,
    Retry,
    base_url,
    checked_api_key,
    read,
    unavailable,
    wait_seconds,
)

T = TypeVar("T")
CLOSE_SECONDS = 5


class AsyncTransport:
    """Connections to one Florin: a pool of its own, or the caller's httpx2 client, which the caller closes."""

    def __init__(self, url: str, api_key: str, http: httpx2.AsyncClient | None) -> None:
        self._url, self._api_key = base_url(url), checked_api_key(api_key)
        self._is_own = http is None
        self._http = http if http is not None else httpx2.AsyncClient(follow_redirects=False)

    async def close(self) -> None:
        """Close all connections."""
        if not self._is_own:
            return
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await self._http.aclose()

    async def sleep(self, seconds: float) -> None:
        """Wait."""
        await anyio.sleep(seconds)

    async def call(self, request: Request[T]) -> T:
        """Send a request, repeat it where `read` asks for that, and return its reply. Raises `ApiError`, `FlorinUnavailable`."""
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            try:
                response = await self._http.request(request.method, self._url + request.path, **self._arguments(request))
            except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
                raise ValueError(f"the request cannot be sent: {type(error).__name__}") from None
            except httpx2.RequestError as error:
                if tries >= TRIES_MAX:
                    raise unavailable(request, error) from error
                await anyio.sleep(wait_seconds(tries))
                continue
            retry_after, elapsed = response.headers.get("retry-after"), time.monotonic() - began
            reply = read(request, response.status_code, retry_after, response.content, tries=tries, elapsed=elapsed)
            if not isinstance(reply, Retry):
                return reply
            await anyio.sleep(reply.seconds)

    async def lines(self, request: Request[str]) -> AsyncGenerator[bytes, None]:
        """Stream a reply line by line, without repeating anything. Raises `ApiError`, `FlorinUnavailable`, also in the middle."""
        rest = b""
        try:
            async with self._http.stream(request.method, self._url + request.path, **self._arguments(request)) as response:
                if response.status_code != 200:
                    read(request, response.status_code, None, await response.aread(), tries=TRIES_MAX, elapsed=0.0)
                async for chunk in response.aiter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line  # noqa: ASYNC119 - whoever leaves early closes the generator, and with it the response
        except httpx2.RequestError as error:
            raise unavailable(request, error) from error

    def _arguments(self, request: Request[Any]) -> dict[str, Any]:
        timeout = httpx2.Timeout(request.timeout_seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
        return {"content": request.content(), "headers": request.headers(self._api_key), "timeout": timeout}

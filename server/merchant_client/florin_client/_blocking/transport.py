"""HTTP and time for the blocking client. Its twin in `_async` has the same methods."""

import time
from collections.abc import Generator
from typing import Any, TypeVar

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


class Transport:
    """Connections to one Florin: a pool of its own, or the caller's httpx2 client, which the caller closes."""

    def __init__(self, url: str, api_key: str, http: httpx2.Client | None) -> None:
        self._url, self._api_key = base_url(url), checked_api_key(api_key)
        self._is_own = http is None
        self._http = http if http is not None else httpx2.Client(follow_redirects=False)

    def close(self) -> None:
        """Close all connections."""
        if self._is_own:
            self._http.close()

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)

    def call(self, request: Request[T]) -> T:
        """Send a request, repeat it where `read` asks for that, and return its reply. Raises `ApiError`, `FlorinUnavailable`."""
        tries, began = 0, time.monotonic()
        while True:
            tries += 1
            try:
                response = self._http.request(request.method, self._url + request.path, **self._arguments(request))
            except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol) as error:
                raise ValueError(f"the request cannot be sent: {type(error).__name__}") from None
            except httpx2.RequestError as error:
                if tries >= TRIES_MAX:
                    raise unavailable(request, error) from error
                time.sleep(wait_seconds(tries))
                continue
            retry_after, elapsed = response.headers.get("retry-after"), time.monotonic() - began
            reply = read(request, response.status_code, retry_after, response.content, tries=tries, elapsed=elapsed)
            if not isinstance(reply, Retry):
                return reply
            time.sleep(reply.seconds)

    def lines(self, request: Request[str]) -> Generator[bytes, None, None]:
        """Stream a reply line by line, without repeating anything. Raises `ApiError`, `FlorinUnavailable`, also in the middle."""
        rest = b""
        try:
            with self._http.stream(request.method, self._url + request.path, **self._arguments(request)) as response:
                if response.status_code != 200:
                    read(request, response.status_code, None, response.read(), tries=TRIES_MAX, elapsed=0.0)
                for chunk in response.iter_bytes():
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield line
        except httpx2.RequestError as error:
            raise unavailable(request, error) from error

    def _arguments(self, request: Request[Any]) -> dict[str, Any]:
        timeout = httpx2.Timeout(request.timeout_seconds, connect=CONNECT_SECONDS, pool=CONNECT_SECONDS)
        return {"content": request.content(), "headers": request.headers(self._api_key), "timeout": timeout}

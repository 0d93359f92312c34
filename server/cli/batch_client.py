"""The batch API from outside: one batch followed to its end over connections that may break."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec
import trio

from core.errors import FlorinError

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 60.0
"""A stream that says nothing for so long has broken: the server says something every few seconds."""

GIVE_UP_SECONDS = 120.0
DELAYS_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_LINES = {"accept": "application/x-ndjson"}


Take = Callable[[dict[str, Any]], None]
"""Is given each line of a reply."""


class BatchFailed(FlorinError):
    """The server cannot be reached, or does not take the batch; the text says why and what to do."""

    code = "batch_failed"


class BatchRefused(BatchFailed):
    """The server has refused: nothing was begun."""

    code = "batch_refused"


class _Broken(Exception):
    """The connection broke, or the server asks to come back later."""


class _NotReached(_Broken):
    """Nothing was sent."""


class BatchClient:
    """The API of one merchant."""

    def __init__(self, url: str, api_key: str) -> None:
        self._url = url
        timeout = httpx2.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        self._http = httpx2.AsyncClient(
            base_url=url, timeout=timeout, headers={"authorization": f"Bearer {api_key}", **_LINES}, trust_env=False
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with trio.move_on_after(CONNECT_SECONDS, shield=True):
            await self._http.aclose()

    async def stop(self, batch_id: str) -> None:
        """Have no more items started. What cannot be told now is left: the batch goes on."""
        try:
            await self._http.post(f"/v1/batches/{batch_id}/stop")
        except httpx2.HTTPError:
            return

    async def read(self, batch_id: str) -> dict[str, Any]:
        """A batch as it stands. Raises `_Broken`, `BatchFailed`."""
        try:
            response = await self._http.get(f"/v1/batches/{batch_id}", headers={"accept": "application/json"})
        except httpx2.HTTPError as error:
            raise _Broken(str(error) or type(error).__name__) from error
        document: dict[str, Any] = self._document(response.status_code, response.content)
        return document

    async def ask(self, method: str, path: str, take: Take, body: Any = None, *, key: str | None = None) -> None:
        """Have each line of a reply taken. Raises `_Broken` where it ends too soon, `BatchRefused` where it is a refusal."""
        headers = {"content-type": "application/json", **({"idempotency-key": key} if key is not None else {})}
        content = msgspec.json.encode(body) if body is not None else None
        try:
            async with self._http.stream(method, path, content=content, headers=headers) as response:
                if response.status_code != 200:
                    take(self._document(response.status_code, await response.aread()))
                    return
                async for line in response.aiter_lines():
                    take(msgspec.json.decode(line))
        except httpx2.ConnectError as error:
            raise _NotReached(f"{self._url} cannot be reached: {error}. Is it running?") from error
        except (httpx2.HTTPError, msgspec.DecodeError) as error:
            raise _Broken(str(error) or type(error).__name__) from error

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            document = msgspec.json.decode(body)
        except msgspec.DecodeError:
            document = None
        if not isinstance(document, dict):
            raise BatchRefused(f"{self._url} answered {status} with something that is not JSON: is it a Florin?")
        if status == 200 or "errors" in document:
            return document
        if status in (429, 502, 503, 504):
            raise _Broken(str(document.get("detail", status)))
        raise BatchRefused(str(document.get("detail", f"the server answered {status}")))


class Follower:
    """Begins a batch, or goes on with one, and follows it to its end. `body` is sent under `key`, again after a break."""

    def __init__(self, client: BatchClient, key: str, body: dict[str, Any], batch_id: str | None, terms: dict[str, int]) -> None:
        self._client = client
        self._key = key
        self._body = body
        self._batch_id = batch_id
        self._terms = terms
        self._is_resuming = batch_id is not None
        self._position = 0
        self._is_over = False

    async def follow(self, take: Take) -> None:
        """Have taken what the server says, each item once per run; the last one is the end. Raises `BatchFailed`."""
        failures, failing_since = 0, trio.current_time()

        def heard(line: dict[str, Any]) -> None:
            nonlocal failures
            failures = 0
            self._note(line)
            take(line)

        while not self._is_over:
            try:
                await self._once(heard, take)
            except _Broken as error:
                if isinstance(error, _NotReached) and self._batch_id is None and not failures:
                    raise BatchRefused(str(error)) from error
                if not failures:
                    failing_since = trio.current_time()
                elif trio.current_time() - failing_since > GIVE_UP_SECONDS:
                    raise BatchFailed(f"the connection is lost: {error}. Go on with --resume") from error
                failures += 1
                await trio.sleep(DELAYS_SECONDS[min(failures, len(DELAYS_SECONDS)) - 1])

    async def _once(self, heard: Take, take: Take) -> None:
        if self._batch_id is None:
            await self._client.ask("POST", "/v1/batches", heard, self._body, key=self._key)
            return
        token = (await self._client.read(self._batch_id))["resume_token"] if self._is_resuming else None
        if token is None:
            await self._client.ask("GET", self._path(), heard)
            return

        def earlier(line: dict[str, Any]) -> None:
            if line.get("object") == "batch_item":
                self._position = max(self._position, line["position"])
                take(line)

        await self._client.ask("GET", self._path(), earlier)
        body = {"resume_token": token, **self._terms}
        await self._client.ask("POST", f"/v1/batches/{self._batch_id}/resume", heard, body)

    def _path(self) -> str:
        return f"/v1/batches/{self._batch_id}?after={self._position}"

    def _note(self, line: dict[str, Any]) -> None:
        self._is_resuming = False
        kind = line.get("object")
        if kind == "batch":
            self._batch_id = line["id"]
        elif kind == "batch_item":
            self._position = max(self._position, line["position"])
        elif kind != "progress":
            ended = line.get("batch") or line
            self._is_over = "errors" in line or ended.get("status") != "RUNNING"

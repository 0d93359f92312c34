"""A client of the batch API: follows one batch to its end over connections that may break."""

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx2
import msgspec
import trio

from core.errors import FlorinError

CONNECT_SECONDS = 10.0
STOP_SECONDS = 5.0
SILENCE_SECONDS = 60.0
"""A stream that is silent for this long has broken: the server sends something every few seconds."""

GIVE_UP_SECONDS = 120.0
DELAYS_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
_REFUSALS = (400, 401, 403, 404, 413, 415, 422)
_NOT_NOW = (408, 425, 429)
_LINES = {"accept": "application/x-ndjson"}


Take = Callable[[dict[str, Any]], None]
"""Called with each line of a reply."""


class BatchFailed(FlorinError):
    """The server cannot be reached, or does not take the batch; the text says why and what to do."""

    code = "batch_failed"


class BatchRefused(BatchFailed):
    """The server has refused the batch: nothing was begun."""

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

    async def stop(self, batch_id: str) -> bool:
        """Ask for no more items to be started. Returns whether the server has received it."""
        try:
            with trio.fail_after(STOP_SECONDS):
                response = await self._http.post(f"/v1/batches/{batch_id}/stop")
        except (httpx2.HTTPError, trio.TooSlowError):
            return False
        return response.status_code == 202

    async def read(self, batch_id: str) -> dict[str, Any]:
        """Return the current state of a batch. Raises `_Broken`, `BatchFailed`."""
        try:
            response = await self._http.get(f"/v1/batches/{batch_id}", headers={"accept": "application/json"})
        except httpx2.ConnectError as error:
            raise _NotReached(f"{self._url} cannot be reached: {error}. Check that it is running") from error
        except httpx2.HTTPError as error:
            raise _Broken(str(error) or type(error).__name__) from error
        document: dict[str, Any] = self._document(response.status_code, response.content)
        return document

    async def ask(self, method: str, path: str, take: Take, body: Any = None, *, key: str | None = None) -> None:
        """Pass on each line of a reply. Raises `_Broken` if it ends too soon, `BatchRefused` if it is a refusal."""
        headers = {"content-type": "application/json", **({"idempotency-key": key} if key is not None else {})}
        content = msgspec.json.encode(body) if body is not None else None
        try:
            async with self._http.stream(method, path, content=content, headers=headers) as response:
                if response.status_code != 200:
                    take(self._document(response.status_code, await response.aread()))
                    return
                await self._take_lines(response, take)
        except (httpx2.ConnectError, httpx2.UnsupportedProtocol) as error:
            raise _NotReached(f"{self._url} cannot be reached: {error}. Check that it is running") from error
        except httpx2.HTTPError as error:
            raise _Broken(str(error) or type(error).__name__) from error

    async def _take_lines(self, response: httpx2.Response, take: Take) -> None:
        """Pass on each line of the stream. Only a line feed ends a line, because texts may contain other line separators."""
        rest = b""
        async for piece in response.aiter_bytes():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                try:
                    document = msgspec.json.decode(line)
                except msgspec.DecodeError as error:
                    raise BatchFailed(f"the reply of {self._url} cannot be read: {error}. Continue with --resume") from error
                take(document)

    def _document(self, status: int, body: bytes) -> dict[str, Any]:
        """Handle a reply that is not a stream. Raises `BatchRefused` only if nothing can have been begun by the request."""
        try:
            document = msgspec.json.decode(body)
        except msgspec.DecodeError:
            document = None
        said = str(document.get("detail", "")) if isinstance(document, dict) else "with something that is not JSON"
        if isinstance(document, dict) and (status in (200, 202) or "errors" in document):
            return document
        if status in _REFUSALS and isinstance(document, dict):
            raise BatchRefused(said or f"the server answered {status}")
        if status >= 500 or status in _NOT_NOW:
            raise _Broken(f"{self._url} answered {status}: {said}")
        raise BatchFailed(
            f"{self._url} answered {status}: {said}. Check that it is a Florin; the run is kept: continue with --resume"
        )


class Follower:
    """Starts or continues a batch, and follows it to its end.

    `body` is sent under `key`, again after a break. A batch that has ended unfinished is resumed once, with `terms`, unless
    `may_resume` is taken back. `may_be_begun`: a request that started it may have arrived.
    """

    def __init__(
        self,
        client: BatchClient,
        key: str,
        body: dict[str, Any],
        batch_id: str | None,
        terms: dict[str, int],
        *,
        is_resumed: bool,
    ) -> None:
        self._client = client
        self._key = key
        self._body = body
        self._batch_id = batch_id
        self._terms = terms
        self._is_resuming = is_resumed
        self._token: str | None = None
        """The resume token that was used last, or None."""
        self._position = 0
        self._failures = 0
        self.may_resume = True
        self.may_be_begun = is_resumed
        self.is_over = False

    async def follow(self, take: Take) -> None:
        """Pass on the server's lines, each item once per run, the end last. Raises `BatchFailed`."""
        failing_since = trio.current_time()
        while not self.is_over:
            try:
                await self._once(take)
            except _Broken as error:
                is_first = not self._failures
                if isinstance(error, _NotReached) and is_first and self._position == 0:
                    raise BatchRefused(str(error)) from error
                self.may_be_begun = self.may_be_begun or not isinstance(error, _NotReached)
                if is_first:
                    failing_since = trio.current_time()
                elif trio.current_time() - failing_since > GIVE_UP_SECONDS:
                    raise BatchFailed(f"the connection is lost: {error}. Continue with --resume") from error
                self._failures += 1
                await trio.sleep(DELAYS_SECONDS[min(self._failures, len(DELAYS_SECONDS)) - 1])

    async def _once(self, take: Take) -> None:
        def heard(line: dict[str, Any]) -> None:
            self._note(line)
            take(line)

        if self._batch_id is None:
            await self._client.ask("POST", "/v1/batches", heard, self._body, key=self._key)
        else:
            token = (await self._client.read(self._batch_id))["resume_token"] if self._is_resuming else None
            if token is None:
                self._is_resuming = False
                await self._client.ask("GET", self._path(), heard)
            else:
                await self._resume(take, heard, token)
        if not self.is_over:
            raise _Broken("the reply ended in the middle")
        if self._is_resuming and self.may_resume and self._batch_id is not None:
            self.is_over = False  # the earlier request had ended here: its remainder is continued
            self._position = 0  # and it may have reported its last run only

    async def _resume(self, take: Take, heard: Take, token: str) -> None:
        def earlier(line: dict[str, Any]) -> None:
            if line.get("object") == "batch_item":
                self._position = max(self._position, line["position"])
                take(line)

        await self._client.ask("GET", self._path(), earlier)
        if not self.may_resume:
            self.is_over = True
            return
        if self._token not in (None, token):  # the batch was resumed, and has ended again: one resumption was asked for
            self._is_resuming = False
            return
        self._token = token
        body = {"resume_token": token, **self._terms}
        await self._client.ask("POST", f"/v1/batches/{self._batch_id}/resume", heard, body)
        self._is_resuming = False

    def _path(self) -> str:
        return f"/v1/batches/{self._batch_id}?after={self._position}"

    def _note(self, line: dict[str, Any]) -> None:
        kind = line.get("object")
        if kind == "batch":
            self._batch_id = line["id"]
            if line["status"] == "RUNNING":
                self._is_resuming = False
        elif kind == "batch_item":
            if line["position"] > self._position:
                self._failures = 0
            self._position = max(self._position, line["position"])
        elif kind != "progress":
            ended = line.get("batch") or line
            self.is_over = "errors" in line or ended.get("status") != "RUNNING"

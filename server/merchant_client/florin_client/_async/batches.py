"""Batches: many operations under one deadline."""

import time
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from florin_client._async.pages import pages
from florin_client._async.transport import AsyncTransport
from florin_client._decoding import decode
from florin_client._requests import PAGE_LIMIT, REQUEST_SECONDS, Request, checked_key, prefer, segment, with_query, without_none
from florin_client.errors import ApiError, FlorinError, FlorinUnavailable
from florin_client.requests import NewItem
from florin_client.resources import Batch, BatchItem, BatchItemPage, BatchReport

DEADLINE_SECONDS, DEADLINE_SECONDS_MAX = 300, 900
GRACE_SECONDS = 90
"""The server replies within a minute of the deadline."""

PAUSE_SECONDS = 1.0


class AsyncBatches:
    """`/v1/batches`."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def run(
        self,
        items: Sequence[NewItem],
        *,
        deadline_seconds: int = DEADLINE_SECONDS,
        concurrency: int | None = None,
        idempotency_key: str | None = None,
    ) -> BatchReport:
        """Carry out up to 10,000 items and return a result for each of them, whether or not the deadline has passed.

        A report with status TIMED_OUT has a `resume_token` for `resume`. Raises `ApiError` with code `invalid_items` before
        anything has begun if an item is wrong: `error.problem["errors"]` names each of them.
        """
        body = _body(items, deadline_seconds, concurrency)
        return await self._until_ended("/v1/batches", body, deadline_seconds, checked_key(idempotency_key))

    async def submit(
        self,
        items: Sequence[NewItem],
        *,
        deadline_seconds: int = DEADLINE_SECONDS,
        concurrency: int | None = None,
        idempotency_key: str | None = None,
    ) -> Batch:
        """Accept a batch and return it while it runs. Follow it with `get` and `items`."""
        body = _body(items, deadline_seconds, concurrency)
        return await self._transport.call(Request("POST", "/v1/batches", Batch, body, checked_key(idempotency_key), prefer(0)))

    async def resume(
        self, batch_id: str, resume_token: str, *, deadline_seconds: int | None = None, concurrency: int | None = None
    ) -> BatchReport:
        """Settle the UNKNOWN items of a batch, start those that were not started, and return a result for each item.

        A token is good for one resumption; repeating it returns that one. Deadline and concurrency are those of the batch unless
        given.
        """
        terms = without_none(deadline_seconds=deadline_seconds, concurrency=concurrency)
        body = {"resume_token": resume_token, **terms}
        return await self._until_ended(f"{_path(batch_id)}/resume", body, deadline_seconds or DEADLINE_SECONDS_MAX, None)

    async def stop(self, batch_id: str) -> Batch:
        """Start no more items. Those under way are finished."""
        return await self._transport.call(Request("POST", f"{_path(batch_id)}/stop", Batch))

    async def get(self, batch_id: str, *, wait_seconds: int | None = None) -> Batch:
        """Return a batch; with `wait_seconds` (at most 60) once it has ended, or when that time has passed."""
        return await self._transport.call(
            Request(
                "GET", _path(batch_id), Batch, prefer=prefer(wait_seconds), timeout_seconds=REQUEST_SECONDS + (wait_seconds or 0)
            )
        )

    def list(self) -> AsyncGenerator[Batch, None]:
        """Yield batches, newest first."""
        return pages(self._transport, "/v1/batches", Batch)

    async def items(self, batch_id: str, *, after: int = 0) -> AsyncGenerator[BatchItem, None]:
        """Yield the results known so far after the position `after`, in the order in which they became known."""
        while True:
            path = with_query(f"{_path(batch_id)}/items", {"after": after, "limit": PAGE_LIMIT})
            page = await self._transport.call(Request("GET", path, BatchItemPage))
            for item in page.data:
                yield item
            after = page.position
            if not page.has_more:
                return

    async def _until_ended(
        self, path: str, body: dict[str, Any], deadline_seconds: int, idempotency_key: str | None
    ) -> BatchReport:
        """Repeat the request until the batch has ended: a worker that is stopping replies although it continues elsewhere."""
        seconds = deadline_seconds + GRACE_SECONDS
        request = Request("POST", path, dict[str, Any], body, idempotency_key, timeout_seconds=seconds)
        ends_at = time.monotonic() + seconds
        while True:
            try:
                reply = await self._transport.call(request)
            except ApiError as error:
                if error.code != "batch_deadline_passed":
                    raise
                reply = {**error.problem.get("batch", {}), "items": error.problem.get("items")}
            if "items" in reply:
                return decode(BatchReport, reply)
            if time.monotonic() >= ends_at:
                raise FlorinUnavailable("the batch did not end in time", idempotency_key)
            await self._transport.sleep(PAUSE_SECONDS)
            try:
                await self.get(decode(Batch, reply).id, wait_seconds=25)
            except FlorinError as error:
                raise FlorinUnavailable(str(error), idempotency_key) from error


def _body(items: Sequence[NewItem], deadline_seconds: int, concurrency: int | None) -> dict[str, Any]:
    return {"items": list(items), "deadline_seconds": deadline_seconds, **without_none(concurrency=concurrency)}


def _path(batch_id: str) -> str:
    return f"/v1/batches/{segment(batch_id)}"

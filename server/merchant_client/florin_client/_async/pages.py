"""Lists that come in pages."""

from collections.abc import AsyncGenerator
from typing import Any, TypeVar

from florin_client._async.transport import AsyncTransport
from florin_client._decoding import decode
from florin_client._requests import PAGE_LIMIT, Page, Request, with_query

T = TypeVar("T")


async def pages(transport: AsyncTransport, path: str, kind: type[T], **filters: Any) -> AsyncGenerator[T, None]:
    """Yield every entry of a list, fetching page after page."""
    cursor: str | None = None
    while True:
        query = with_query(path, {**filters, "cursor": cursor, "limit": PAGE_LIMIT})
        page = await transport.call(Request("GET", query, Page))
        for entry in page.data:
            yield decode(kind, entry)
        cursor = page.next_cursor
        if cursor is None:
            return


async def whole(transport: AsyncTransport, path: str, kind: type[T]) -> tuple[T, ...]:
    """Return a list that is not paged."""
    page = await transport.call(Request("GET", path, Page))
    return tuple(decode(kind, entry) for entry in page.data)

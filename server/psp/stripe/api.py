"""Stripe's REST API: forms, versions, lists, and the classification of answers before their objects are read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from core.errors import PspOutcomeUnknown
from server.http.client.response import Response
from server.psp.stripe.form import Field, encode
from server.psp.stripe.objects import API_VERSION, ErrorBody, Listed
from server.psp.transport import Answer, PspCall, PspTransport

RETRY_HEADER = b"stripe-should-retry"
ONCE_ANYWAY = frozenset({PspCall.CLOSE, PspCall.CAPTURE, PspCall.VOID})
PAGE = 100
PAGES_MAX = 1_000
_NUL = b"\\u0000"

T = TypeVar("T")


class _Made(msgspec.Struct, frozen=True):
    id: str
    created: int = 0


def headers(api_key: str) -> list[tuple[str, str]]:
    """The header fields of every call."""
    return [
        ("authorization", f"Bearer {api_key}"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("stripe-version", API_VERSION),
    ]


@dataclass(frozen=True, slots=True)
class StripeApi:
    """Calls of one account. `now` is the clock, which decides how far back a list has to be read."""

    transport: PspTransport
    now: Callable[[], datetime]

    async def window(self, path: str, kind: type[T], *, since: datetime, until: datetime) -> list[T]:
        """Objects created in a time window. Lists start with the newest, so a window that has just ended needs no filter."""
        is_old = self.now() - until > timedelta(0)
        fields = {"created": {"gte": int(since.timestamp()), "lte": int(until.timestamp())}} if is_old else {}
        return await self.pages(path, kind, fields, until_older_than=since)

    async def pages(
        self, path: str, kind: type[T], fields: Mapping[str, Field], *, until_older_than: datetime | None = None
    ) -> list[T]:
        """All pages of a list, or those of a time window. Raises `PspOutcomeUnknown` if it does not end."""
        found: list[T] = []
        after: str | None = None
        for _ in range(PAGES_MAX):
            answer = await self.get(PspCall.LIST, path, {**fields, "limit": PAGE, "starting_after": after})
            page = read(answer, Listed)
            items = [_decode_raw(raw, kind) for raw in page.data]
            found += items
            last = _decode_raw(page.data[-1], _Made) if page.data else None
            if last is None or not page.has_more:
                return found
            if until_older_than is not None and last.created < until_older_than.timestamp():
                return found
            after = last.id
        raise PspOutcomeUnknown("Stripe's list does not end")

    async def get(self, call: PspCall, path: str, fields: Mapping[str, Field] | None = None) -> Answer:
        """Send a GET."""
        query = encode(fields or {}).decode()
        return await self.transport.call(call, "GET", f"{path}?{query}" if query else path)

    async def post(self, call: PspCall, path: str, fields: Mapping[str, Field], *, key: str | None) -> Answer:
        """Send a POST, once per key. Raises `PspOutcomeUnknown` for a key that was used for another request."""
        headers = [("idempotency-key", key)] if key is not None else []
        answer = await self.transport.call(
            call, "POST", path, body=encode(fields), headers=headers, is_keyed=key is not None or call in ONCE_ANYWAY
        )
        if answer.response.status == 400 and decode(answer.response, ErrorBody).error.type == "idempotency_error":
            raise PspOutcomeUnknown("Stripe knows this operation with different parameters")
        return answer


def read(answer: Answer, kind: type[T]) -> T:
    """The object of an answer. Raises `PspRejected` or `PspOutcomeUnknown`."""
    return decode(answer.accepted(), kind)


def decode(response: Response, kind: type[T]) -> T:
    """Decode the body of a response, whatever its status. Raises `PspOutcomeUnknown`."""
    if _NUL in response.body:
        raise PspOutcomeUnknown("Stripe's answer contains a character that cannot be stored")
    return _decode_raw(response.body, kind)


def _decode_raw(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise PspOutcomeUnknown(f"Stripe's answer cannot be read: {error}") from error

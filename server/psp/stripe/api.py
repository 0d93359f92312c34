"""Stripe's REST API as such: forms, versions, lists, and what its answers mean before anyone looks at their objects."""

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
    """What goes with every call."""
    return [
        ("authorization", f"Bearer {api_key}"),
        ("content-type", "application/x-www-form-urlencoded"),
        ("stripe-version", API_VERSION),
    ]


@dataclass(frozen=True, slots=True)
class StripeApi:
    """Calls of one account. `now` is the time, for how far back a list has to be read."""

    transport: PspTransport
    now: Callable[[], datetime]

    async def window(self, path: str, kind: type[T], *, since: datetime, until: datetime) -> list[T]:
        """What was made in a window of time. The newest come first, so a window that has just ended needs no filter."""
        is_old = self.now() - until > timedelta(0)
        fields = {"created": {"gte": int(since.timestamp()), "lte": int(until.timestamp())}} if is_old else {}
        return await self.pages(path, kind, fields, until_older_than=since)

    async def pages(
        self, path: str, kind: type[T], fields: Mapping[str, Field], *, until_older_than: datetime | None = None
    ) -> list[T]:
        """All of a list, or as far as what was made then. Raises `PspOutcomeUnknown` where it does not end."""
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
        """Read something."""
        query = encode(fields or {}).decode()
        return await self.transport.call(call, "GET", f"{path}?{query}" if query else path)

    async def post(self, call: PspCall, path: str, fields: Mapping[str, Field], *, key: str | None) -> Answer:
        """Do something, once per key. Raises `PspOutcomeUnknown` for a key that was used otherwise."""
        headers = [("idempotency-key", key)] if key is not None else []
        answer = await self.transport.call(
            call, "POST", path, body=encode(fields), headers=headers, is_keyed=key is not None or call in ONCE_ANYWAY
        )
        if answer.response.status == 400 and decode(answer.response, ErrorBody).error.type == "idempotency_error":
            raise PspOutcomeUnknown("Stripe knows this operation with other parameters")
        return answer


def read(answer: Answer, kind: type[T]) -> T:
    """The object of an answer. Raises `PspRejected` or `PspOutcomeUnknown`."""
    return decode(answer.accepted(), kind)


def decode(response: Response, kind: type[T]) -> T:
    """The body of a response, whatever its status. Raises `PspOutcomeUnknown`."""
    if _NUL in response.body:
        raise PspOutcomeUnknown("Stripe's answer holds a character that no text of ours can hold")
    return _decode_raw(response.body, kind)


def _decode_raw(raw: bytes | msgspec.Raw, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.DecodeError as error:
        raise PspOutcomeUnknown(f"Stripe's answer cannot be read: {error}") from error

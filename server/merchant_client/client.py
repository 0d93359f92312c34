"""The two clients. They hold a pool of connections: make one for a program, not one for a request."""

import time
from collections.abc import AsyncGenerator, Iterator
from types import TracebackType
from typing import Any, Self, TypeVar

import anyio
import httpx2

from server.merchant_client import calls
from server.merchant_client.calls import TRIES_MAX, Again, Ask, FlorinUnavailable, Following, read, wait_seconds
from server.resources import Event, Payment, Refund

T = TypeVar("T")


class Florin:
    """Florin, for programs that wait. Use as `with Florin(url, api_key) as florin`. Raises `ApiError`, `FlorinUnavailable`."""

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx2.Client(base_url=url.rstrip("/"), follow_redirects=False)
        self._api_key = api_key

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create(self, *, amount: int, currency: str, order_id: str, idempotency_key: str | None = None, **fields: Any) -> Payment:
        """A new payment: send the customer to its `payment_url`. With `confirm=True, token=…` it is charged at once.

        `amount` is in minor units. Other fields are as in the API's documentation. Give an `idempotency_key` of your own, such as
        the order's, where your program may die and try again.
        """
        return self._call(
            calls.create(amount=amount, currency=currency, order_id=order_id, idempotency_key=idempotency_key, fields=fields)
        )

    def get(self, payment_id: str) -> Payment:
        """A payment as it stands."""
        return self._call(calls.get(payment_id))

    def refund(
        self, payment_id: str, *, amount: int | None = None, reason: str | None = None, idempotency_key: str | None = None
    ) -> Refund:
        """Give money back: all that is left, or an amount in minor units."""
        return self._call(calls.refund(payment_id, amount=amount, reason=reason, idempotency_key=idempotency_key))

    def acknowledge(self, consumer: str, seq: int) -> None:
        """Everything up to this event was dealt with."""
        self._call(calls.acknowledge(consumer, seq))

    def stream(
        self, *, after_seq: int | None = None, consumer: str | None = None, types: tuple[str, ...] = ()
    ) -> Iterator[Event]:
        """Events in order, for ever: from the beginning, or after one, or where a consumer is.

        A named consumer's events are acknowledged when the next ones are asked for, so that each is dealt with at least once.
        Raises `Gap`, after which a new `stream` goes on at its `seq`.
        """
        following = Following(after_seq, consumer, types)
        while True:
            events = following.take(self._call(following.ask()))
            yield from events
            if consumer is not None and events and following.after_seq is not None:
                self.acknowledge(consumer, following.after_seq)

    def _call(self, ask: Ask[T]) -> T:
        for tries in range(1, TRIES_MAX + 1):
            try:
                response = self._http.request(
                    ask.method,
                    ask.path,
                    content=ask.content(),
                    headers=ask.headers(self._api_key),
                    timeout=ask.timeout_seconds,
                )
            except httpx2.TransportError as error:
                if tries == TRIES_MAX:
                    raise FlorinUnavailable(str(error) or type(error).__name__, idempotency_key=ask.key) from error
                time.sleep(wait_seconds(tries))
                continue
            answer = read(ask, tries, response.status_code, response.headers.get("retry-after"), response.content)
            if not isinstance(answer, Again):
                return answer
            time.sleep(answer.seconds)
        raise AssertionError("the last try returns or raises")


class AsyncFlorin:
    """Florin on trio or asyncio. Use as `async with AsyncFlorin(url, api_key) as florin`. Otherwise like `Florin`.

    Cancelled in the middle of a call that changes something: repeat it with the same `idempotency_key`.
    """

    def __init__(self, url: str, api_key: str) -> None:
        self._http = httpx2.AsyncClient(base_url=url.rstrip("/"), follow_redirects=False)
        self._api_key = api_key

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with anyio.move_on_after(5, shield=True):
            await self._http.aclose()

    async def create(
        self, *, amount: int, currency: str, order_id: str, idempotency_key: str | None = None, **fields: Any
    ) -> Payment:
        """See `Florin.create`."""
        return await self._call(
            calls.create(amount=amount, currency=currency, order_id=order_id, idempotency_key=idempotency_key, fields=fields)
        )

    async def get(self, payment_id: str) -> Payment:
        """See `Florin.get`."""
        return await self._call(calls.get(payment_id))

    async def refund(
        self, payment_id: str, *, amount: int | None = None, reason: str | None = None, idempotency_key: str | None = None
    ) -> Refund:
        """See `Florin.refund`."""
        return await self._call(calls.refund(payment_id, amount=amount, reason=reason, idempotency_key=idempotency_key))

    async def acknowledge(self, consumer: str, seq: int) -> None:
        """See `Florin.acknowledge`."""
        await self._call(calls.acknowledge(consumer, seq))

    async def stream(
        self, *, after_seq: int | None = None, consumer: str | None = None, types: tuple[str, ...] = ()
    ) -> AsyncGenerator[Event, None]:
        """See `Florin.stream`. Close it (`contextlib.aclosing`) where you leave it early."""
        following = Following(after_seq, consumer, types)
        while True:
            events = following.take(await self._call(following.ask()))
            for event in events:
                yield event
            if consumer is not None and events and following.after_seq is not None:
                await self.acknowledge(consumer, following.after_seq)

    async def _call(self, ask: Ask[T]) -> T:
        for tries in range(1, TRIES_MAX + 1):
            try:
                response = await self._http.request(
                    ask.method,
                    ask.path,
                    content=ask.content(),
                    headers=ask.headers(self._api_key),
                    timeout=ask.timeout_seconds,
                )
            except httpx2.TransportError as error:
                if tries == TRIES_MAX:
                    raise FlorinUnavailable(str(error) or type(error).__name__, idempotency_key=ask.key) from error
                await anyio.sleep(wait_seconds(tries))
                continue
            answer = read(ask, tries, response.status_code, response.headers.get("retry-after"), response.content)
            if not isinstance(answer, Again):
                return answer
            await anyio.sleep(answer.seconds)
        raise AssertionError("the last try returns or raises")

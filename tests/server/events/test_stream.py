"""The stream, the pull API and consumers: one sequence without gaps or repetitions, however it is read."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import msgspec
import pytest
import trio
import trio_websocket as tw

from core.ids import MerchantId
from core.resumption import Sequence, resume
from server.api.events import stream
from server.db.merchants.api_keys import list_api_keys
from server.flows.events import live_feeds as feeds_module
from server.http.server.listener import bind
from server.process.worker import open_worker
from server.settings import Settings
from tests.support.florin import Florin, eventually, until
from tests.support.payments import charge
from tests.support.webhooks import call

EPOCH = UUID(int=7)


@dataclass
class Reading:
    """A client of the stream and what it has received."""

    socket: tw.WebSocketConnection
    hello: dict[str, Any]
    events: list[dict[str, Any]] = field(default_factory=list)
    ended: tw.CloseReason | None = None

    @property
    def seqs(self) -> list[int]:
        """The numbers of the received events."""
        return [one["seq"] for one in self.events]

    async def run(self) -> None:
        """Receive events until the connection ends."""

        try:
            while True:
                self.events.append(msgspec.json.decode(await self.socket.get_message()))
        except tw.ConnectionClosed as closed:
            self.ended = closed.reason

    async def until(self, count: int) -> list[int]:
        """Wait for that many events."""
        await until(lambda: len(self.events) >= count)
        return self.seqs


@asynccontextmanager
async def reading(florin: Florin, query: str = "", *, url: str | None = None, headers: Any = None) -> AsyncIterator[Reading]:
    """A client for the block."""

    address = (url or florin.api_url).replace("http", "ws") + f"/v1/stream{query}"
    given = [(name.encode(), value.encode()) for name, value in (florin.headers if headers is None else headers).items()]
    async with tw.open_websocket_url(address, extra_headers=given) as socket, trio.open_nursery() as nursery:
        reader = Reading(socket, msgspec.json.decode(await socket.get_message()))
        nursery.start_soon(reader.run)
        yield reader
        nursery.cancel_scope.cancel()
        await trio.aclose_forcefully(socket._stream)  # trio-websocket leaves it open if the server closed first


async def test_past_and_live_events_come_in_order_without_a_gap(florin: Florin) -> None:
    for number in range(5):
        await charge(florin, order_id=str(number))
    async with reading(florin, "?after=2") as first, reading(florin) as second:
        assert first.hello["recovered"] is True
        assert first.hello["seq"] == 2
        assert (second.hello["recovered"], second.hello["seq"]) == (False, 5)
        for number in range(5, 9):
            await charge(florin, order_id=str(number))
        assert await first.until(7) == [3, 4, 5, 6, 7, 8, 9]
        assert await second.until(4) == [6, 7, 8, 9]
        assert first.events[-1] == second.events[-1]
        pulled = (await call(florin, "GET", "events?after=2")).json()
        assert pulled["data"] == first.events
        assert (await call(florin, "GET", "events/9")).json() == first.events[-1]


async def test_many_readers_join_while_events_happen(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PAGE_EVENTS", 3)
    monkeypatch.setattr(feeds_module, "PAGE_EVENTS", 2)
    total = 40
    readers: list[Reading] = []

    async def read(after: int) -> None:
        async with reading(florin, f"?after={after}") as reader:
            readers.append(reader)
            assert await reader.until(total - after) == list(range(after + 1, total + 1))

    async with trio.open_nursery() as nursery:
        for number in range(total):
            if number % 4 == 0:
                nursery.start_soon(read, 0)
            nursery.start_soon(_charge, florin, str(number))
    assert len(readers) == 10


async def _charge(florin: Florin, order_id: str) -> None:
    await charge(florin, order_id=order_id)


async def test_events_of_another_worker_arrive(florin: Florin, directory: Path) -> None:
    settings = Settings(
        database_url=florin.database_url, key_file=directory / "sealing.key", sweep_seconds=0.05, webhook_networks="127.0.0.0/8"
    )
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with open_worker(settings, listening) as (other, _):
        await until(lambda: florin.contexts.events.workers.count == 2)
        async with reading(florin, url=url) as reader:
            for number in range(10):
                await charge(florin, order_id=str(number))
            assert await reader.until(10) == list(range(1, 11))
            assert other.events.feeds.merchant_ids


async def test_a_lost_hint_costs_a_second(florin: Florin) -> None:
    async with reading(florin) as reader:
        await florin.connection.execute(
            """
            WITH s AS (UPDATE merchant_sequences SET last_seq = last_seq + 1 RETURNING *),
                 n AS (INSERT INTO merchant_sequences (merchant_id, last_seq) SELECT merchant_id, 1 FROM merchants
                        WHERE NOT EXISTS (SELECT FROM merchant_sequences) RETURNING *)
            INSERT INTO events (merchant_id, seq, id, type, data, created_at)
            SELECT merchant_id, last_seq, gen_random_uuid(), 'webhook_endpoint.test', '{}', now() FROM (TABLE s UNION TABLE n) x
            """
        )
        assert await reader.until(1) == [1]


async def test_a_filter_and_its_mistakes(florin: Florin) -> None:
    async with reading(florin, "?types=refund.*") as reader:
        payment = await charge(florin)
        refunded = await call(florin, "POST", f"payments/{payment['id']}/refunds", {})
        assert refunded.status_code == 201
        await reader.until(1)
        assert [one["type"] for one in reader.events] == ["refund.succeeded"]
    for query in ("?types=payment.paid", "?after=x", "?consumer=a%20b", "?epoch=1", "?unknown=1"):
        assert (await refused_handshake(florin, query, florin.headers)).status_code == 422
    for headers in ({}, {"authorization": "Bearer fl_test_x"}):
        assert (await refused_handshake(florin, "", headers)).status_code == 401
    plain = await florin.http.get(f"{florin.api_url}/v1/stream", headers=florin.headers)
    assert (plain.status_code, plain.json()["code"]) == (426, "websocket_required")


async def refused_handshake(florin: Florin, query: str, headers: dict[str, str]) -> httpx2.Response:
    """The answer to a handshake that is refused."""
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    return await florin.http.get(f"{florin.api_url}/v1/stream{query}", headers={**upgrade, **headers})


async def test_a_consumer_continues_where_it_has_acknowledged(florin: Florin) -> None:
    async with reading(florin, "?consumer=books") as reader:
        for number in range(4):
            await charge(florin, order_id=str(number))
        await reader.until(4)
        await reader.socket.send_message('{"ack": 3}')
        await reader.socket.send_message('{"ack": 1}')

        async def is_written() -> bool:
            found = (await call(florin, "GET", "consumers")).json()["data"]
            return bool(found and found[0]["acked_seq"] == 3)

        assert await eventually(is_written)
    async with reading(florin, "?consumer=books") as reader:
        assert reader.hello["recovered"] is True
        assert await reader.until(1) == [4]
    assert [one["seq"] for one in (await call(florin, "GET", "events?consumer=books")).json()["data"]] == [4]
    assert (await call(florin, "PUT", "consumers/books", {"acked_seq": 1})).json()["acked_seq"] == 1
    assert (await call(florin, "PUT", "consumers/books", {"acked_seq": 9})).status_code == 422
    assert (await call(florin, "DELETE", "consumers/books")).status_code == 204
    assert (await call(florin, "DELETE", "consumers/books")).status_code == 404


@pytest.mark.parametrize("message", ["x", '{"ack": 99}', '{"ack": -1}', "[]", '{"ack": 1, "more": 2}'])
async def test_an_invalid_acknowledgement_ends_the_stream(florin: Florin, message: str) -> None:
    async with reading(florin, "?consumer=c") as reader:
        await reader.socket.send_message(message)
        await until(lambda: reader.ended is not None)
        assert reader.ended is not None
        assert reader.ended.code == 1008


async def test_a_ticket_opens_the_stream_once_from_its_origin(florin: Florin) -> None:
    wanted = {"origin": "https://shop.example", "event_types": ["refund.*"], "consumer": "page"}
    made = [(await call(florin, "POST", "stream/tickets", wanted)).json() for _ in range(3)]
    query = "?ticket=" + made[0]["ticket"]
    assert made[0]["url"].endswith(query)
    async with reading(florin, query, headers={"origin": "https://shop.example"}) as reader:
        await charge(florin)
        payment = await charge(florin, order_id="2")
        await call(florin, "POST", f"payments/{payment['id']}/refunds", {})
        await reader.until(1)
        assert [one["type"] for one in reader.events] == ["refund.succeeded"]
    refused: list[tuple[str, dict[str, str]]] = [
        (query, {"origin": "https://shop.example"}),
        ("?ticket=" + made[1]["ticket"], {"origin": "https://evil.example"}),
        ("?ticket=" + made[1]["ticket"], {"origin": "https://shop.example"}),  # one try
        ("?ticket=" + made[2]["ticket"] + "&types=payment.*", {"origin": "https://shop.example"}),
        ("?ticket=x", {}),
    ]
    for given, headers in refused:
        assert (await refused_handshake(florin, given, headers)).status_code == 401
    rows = await florin.rows("SELECT count(*) AS left FROM stream_tickets")
    assert rows[0]["left"] == 1


async def test_revoking_a_key_closes_its_streams(florin: Florin) -> None:
    async with reading(florin) as reader:
        keys = await list_api_keys(florin.connection, florin.demo.merchant_id)  # type: ignore[arg-type]
        await florin.connection.execute("UPDATE api_keys SET revoked_at = now() WHERE id = $1", (keys[0].id,))
        await until(lambda: reader.ended is not None)
        assert reader.ended is not None
        assert reader.ended.code == 4401
    await florin.connection.execute("UPDATE api_keys SET revoked_at = NULL")


async def test_only_a_reader_too_far_behind_is_cut_off(florin: Florin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.http.websocket.websocket.BEHIND_BYTES_MAX", 20_000)
    async with reading(florin) as good:
        address = florin.api_url.removeprefix("http://").split(":")
        slow = await trio.open_tcp_stream(address[0], int(address[1]))
        slow.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 4_096)
        head = f"GET /v1/stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {florin.demo.api_key}\r\n"
        upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
        await slow.send_all(f"{head}{upgrade}Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode())
        assert b"101" in await slow.receive_some(1_000)
        feeds, merchant_id = florin.contexts.events.feeds, MerchantId(florin.demo.merchant_id)
        await until(lambda: feeds.readers_of(merchant_id) == 2)
        description = "x" * 1_000

        async def fill() -> bool:
            await charge(florin, order_id=uuid4().hex, description=description, metadata={str(n): "y" * 500 for n in range(50)})
            return feeds.readers_of(merchant_id) == 1

        assert await eventually(fill, seconds=60)
        (last,) = await florin.rows("SELECT last_seq FROM merchant_sequences")
        await until(lambda: good.seqs == list(range(1, last["last_seq"] + 1)))
        await slow.aclose()


async def test_a_worker_that_stops_says_that_it_restarts(florin: Florin, directory: Path) -> None:
    settings = Settings(database_url=florin.database_url, key_file=directory / "sealing.key", webhook_networks="127.0.0.0/8")
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    async with trio.open_nursery() as nursery:
        stop, started = trio.Event(), trio.Event()

        async def work() -> None:
            async with open_worker(settings, listening):
                started.set()
                await stop.wait()

        nursery.start_soon(work)
        await started.wait()
        async with reading(florin, "?consumer=c", url=url) as reader:
            await charge(florin)
            await reader.until(1)
            await reader.socket.send_message('{"ack": 1}')
            await reader.socket.ping(b"so that the acknowledgement was read")
            stop.set()
            await until(lambda: reader.ended is not None)
            assert reader.ended is not None
            assert reader.ended.code == 1012
    assert (await call(florin, "GET", "consumers")).json()["data"][0]["acked_seq"] == 1


async def test_asking_for_events_waits_for_them(florin: Florin) -> None:
    await charge(florin)
    assert (await call(florin, "GET", "events?after=1")).json()["data"] == []
    replies: list[httpx2.Response] = []

    async def ask() -> None:
        replies.append(await call(florin, "GET", "events?after=1&wait=20&types=refund.*"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: bool(florin.contexts.events.feeds.merchant_ids))
        payment = await charge(florin, order_id="2")
        await call(florin, "POST", f"payments/{payment['id']}/refunds", {})
    page = replies[0].json()
    assert [one["type"] for one in page["data"]] == ["refund.succeeded"]
    assert (page["seq"], page["has_more"], page["recovered"]) == (3, False, True)
    limited = (await call(florin, "GET", "events?limit=2")).json()
    assert (limited["seq"], limited["has_more"]) == (2, True)
    beyond = (await call(florin, "GET", "events?after=99")).json()
    assert (beyond["recovered"], beyond["seq"]) == (False, 3)
    assert (await call(florin, "GET", "events?after=1&wait=x")).status_code == 422


@pytest.mark.parametrize(
    ("after_seq", "epoch", "expected"),
    [
        (None, None, (9, False)),
        (9, None, (9, True)),
        (3, EPOCH, (3, True)),
        (2, EPOCH, (2, True)),
        (1, EPOCH, (2, False)),
        (10, EPOCH, (9, False)),
        (5, UUID(int=8), (9, False)),
    ],
)
def test_recovery_is_promised_only_without_a_gap(after_seq: int | None, epoch: UUID | None, expected: tuple[int, bool]) -> None:
    found = resume(Sequence(epoch=EPOCH, first_seq=3, last_seq=9), after_seq=after_seq, epoch=epoch)
    assert (found.after_seq, found.recovered) == expected


async def test_after_a_restore_every_reader_starts_again(florin: Florin) -> None:
    async with reading(florin) as reader:
        await charge(florin)
        await reader.until(1)
        replies: list[httpx2.Response] = []

        async def ask() -> None:
            replies.append(await call(florin, "GET", "events?after=1&wait=20"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            await until(lambda: bool(florin.contexts.events.feeds.merchant_ids))
            await trio.sleep(1.2)  # until the epoch was checked, once a second
            await florin.connection.execute("INSERT INTO sequence_epochs VALUES (gen_random_uuid(), now())")
        await until(lambda: reader.ended is not None)
        assert reader.ended is not None
        assert reader.ended.code == 1012
        assert replies[0].json()["data"] == []
    async with reading(florin, f"?after=1&epoch={reader.hello['epoch']}") as again:
        assert again.hello["recovered"] is False

"""Live events for readers in this worker: each merchant's sequence, in order and without a gap.

A merchant has a feed while somebody reads it in this worker. It gets events from this worker's commits (`publish`), and learns of
others by hints (`hint`: another worker's NOTIFY, or the poll that is the guarantee). Events between its position and a hint are
read from the table. Invariants:

- A feed passes on each event once, by its number, after its commit.
- A reader that has caught up with `Feed.last_seq` and joins without a checkpoint in between misses nothing and gets nothing
  twice.
- Every feed has its own task, so one merchant's readers do not delay another's; nothing waits for a slow reader.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import UUID

import structlog
import trio

from core.errors import Overloaded
from core.events import is_wanted
from core.ids import MerchantId
from server.concurrency.worker_count import WorkerCount
from server.db.events.events import Event, find_epoch, find_last_seqs, list_events
from server.db.pool import Pool
from server.flows.events.envelope import encode_event
from server.http.asgi import Send
from server.http.websocket.frame import FRAME_EXTENSION, Frame

EARLY_MAX = 1_024
ANNOUNCED_MAX = 100_000
"""Events of a feed that are kept because they arrived ahead of their turn, and merchants whose events are still to be announced
to other workers. What exceeds these is read from the table.
"""

PAGE_EVENTS = 200
SENT_AT_ONCE_MAX = 256
"""The number of readers that get an event before other tasks run."""

RETRY_SECONDS = 0.5
FEEDS_MAX = 20_000
SEQ_MAX = 2**63 - 1
_log = structlog.get_logger()


class Reader:
    """A live reader. `send` takes a frame (`server.http.websocket.frame`), never waits for the peer, and raises OSError if it has
    left; `types` None means all.

    `end` tells it to reconnect, because its numbers mean other events now.
    """

    __slots__ = ("end", "send", "types")

    def __init__(self, send: Send, end: Callable[[], None], *, types: tuple[str, ...] | None) -> None:
        self.send = send
        self.end = end
        self.types = types


class Feed:
    """The live events of one merchant. `last_seq` is the last one passed on."""

    def __init__(self, pool: Pool, merchant_id: MerchantId, last_seq: int) -> None:
        self._pool = pool
        self.merchant_id = merchant_id
        self.last_seq = last_seq
        self.users = 0
        self.is_void = False
        self.scope = trio.CancelScope()
        self._known_seq = last_seq
        self._early: dict[int, Event] = {}
        self._readers: dict[Reader, None] = {}
        self._news = trio.Event()
        self._passed_on = trio.Event()

    def join(self, reader: Reader) -> None:
        """Send a reader the events after `last_seq`."""
        self._readers[reader] = None

    def leave(self, reader: Reader) -> None:
        """Send a reader nothing more."""
        self._readers.pop(reader, None)

    def end(self) -> None:
        """Invalidate the feed: its readers have to begin again."""
        self.is_void = True
        self._passed_on.set()
        for reader in list(self._readers):
            reader.end()

    async def wait_after(self, seq: int) -> None:
        """Wait until an event later than that was passed on."""
        await trio.lowlevel.checkpoint()
        while self.last_seq <= seq and not self.is_void:
            await self._passed_on.wait()

    def note_committed(self, seq: int, event: Event | None = None) -> None:
        """Note that events up to this number were committed. The last of them is passed along if it is at hand."""
        if seq <= self.last_seq:
            return
        if event is not None and len(self._early) < EARLY_MAX:
            self._early[seq] = event
        self._known_seq = max(self._known_seq, seq)
        self._news.set()

    async def run(self) -> None:
        """Pass events on until nobody reads."""
        with self.scope:
            while True:
                await self._news.wait()
                self._news = trio.Event()
                try:
                    while self.last_seq < self._known_seq:
                        await self._pass_on_next()
                except Exception as error:  # noqa: BLE001 - one merchant's feed must not end the worker
                    _log.warning("cannot pass on events", error=f"{type(error).__name__}: {error}")
                    await trio.sleep(RETRY_SECONDS)
                    self._news.set()

    async def _pass_on_next(self) -> None:
        event = self._early.pop(self.last_seq + 1, None)
        if event is not None:
            await self._pass_on(event)
            return
        known_seq = self._known_seq
        async with self._pool.connection() as connection:
            found = await list_events(connection, self.merchant_id, after_seq=self.last_seq, limit=PAGE_EVENTS)
        if not found and self._known_seq == known_seq:  # a wrong hint; the next one, or the poll, will be right
            self._known_seq = self.last_seq
        for one in found:
            self._early.pop(one.seq, None)
            await self._pass_on(one)

    async def _pass_on(self, event: Event) -> None:
        message = {"type": FRAME_EXTENSION, "frame": Frame.of(encode_event(event).decode()).encoded} if self._readers else {}
        self.last_seq = event.seq
        passed_on, self._passed_on = self._passed_on, trio.Event()
        passed_on.set()
        if not self._readers:
            return
        for number, reader in enumerate(list(self._readers), start=1):
            types = reader.types
            if reader in self._readers and (types is None or is_wanted(event.type, types)):
                try:
                    await reader.send(message)
                except Exception:  # noqa: BLE001 - a reader that left or fails concerns nobody else
                    self.leave(reader)
                    reader.end()
            if number % SENT_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()


class Feeds:
    """The feeds of one worker. `run` owns their tasks."""

    def __init__(self, pool: Pool, workers: WorkerCount) -> None:
        self._pool = pool
        self._workers = workers
        self._feeds: dict[MerchantId, Feed] = {}
        self._nursery: trio.Nursery | None = None
        self._epoch: UUID | None = None
        self.announced: dict[MerchantId, int] = {}
        """The last number by merchant that other workers have not been told yet."""
        self.has_news = trio.Event()

    @property
    def merchant_ids(self) -> list[MerchantId]:
        """The merchants whose events are read here."""
        return list(self._feeds)

    def readers_of(self, merchant_id: MerchantId) -> int:
        """The number of readers of a merchant's events here."""
        feed = self._feeds.get(merchant_id)
        return len(feed._readers) if feed is not None else 0

    def publish(self, event: Event) -> None:
        """Note that this worker has committed an event. Never waits."""
        feed = self._feeds.get(event.merchant_id)
        if feed is not None:
            feed.note_committed(event.seq, event)
        if self._workers.count <= 1:
            return
        known = self.announced.get(event.merchant_id, 0)
        if event.seq > known and (known or len(self.announced) < ANNOUNCED_MAX):
            self.announced[event.merchant_id] = event.seq
            self.has_news.set()

    def hint(self, merchant_id: MerchantId, seq: int) -> None:
        """Note that events up to this number exist."""
        feed = self._feeds.get(merchant_id)
        if feed is not None and seq <= SEQ_MAX:
            feed.note_committed(seq)

    async def poll(self, merchant_ids: list[MerchantId]) -> None:
        """Read the sequences from the table, which finds the events whose hints were lost. Raises `DatabaseUnavailable`,
        `Overloaded`.
        """
        passed_on = {one: feed.last_seq for one in merchant_ids if (feed := self._feeds.get(one)) is not None}
        async with self._pool.connection() as connection:
            found = await find_last_seqs(connection, merchant_ids)
        for merchant_id, seq in found.items():
            feed = self._feeds.get(merchant_id)
            if feed is not None and seq < passed_on.get(merchant_id, 0):  # events passed on before do not exist any more
                self._void(feed)
            self.hint(merchant_id, seq)

    async def check_epoch(self) -> None:
        """Restart all readers after a restore, when every number may mean another event."""
        async with self._pool.connection() as connection:
            epoch = await find_epoch(connection)
        if self._epoch not in (None, epoch):
            for feed in list(self._feeds.values()):
                self._void(feed)
        self._epoch = epoch

    def _void(self, feed: Feed) -> None:
        del self._feeds[feed.merchant_id]
        feed.end()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the feeds' tasks until canceled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            await trio.sleep_forever()

    @contextmanager
    def reading(self, merchant_id: MerchantId, *, last_seq: int) -> Iterator[Feed]:
        """The merchant's feed while the block runs; a new one begins at `last_seq`. Raises `Overloaded`."""
        feed = self._feeds.get(merchant_id)
        if feed is None:
            if self._nursery is None or len(self._feeds) >= FEEDS_MAX:
                raise Overloaded("this worker already streams events of too many merchants")
            feed = self._feeds[merchant_id] = Feed(self._pool, merchant_id, last_seq)
            self._nursery.start_soon(feed.run)
        feed.note_committed(last_seq)
        feed.users += 1
        try:
            yield feed
        finally:
            feed.users -= 1
            if not feed.users:
                if self._feeds.get(merchant_id) is feed:
                    del self._feeds[merchant_id]
                feed.scope.cancel()

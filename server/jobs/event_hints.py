"""Exchanges hints about new events with other workers: NOTIFY is the hint, and a poll of the sequences every second the
guarantee.

Hints are sent after the commit, on their own connection, gathered over a few milliseconds: inside the group, NOTIFY would
serialize the commits of all workers. A hint says that a merchant's events have reached a number; a lost one costs a second.
"""

from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from uuid import UUID

import psycopg
import structlog
import trio

from core.errors import FlorinError
from core.ids import MerchantId
from server.db.connection import Connection
from server.db.roles import Role
from server.flows.contexts import Events

CHANNEL = "florin_events"
GATHER_SECONDS = 0.003
POLL_SECONDS = 1.0
POLL_MERCHANTS_MAX = 1_000
PAYLOAD_HINTS_MAX = 140
"""As many as fit into the 8,000 bytes of a notification."""

RECONNECT_SECONDS = 1.0
TELL_SECONDS = 5.0
_log = structlog.get_logger()


async def run(context: Events, database_url: str, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
    """Send and receive hints until canceled."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_kept_up, _announce, context, database_url)
        nursery.start_soon(_kept_up, _listen, context, database_url)
        nursery.start_soon(_poll, context)
        task_status.started()


async def _kept_up(work: Callable[[Events, Connection], Awaitable[None]], context: Events, database_url: str) -> None:
    """Run on a connection of its own, and on a new one whenever that is lost."""
    while True:
        try:
            connection = await Connection.open(
                database_url, application_name="florin hints", role=Role.APP, synchronous_commit="off"
            )
            try:
                await work(context, connection)
            finally:
                connection.discard()
        except (FlorinError, psycopg.Error, trio.TooSlowError) as error:
            _log.warning("hints between workers are interrupted", error=str(error).strip())
        await trio.sleep(RECONNECT_SECONDS)


async def _announce(context: Events, connection: Connection) -> None:
    feeds = context.feeds
    while True:
        await feeds.has_news.wait()
        await trio.sleep(GATHER_SECONDS)
        feeds.has_news = trio.Event()
        news, feeds.announced = feeds.announced, {}
        hints = [f"{merchant_id.hex}:{seq}" for merchant_id, seq in news.items()]
        for at in range(0, len(hints), PAYLOAD_HINTS_MAX):
            with trio.fail_after(TELL_SECONDS):
                await connection.query("SELECT pg_notify($1, $2)", CHANNEL, ",".join(hints[at : at + PAYLOAD_HINTS_MAX]))


async def _listen(context: Events, connection: Connection) -> None:
    await connection.execute(f"LISTEN {CHANNEL}")
    await _look(context)  # hints sent while nobody listened
    async with aclosing(connection.notifies()) as notifications:
        async for notification in notifications:
            for hint in notification.payload.split(","):
                merchant, _, seq = hint.partition(":")
                with suppress(ValueError):  # anybody on this database may send such a notification
                    context.feeds.hint(MerchantId(UUID(hex=merchant)), int(seq))


async def _poll(context: Events) -> None:
    while True:
        await trio.sleep(POLL_SECONDS)
        try:
            await _look(context)
        except (FlorinError, psycopg.Error) as error:
            _log.warning("cannot look for events", error=str(error))


async def _look(context: Events) -> None:
    merchants = context.feeds.merchant_ids
    if not merchants:
        return  # nobody reads
    await context.feeds.check_epoch()
    for at in range(0, len(merchants), POLL_MERCHANTS_MAX):
        await context.feeds.poll(merchants[at : at + POLL_MERCHANTS_MAX])

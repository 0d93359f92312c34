"""One query tells all jobs what is due, and all caches whether settings have changed."""

from dataclasses import fields

import pytest

from server.db.connection import Connection
from server.db.due import find_due
from server.db.webhooks.endpoints import Endpoint
from tests.support.florin import Florin
from tests.support.payments import charge
from tests.support.receiver import receiving
from tests.support.webhooks import add

pytestmark = pytest.mark.any_postgres


async def test_a_change_of_settings_is_seen_once_it_is_committed_and_then_no_more(florin: Florin, database_url: str) -> None:
    reader, writer = florin.connection, await Connection.open(database_url)
    snapshot = (await find_due(reader, since=None)).snapshot
    assert not (await find_due(reader, since=snapshot)).settings
    async with writer.atomic():
        await writer.execute("UPDATE merchants SET name = 'Renamed'")
        while_open = await find_due(reader, since=snapshot)
        assert not while_open.settings
    seen = await find_due(reader, since=while_open.snapshot)
    assert seen.settings, "it had begun before the last look, and ended after it"
    assert not (await find_due(reader, since=seen.snapshot)).settings
    writer.discard()


async def test_what_deliveries_note_of_an_endpoint_is_no_change_of_settings(florin: Florin) -> None:
    async with receiving() as receiver:
        endpoint = await add(florin, receiver, mode="ordered")
        snapshot = (await find_due(florin.connection, since=None)).snapshot
        await charge(florin)
        await receiver.until(1)
        await florin.connection.execute("UPDATE webhook_endpoints SET failing_since = now(), lease_until = now()")
        assert not (await find_due(florin.connection, since=snapshot)).settings
        await florin.connection.execute("UPDATE webhook_endpoints SET url = url WHERE id = $1", (endpoint["id"][3:],))
        assert (await find_due(florin.connection, since=snapshot)).settings


async def test_every_setting_of_an_endpoint_that_workers_cache_is_watched(florin: Florin) -> None:
    """A new column of an endpoint belongs to the trigger of migration 0012, or to what is named here."""
    rows = await florin.connection.query(
        """
        SELECT a.attname FROM pg_trigger t
         CROSS JOIN LATERAL unnest(t.tgattr::int2[]) AS n
          JOIN pg_attribute a ON a.attrelid = t.tgrelid AND a.attnum = n
         WHERE t.tgname = 'settings_change' AND t.tgrelid = 'webhook_endpoints'::regclass
        """
    )
    unwatched = {field.name for field in fields(Endpoint)} - {row[0] for row in rows}
    assert unwatched == {"merchant_id", "id", "description", "created_at", "updated_at", "failing_since", "kept_from_seq"}


async def test_nothing_is_due_in_a_quiet_database(florin: Florin) -> None:
    due = await find_due(florin.connection, since=None)
    assert not any((due.payments, due.psp_events, due.deliveries, due.batches, due.open_items, due.breakers))

"""Notes when API keys were last used, in groups and to the minute, and tells merchants of keys that end within a week."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

import msgspec
import structlog
import trio

from core.api_keys import WARN_BEFORE
from core.errors import DatabaseUnavailable, Overloaded
from core.events import KEY_EXPIRING
from core.ids import EventId, MerchantId
from server import resources
from server.db.connection import Connection
from server.db.events.events import append_event
from server.db.merchants.api_keys import claim_expiring, note_uses
from server.flows.contexts import Storage
from server.uuid7 import uuid7

NOTE_SECONDS = 30.0
WARNED_AT_ONCE_MAX = 100
_log = structlog.get_logger()


async def run(
    context: Storage,
    take_used: Callable[[], list[tuple[MerchantId, UUID]]],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Note and tell until canceled."""
    task_status.started()
    while True:
        await trio.sleep(NOTE_SECONDS)
        try:
            await note(context, take_used())
        except (DatabaseUnavailable, Overloaded) as error:
            _log.warning("the use of API keys cannot be noted", error=str(error))


async def note(context: Storage, used: list[tuple[MerchantId, UUID]]) -> None:
    """Note these uses, and tell of keys that end soon, once."""
    async with context.pool.connection() as connection:
        if used:
            await note_uses(connection, used)
        for _ in range(WARNED_AT_ONCE_MAX):
            async with connection.atomic():  # one merchant's sequence at a time
                if not await _tell(connection, context.now()):
                    break


async def _tell(connection: Connection, now: datetime) -> bool:
    """Tell of one key. Returns False if there is none."""
    found = await claim_expiring(connection, before=now + WARN_BEFORE, limit=1)
    for merchant_id, key in found:
        data = msgspec.json.encode(resources.ApiKey.of(key))
        await append_event(connection, merchant_id, EventId(uuid7()), event_type=KEY_EXPIRING, data=data, now=now)
    return bool(found)

"""Dead letters, for merchants through the API and for operators through the command: one flow, audited.

A retry restarts the attempts, spread out in time. A dropped letter stays in the log. Dead letters of a disabled endpoint wait
until it is enabled.
"""

from collections.abc import Awaitable, Callable

from core.ids import ENDPOINT, EVENT, encode_id
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act
from server.db.webhooks.dead_letters import DeadLetter, Letters, drop_dead_letters, retry_dead_letters
from server.db.webhooks.endpoints import release_holds

Verb = Callable[[Connection, Letters, Act], Awaitable[int]]


async def retry(connection: Connection, letters: Letters, act: Act) -> int:
    """Retry dead letters. Returns their number, at most 10,000."""
    async with connection.atomic():
        await record_act(connection, act)
        if letters.endpoint_id is not None:
            await release_holds(connection, letters.merchant_id, letters.endpoint_id)
        return await retry_dead_letters(connection, letters)


async def drop(connection: Connection, letters: Letters, act: Act) -> int:
    """Drop dead letters. Returns their number, at most 10,000."""
    async with connection.atomic():
        await record_act(connection, act)
        return await drop_dead_letters(connection, letters)


def letter_data(letter: DeadLetter) -> dict[str, object]:
    """A dead letter as its merchant sees it."""
    return {
        "endpoint_id": encode_id(ENDPOINT, letter.endpoint_id),
        "seq": letter.seq,
        "event_id": encode_id(EVENT, letter.event_id),
        "event_type": letter.event_type,
        "attempts": letter.attempts,
        "last_status": letter.last_status,
        "last_error": letter.last_error,
        "died_at": letter.died_at,
    }

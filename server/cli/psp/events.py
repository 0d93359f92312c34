"""`florin psp events`: PSP events that could not be applied. They are retried automatically; these commands are for the rest."""

from typing import Annotated

import typer

from core.errors import NotFound
from server.cli.groups import group
from server.cli.operators.acting import Operator, acting
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, Rows, shown
from server.db.connection import Connection
from server.db.merchants.audit import record_act
from server.db.psps.inbox import NOBODY, InboxItem, InboxState, list_events, move_event

events = group("List, retry and drop PSP events that could not be applied.")
_console = Output()

EventId = Annotated[str, typer.Argument(help="The provider's id of the event.", metavar="EVENT")]


@events.command("list")
def show(
    state: Annotated[InboxState, typer.Option(case_sensitive=False, help="Which events.")] = InboxState.DEAD,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """List dead letters, or the events in another state, the latest first."""

    async def work(connection: Connection) -> list[InboxItem]:
        return await list_events(connection, state, limit=limit)

    found = with_database(find_database(data_dir, database_url), work)
    if not found:
        _console.print(f"There are no {state} events.")
        return
    table = Rows("event", "type", "received", "attempts", "why")
    for one in found:
        received = f"{one.received_at:%Y-%m-%d %H:%M:%S}"
        table.add(shown(one.event_id), shown(one.type), received, str(one.attempts), shown(one.last_error))
    _console.print(table)


@events.command("retry")
def retry(event: EventId, operator: Operator = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Retry a dead or dropped event now. Repeating an applied one changes nothing."""
    _move(event, [InboxState.DEAD, InboxState.DROPPED, InboxState.WAITING], InboxState.WAITING, operator, database_url, data_dir)
    _console.print(f"{event} will be retried")


@events.command("drop")
def drop(event: EventId, operator: Operator = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Drop a dead or waiting event. It stays in the table for the record."""
    _move(event, [InboxState.DEAD, InboxState.WAITING], InboxState.DROPPED, operator, database_url, data_dir)
    _console.print(f"{event} dropped")


ACT_BY_STATE = {InboxState.WAITING: "psp_event.retry", InboxState.DROPPED: "psp_event.drop"}


def _move(
    event: str,
    from_states: list[InboxState],
    to: InboxState,
    operator: str | None,
    database_url: DatabaseUrl,
    data_dir: DataDirectory,
) -> None:
    url = find_database(data_dir, database_url)
    done = acting(ACT_BY_STATE[to], url, operator).act(NOBODY, event[:200])

    async def work(connection: Connection) -> list[InboxItem]:
        async with connection.atomic():
            moved = await move_event(connection, event, from_states=from_states, to=to)
            if moved:
                await record_act(connection, done)
        return moved

    if not with_database(url, work):
        raise NotFound(f"there is no event {event} that is {' or '.join(from_states)}: `florin psp events list` shows them")

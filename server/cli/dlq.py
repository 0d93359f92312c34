"""`florin dlq`: dead letters, both webhooks to merchants and PSP events: show, retry or drop them."""

from typing import Annotated
from uuid import UUID

import typer

from core.errors import InvalidId, NotFound, Unprocessable
from core.ids import ENDPOINT, MERCHANT, EndpointId, MerchantId, decode_id, encode_id
from server.cli.groups import group
from server.cli.operators.acting import Operator, acting
from server.cli.options import DatabaseUrl, DataDirectory, find_database, merchant_id_of, with_database
from server.cli.output import Output, Rows, shown
from server.cli.psp.events import ACT_BY_STATE
from server.db.connection import Connection
from server.db.merchants.audit import record_act
from server.db.psps.inbox import NOBODY, InboxItem, InboxState, list_events, move_event
from server.db.webhooks.dead_letters import LETTERS_AT_ONCE_MAX, DeadLetter, Letters, list_dead_letters
from server.db.webhooks.delivery_log import FailedAttempt, find_delivery, list_failed_attempts
from server.db.webhooks.endpoints import find_endpoint_owner
from server.flows.webhooks import dead_letters
from server.flows.webhooks.dead_letters import Verb

app = group("List, show, retry and drop dead letters.")
_console = Output()

Letter = Annotated[
    str | None, typer.Argument(help="A delivery as we_…/N, by endpoint and event number, or a PSP event.", metavar="LETTER")
]
All = Annotated[bool, typer.Option("--all", help="All dead letters; with --merchant or --endpoint, only theirs.")]
OfMerchant = Annotated[str | None, typer.Option("--merchant", help="Only of this merchant, mer_….", show_default=False)]
OfEndpoint = Annotated[str | None, typer.Option("--endpoint", help="Only of this endpoint, we_….", show_default=False)]


@app.command("list")
def show_all(
    merchant: OfMerchant = None,
    endpoint: OfEndpoint = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000)] = 100,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """List dead letters."""
    letters = _letters(merchant, endpoint)

    async def work(connection: Connection) -> tuple[list[DeadLetter], list[InboxItem]]:
        of_psps = [] if merchant or endpoint else await list_events(connection, InboxState.DEAD, limit=limit)
        return await list_dead_letters(connection, letters, limit=limit), of_psps

    found, of_psps = with_database(find_database(data_dir, database_url), work)
    if not found and not of_psps:
        _console.print("There are no dead letters.")
        return
    table = Rows("letter", "what", "died", "attempts", "why")
    for one in found:
        died, why = f"{one.died_at:%Y-%m-%d %H:%M:%S}", shown(one.last_error or "")
        table.add(_name(one.endpoint_id, one.seq), one.event_type, died, str(one.attempts), why)
    for event in of_psps:
        received = f"{event.received_at:%Y-%m-%d %H:%M:%S}"
        table.add(shown(event.event_id), shown(event.type), received, str(event.attempts), shown(event.last_error))
    _console.print(table)


@app.command("show")
def show(letter: Letter, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Show a dead letter with its attempts."""
    endpoint_id, seq = _parsed(letter or "")

    async def work(connection: Connection) -> tuple[DeadLetter | None, MerchantId | None, list[FailedAttempt], str]:
        owner = await find_endpoint_owner(connection, endpoint_id)
        if owner is None:
            return None, None, [], ""
        found = await list_dead_letters(connection, Letters(owner, endpoint_id, seq), limit=1)
        row = await find_delivery(connection, owner, endpoint_id, seq)
        return (
            found[0] if found else None,
            owner,
            await list_failed_attempts(connection, owner, endpoint_id, seq),
            row.state if row is not None else "",
        )

    found, owner, attempts, state = with_database(find_database(data_dir, database_url), work)
    if owner is None or not state:
        raise NotFound(f"there is no delivery {letter}: `florin dlq list` shows them")
    _console.print(f"{letter} of {encode_id(MERCHANT, owner)} is {state}")
    if found is not None:
        _console.print(f"{found.event_type}, given up {found.died_at:%Y-%m-%d %H:%M:%S}: {shown(found.last_error or '')}")
    for one in attempts:
        said = f", reply: {shown(one.response)}" if one.response else ""
        _console.print(f"{one.created_at:%Y-%m-%d %H:%M:%S}  attempt {one.attempt}: {shown(one.error)}{said}")


@app.command("retry")
def retry(
    letter: Letter = None,
    every: All = False,
    merchant: OfMerchant = None,
    endpoint: OfEndpoint = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Retry dead letters from the first attempt; many are spread out, 50 a second for each endpoint."""
    url = find_database(data_dir, database_url)
    if letter is not None and "/" not in letter:
        _move_event(url, letter, InboxState.WAITING, operator)
        return
    _do(url, "retry", dead_letters.retry, _chosen(letter, merchant, endpoint, every=every), operator, done="tried again")


@app.command("drop")
def drop(
    letter: Letter = None,
    every: All = False,
    merchant: OfMerchant = None,
    endpoint: OfEndpoint = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Drop dead letters for good. They stay in the log."""
    url = find_database(data_dir, database_url)
    if letter is not None and "/" not in letter:
        _move_event(url, letter, InboxState.DROPPED, operator)
        return
    _do(url, "drop", dead_letters.drop, _chosen(letter, merchant, endpoint, every=every), operator, done="dropped")


def _do(url: str, verb: str, do: Verb, letters: Letters, operator: str | None, *, done: str) -> None:
    detail = f"endpoint {letters.endpoint_id or 'any'}, event {letters.seq or 'any'}"
    acted = acting(f"dead_letters.{verb}", url, operator).act(letters.merchant_id or NOBODY, detail)

    async def work(connection: Connection) -> tuple[int, int]:
        return await do(connection, letters, acted), len(await list_dead_letters(connection, letters, limit=1))

    count, left = with_database(url, work)
    if not count and letters.seq is not None:
        raise NotFound("no such dead letter, or its endpoint is disabled: `florin dlq list` shows them")
    _console.print(f"{count} {done}" + ("; more are left: repeat the command" if left and count == LETTERS_AT_ONCE_MAX else ""))
    if left and count < LETTERS_AT_ONCE_MAX:
        _console.print("those of disabled endpoints stay until their merchant enables them")


def _move_event(url: str, event: str, to: InboxState, operator: str | None) -> None:
    """Retry or drop a PSP event, as `florin psp events` does."""
    done = acting(ACT_BY_STATE[to], url, operator).act(NOBODY, event[:200])

    async def work(connection: Connection) -> list[InboxItem]:
        async with connection.atomic():
            moved = await move_event(connection, event, from_states=[InboxState.DEAD], to=to)
            if moved:
                await record_act(connection, done)
        return moved

    if not with_database(url, work):
        raise NotFound(f"there is no dead letter {event}: `florin dlq list` shows them")
    _console.print("1 " + ("tried again" if to is InboxState.WAITING else "dropped"))


def _chosen(letter: str | None, merchant: str | None, endpoint: str | None, *, every: bool) -> Letters:
    if letter is not None:
        if every or merchant or endpoint:
            raise Unprocessable("give either a letter, or --all, --merchant or --endpoint")
        endpoint_id, seq = _parsed(letter)
        return Letters(endpoint_id=endpoint_id, seq=seq)
    if not (every or merchant or endpoint):
        raise Unprocessable("give a letter from `florin dlq list`, or --all, --merchant MERCHANT or --endpoint ENDPOINT")
    return _letters(merchant, endpoint)


def _letters(merchant: str | None, endpoint: str | None) -> Letters:
    return Letters(merchant_id_of(merchant) if merchant else None, _endpoint_id(endpoint) if endpoint else None)


def _parsed(letter: str) -> tuple[EndpointId, int]:
    endpoint, _, seq = letter.partition("/")
    if not seq.isascii() or not seq.isdigit() or len(seq) > 18:
        raise Unprocessable(f"{letter!r} is not a delivery: expected one like we_…/42 from `florin dlq list`")
    return _endpoint_id(endpoint), int(seq)


def _endpoint_id(text: str) -> EndpointId:
    try:
        return EndpointId(decode_id(ENDPOINT, text))
    except InvalidId as error:
        raise InvalidId(f"{text!r} is not a webhook endpoint: {error}") from error


def _name(endpoint_id: UUID, seq: int) -> str:
    return f"{encode_id(ENDPOINT, endpoint_id)}/{seq}"

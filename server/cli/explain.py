"""`florin explain`: the timeline of a payment, found by any identifier that somebody may have of it."""

import re
from typing import Annotated
from uuid import UUID

import msgspec
import typer

from core.errors import InvalidId, NotFound
from core.ids import EVENT, MERCHANT, OPERATION, PAYMENT, REFUND, REQUEST, decode_id, encode_id
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, Rows, json_shown, shown
from server.db.connection import Connection
from server.db.payments.lookup import FOUND_MAX, Found, find_by_text, find_by_uuid
from server.db.payments.timeline import Entry, timeline
from server.db.roles import Role

_OURS = (PAYMENT, REFUND, EVENT, REQUEST, OPERATION)
_LIKE_OURS = re.compile("[a-z]{2,5}_[0-9a-f]{20,}")
_console = Output()


def command(
    name: Annotated[
        str,
        typer.Argument(
            help="pay_…, ref_…, evt_…, req_…, op_…, a UUID, an order id, a reference or event of the PSP, or an idempotency key.",
            metavar="ID",
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Show everything that happened to a payment: requests, the PSP, ledger, events and deliveries."""

    async def work(connection: Connection) -> tuple[list[Found], list[Entry]]:
        found = await find(connection, name)
        if not found:
            raise NotFound(_nothing(name))
        return found, await timeline(connection, found[0].merchant_id, found[0].id) if len(found) == 1 else []

    found, entries = with_database(find_database(data_dir, database_url), work, role=Role.READ)
    if len(found) > 1:
        _print_choice(name, found)
        raise typer.Exit(1)
    if as_json:
        for entry in entries:
            document = {"at": entry.at, "where": entry.where, "what": entry.what}
            _console.print(json_shown(msgspec.json.encode(document).decode()))
        return
    if name != encode_id(PAYMENT, found[0].id):
        _console.print(encode_id(PAYMENT, found[0].id))
    print_timeline(entries, _console)


async def find(connection: Connection, name: str) -> list[Found]:
    """The payments that a name may mean. Raises `InvalidId` for one that looks like ours and is none."""
    prefix, _, digits = name.partition("_")
    if prefix in _OURS and digits:
        return await find_by_uuid(connection, decode_id(prefix, name))
    try:
        found = await find_by_uuid(connection, UUID(name)) if len(name) in (32, 36) else []
    except ValueError:
        found = []
    found = found or await find_by_text(connection, name)
    if not found and _LIKE_OURS.fullmatch(name):
        raise InvalidId(f"{name!r} is nothing of a payment's: expected {', '.join(f'{one}_…' for one in _OURS)}")
    return found


def print_timeline(entries: list[Entry], console: Output) -> None:
    """Print one line per entry, with the time since the first."""
    for entry in entries:
        since = (entry.at - entries[0].at).total_seconds()
        console.print(f"{entry.at:%Y-%m-%d %H:%M:%S} +{since:8.3f} s  {entry.where:<13}  {shown(entry.what)}")


def _nothing(name: str) -> str:
    if name.startswith(f"{REQUEST}_"):
        return f"{name} has left nothing here: only a request that creates something does; errors are in the workers' logs"
    return f"there is no payment {shown(name)} in this database, and no order, reference, event or key of that name"


def _print_choice(name: str, found: list[Found]) -> None:
    several = f"the latest {FOUND_MAX}" if len(found) == FOUND_MAX else str(len(found))
    _console.print(f"{shown(name)} names {several} payments: choose one")
    table = Rows("payment", "merchant", "order", "amount", "status", "created")
    for one in found:
        created = f"{one.created_at:%Y-%m-%d %H:%M:%S}"
        table.add(encode_id(PAYMENT, one.id), encode_id(MERCHANT, one.merchant_id), one.order_id, one.money, one.status, created)
    _console.print(table)

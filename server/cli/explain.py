"""`florin explain pay_…`: the timeline of a payment."""

from typing import Annotated

import typer

from core.errors import NotFound
from core.ids import PAYMENT, PaymentId, decode_id
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, shown
from server.db.connection import Connection
from server.db.payments.payments import find_owner
from server.db.payments.timeline import Entry, timeline
from server.db.roles import Role

_console = Output()


def command(
    payment: Annotated[str, typer.Argument(help="The payment's id, pay_…", metavar="PAYMENT")],
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Show everything that happened to a payment: requests, the PSP, ledger, events and deliveries."""
    payment_id = PaymentId(decode_id(PAYMENT, payment))

    async def work(connection: Connection) -> list[Entry]:
        owner = await find_owner(connection, payment_id)
        if owner is None:
            raise NotFound(f"there is no payment {payment} in this database")
        return await timeline(connection, owner, payment_id)

    print_timeline(with_database(find_database(data_dir, database_url), work, role=Role.READ), _console)


def print_timeline(entries: list[Entry], console: Output) -> None:
    """Print one line per entry, with the time since the first."""
    for entry in entries:
        since = (entry.at - entries[0].at).total_seconds()
        console.print(f"{entry.at:%Y-%m-%d %H:%M:%S} +{since:8.3f} s  {entry.where:<13}  {shown(entry.what)}")

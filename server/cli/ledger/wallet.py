"""`florin wallet`: current and past balances, account statements, and rebuilding wallets from the ledger."""

import sys
from datetime import datetime
from typing import Annotated

import trio
import typer

from core.errors import Unprocessable
from core.money import CURRENCY_EXPONENTS, Money
from server.cli.groups import group
from server.cli.operators.acting import Operator, Totp, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    KeyFile,
    MerchantText,
    find_database,
    merchant_id_of,
    require_merchant,
    with_database,
)
from server.cli.output import Output, Rows
from server.db.connection import Connection
from server.db.ledger.account_statement import Period
from server.db.ledger.wallets import Correction, Wallet, list_wallets, rebuild_wallets, wallets_at
from server.db.pool import open_pool
from server.db.roles import Role
from server.flows.ledger.account_statement import Format, statement

app = group("Show wallets, write account statements, rebuild wallets from the ledger.")
_console = Output()

Moment = Annotated[str | None, typer.Option(help="A time like 2026-11-21T08:00:00Z.", show_default=False)]


@app.command("show")
def show(merchant: MerchantText, at: Moment = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Show a merchant's balances, now or in the past."""
    merchant_id, moment = merchant_id_of(merchant), _moment(at, "--at")

    async def work(connection: Connection) -> list[Wallet]:
        await require_merchant(connection, merchant_id)
        if moment is not None:
            return await wallets_at(connection, merchant_id, moment)
        return await list_wallets(connection, merchant_id)

    found = with_database(find_database(data_dir, database_url), work, role=Role.READ)
    if not found:
        _console.print("This merchant has no wallets: it has received no payments" + (" by then." if at else " yet."))
        return
    table = Rows("wallet", "balance")
    for wallet in found:
        table.add(wallet.kind, str(Money(wallet.balance, wallet.currency)))
    _console.print(table)


@app.command("statement")
def write(
    merchant: MerchantText,
    form: Annotated[Format, typer.Option("--format", help="csv, or one JSON object per line.")] = Format.CSV,
    currency: Annotated[str | None, typer.Option(help="Only this currency.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="From this time on, like 2026-11-01T00:00:00Z.")] = None,
    end: Annotated[str | None, typer.Option("--to", help="Before this time.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Write every movement of a merchant's wallets to standard output."""
    merchant_id = merchant_id_of(merchant)
    if currency is not None and currency not in CURRENCY_EXPONENTS:
        raise Unprocessable(f"{currency!r} is not a currency: expected one like EUR")
    period = Period(start=_moment(start, "--from"), end=_moment(end, "--to"), currency=currency)
    url = find_database(data_dir, database_url)

    async def work() -> None:
        async with open_pool(url, size=1, role=Role.READ) as pool:
            async with pool.connection() as connection:
                await require_merchant(connection, merchant_id)
            async for piece in statement(pool, merchant_id, period, form):
                sys.stdout.write(piece.decode())
        sys.stdout.flush()

    trio.run(work)


@app.command("rebuild")
def rebuild(
    merchant: MerchantText,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Set a merchant's wallets to the sums of their ledger entries, under lock; safe while payments are taken."""
    merchant_id = merchant_id_of(merchant)
    url = find_database(data_dir, database_url)
    actor = acting("wallet.rebuild", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)

    async def work(connection: Connection) -> list[Correction]:
        await require_merchant(connection, merchant_id)
        return await rebuild_wallets(connection, merchant_id, actor.act(merchant_id, merchant))

    corrections = with_database(url, work)
    for one in corrections:
        was = Money(one.was_minor, one.currency) if one.was_minor is not None else "missing"
        _console.print(f"{one.kind}: was {was}, is {Money(one.is_minor, one.currency)}")
    if not corrections:
        _console.print("every wallet was the sum of its entries")


def _moment(text: str | None, flag: str) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise Unprocessable(f"{flag} must be a time like 2026-11-21T08:00:00Z") from None
    if moment.tzinfo is None:
        raise Unprocessable(f"{flag} needs a time zone, like 2026-11-21T08:00:00Z")
    return moment

"""`florin suspense`: money that a PSP has told of and that matched no payment."""

from typing import Annotated, Literal

import typer

from core.errors import NotFound, Unprocessable
from core.ids import MERCHANT, PAYMENT, decode_id, encode_id
from core.operator_requests import MoveSuspense, ResolvePayment, require_reason
from server.cli.groups import group
from server.cli.operators.acting import Operator, Totp, acting
from server.cli.operators.requests import Reason, make
from server.cli.options import DatabaseUrl, DataDirectory, KeyFile, find_database, with_database
from server.cli.output import Output, Rows
from server.db.connection import Connection
from server.db.ledger.suspense import Suspended, list_suspended
from server.flows.operators.requests import Asked, find_resolvable, require_resolvable

app = group("Move money that matched no payment to where it belongs.")
_console = Output()
LIST_MAX = 1_000

PaymentText = Annotated[str, typer.Argument(help="The payment that the PSP named, pay_…", metavar="PAYMENT")]
Transfer = Annotated[str | None, typer.Option("--transfer", help="The transfer, if the payment has several in suspense.")]


@app.command("list")
def show(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """List what is in suspense, oldest first."""
    url = find_database(data_dir, database_url)
    found = with_database(url, lambda connection: list_suspended(connection, payment_id=None, limit=LIST_MAX))
    if not found:
        _console.print("Nothing is in suspense.")
        return
    table = Rows("payment", "merchant", "amount", "since", "transfer")
    for one in found:
        since = f"{one.created_at:%Y-%m-%d %H:%M}"
        table.add(encode_id(PAYMENT, one.payment_id), encode_id(MERCHANT, one.merchant_id), one.money, since, one.transfer_id)
    _console.print(table)


@app.command("return")
def give_back(
    payment: PaymentText,
    reason: Reason,
    reference: Annotated[str, typer.Option("--reference", help="What the PSP calls the refund that you made there.")],
    transfer: Transfer = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Record that the PSP has given it back to the customer."""
    url = find_database(data_dir, database_url)
    actor = acting("suspense.return", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    make(url, _asked(url, "suspense.return", payment, transfer, reason, to="psp", reference=reference), actor)


@app.command("credit")
def credit(
    payment: PaymentText,
    reason: Reason,
    transfer: Transfer = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Credit it to the merchant's available wallet."""
    url = find_database(data_dir, database_url)
    actor = acting("suspense.credit", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    make(url, _asked(url, "suspense.credit", payment, transfer, reason, to="wallet"), actor)


@app.command("assign")
def assign(
    payment: PaymentText,
    to: Annotated[str, typer.Option("--to", help="The payment that it pays, pay_…, whose outcome is unknown.")],
    reason: Reason,
    transfer: Transfer = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Assign it to a payment of the same amount whose outcome is unknown."""
    url = find_database(data_dir, database_url)
    other = with_database(url, lambda connection: find_resolvable(connection, decode_id(PAYMENT, to)))
    require_resolvable(other, ResolvePayment(outcome="captured"))
    actor = acting("suspense.assign", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    asked = _asked(url, "suspense.assign", payment, transfer, reason, to="payment", other=to)
    if asked.merchant_id != other.merchant_id:
        raise Unprocessable(f"{to} is another merchant's payment")
    make(url, asked, actor)


def _asked(
    url: str,
    act: str,
    payment: str,
    transfer: str | None,
    reason: str,
    *,
    to: Literal["psp", "wallet", "payment"],
    reference: str | None = None,
    other: str | None = None,
) -> Asked:
    """The request, about money that is in suspense now. Raises `NotFound`, `Unprocessable` if it is not clear which."""
    said = require_reason(reason)
    payment_id = decode_id(PAYMENT, payment)

    async def find(connection: Connection) -> list[Suspended]:
        return await list_suspended(connection, payment_id=payment_id, limit=LIST_MAX)

    found = [one for one in with_database(url, find) if transfer in (None, str(one.transfer_id))]
    if not found:
        raise NotFound(f"nothing of {payment} is in suspense: `florin suspense list` shows what is")
    if len(found) > 1:
        raise Unprocessable(f"choose one with --transfer: {', '.join(str(one.transfer_id) for one in found)}")
    chosen = found[0]
    return Asked(
        act=act,
        merchant_id=chosen.merchant_id,
        document=MoveSuspense(
            transfer_id=chosen.transfer_id,
            to=to,
            payment_id=decode_id(PAYMENT, other) if other is not None else None,
            reference=reference,
        ),
        reason=said,
        summary=" ".join(filter(None, [str(chosen.money), reference, other])),
        payment_id=chosen.payment_id,
    )

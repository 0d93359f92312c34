"""`florin payout`: a merchant's money on its way to its bank. One operator requests it, another approves it."""

from typing import Annotated

import typer

from core.errors import InvalidMoney, Unprocessable
from core.ids import MERCHANT, PAYOUT, PayoutId, decode_id, encode_id
from core.money import payable
from core.payout import Payout, PayoutStatus
from server.cli.groups import group
from server.cli.operators.acting import Acting, Operator, Totp, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    KeyFile,
    MerchantText,
    find_database,
    merchant_id_of,
    minor_amount,
    require_merchant,
    with_database,
)
from server.cli.output import Output, Rows, shown
from server.clock import utc_now
from server.db.connection import Connection
from server.db.ledger.payouts import find_payout_owner, list_payouts
from server.flows.ledger import payouts
from server.uuid7 import uuid7

app = group("Request, approve and end payouts to merchants' banks.")
_console = Output()

PayoutText = Annotated[str, typer.Argument(help="The payout's id, po_…", metavar="PAYOUT")]
Reference = Annotated[str | None, typer.Option(help="The bank's reference.")]


@app.command("request")
def request(
    merchant: MerchantText,
    amount: Annotated[
        int, typer.Argument(parser=minor_amount, metavar="MINOR", help="Amount in minor units: 1990 EUR is 19.90 €.")
    ],
    currency: Annotated[str, typer.Argument(help="The currency, like EUR.")],
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Set available money aside for a payout. Another operator has to approve it."""
    merchant_id = merchant_id_of(merchant)
    try:
        money = payable(amount, currency)
    except InvalidMoney as error:
        raise Unprocessable(str(error)) from error
    url = find_database(data_dir, database_url)
    actor = acting("payout.request", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    now = utc_now()
    payout = Payout(
        id=PayoutId(uuid7()),
        merchant_id=merchant_id,
        money=money,
        status=PayoutStatus.PENDING,
        requested_by=actor.operator.name,
        approved_by=None,
        reference=None,
        failure=None,
        created_at=now,
        updated_at=now,
    )
    name = encode_id(PAYOUT, payout.id)
    made = actor.act(merchant_id, f"{name} of {money}", subject=name)

    async def work(connection: Connection) -> None:
        await require_merchant(connection, merchant_id)
        await payouts.add_payout(connection, payout, made)

    with_database(url, work)
    _console.print(f"{name}: {money} set aside; now another operator approves it with `florin payout approve`")


@app.command("approve")
def approve(
    payout: PayoutText,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Approve a payout that another operator has requested."""
    payout_id = PayoutId(decode_id(PAYOUT, payout))
    url = find_database(data_dir, database_url)
    actor = acting("payout.approve", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)

    async def work(connection: Connection) -> Payout:
        owner = await find_payout_owner(connection, payout_id)
        return await payouts.approve(connection, owner, payout_id, actor.act(owner, payout, subject=payout))

    approved = with_database(url, work)
    _console.print(
        f"{payout}: {approved.money} approved; instruct the bank, then `florin payout succeed` or `florin payout fail`"
    )


@app.command("succeed")
def succeed(
    payout: PayoutText,
    reference: Reference = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Record that the bank has the money."""
    url = find_database(data_dir, database_url)
    actor = acting("payout.succeed", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    _end(payout, PayoutStatus.SUCCEEDED, actor, url, reference=reference)


@app.command("fail")
def fail(
    payout: PayoutText,
    reason: Annotated[str | None, typer.Option(help="The bank's reason; needed for a payout that had succeeded.")] = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Record that the bank refused or returned the money, or that the payout is rejected: it goes back to the wallet."""
    url = find_database(data_dir, database_url)
    actor = acting("payout.fail", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    _end(payout, PayoutStatus.FAILED, actor, url, failure=reason)


@app.command("list")
def show(
    merchant: Annotated[str | None, typer.Option("--merchant", help="Only payouts of this merchant.")] = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """List payouts, newest first."""
    merchant_id = merchant_id_of(merchant) if merchant else None
    found = with_database(find_database(data_dir, database_url), lambda connection: list_payouts(connection, merchant_id))
    if not found:
        _console.print("There are no payouts: request one with `florin payout request MERCHANT AMOUNT CURRENCY`.")
        return
    table = Rows()
    for column in ("payout", "merchant", "amount", "status", "requested by", "approved by", "since"):
        table.add_column(column, no_wrap=True)
    for one in found:
        table.add(
            encode_id(PAYOUT, one.id),
            encode_id(MERCHANT, one.merchant_id),
            str(one.money),
            one.status.value + (f" ({shown(one.failure)})" if one.failure else ""),
            shown(one.requested_by),
            shown(one.approved_by or ""),
            one.created_at.isoformat(timespec="seconds"),
        )
    _console.print(table)


def _end(
    payout: str,
    status: PayoutStatus,
    actor: Acting,
    url: str,
    *,
    reference: str | None = None,
    failure: str | None = None,
) -> None:
    payout_id = PayoutId(decode_id(PAYOUT, payout))

    async def work(connection: Connection) -> Payout:
        owner = await find_payout_owner(connection, payout_id)
        if status is PayoutStatus.FAILED and failure is None:
            known = [one for one in await list_payouts(connection, owner) if one.id == payout_id]
            if any(one.status is PayoutStatus.SUCCEEDED for one in known):
                raise Unprocessable("the bank had this money: give --reason, why it came back")
        detail = " ".join(filter(None, (payout, reference, failure)))
        made = actor.act(owner, detail, subject=payout)
        said = failure or ("refused by the bank" if status is PayoutStatus.FAILED else None)
        return await payouts.end(connection, owner, payout_id, status, made, reference=reference, failure=said)

    ended = with_database(url, work)
    _console.print(f"{payout}: {ended.money} {ended.status.value}")

"""`florin adjust`: credits and debits of a merchant's wallet that are neither a payment's nor a payout's."""

from typing import Annotated

import typer

from core.errors import InvalidMoney, NotFound, Unprocessable
from core.ids import PAYMENT, PaymentId, decode_id
from core.money import Money, payable
from core.nearest import unknown
from core.operator_requests import ADJUSTMENT_ACCOUNTS, Adjust, require_reason
from server.cli.operators.acting import Operator, Totp, acting
from server.cli.operators.requests import Reason, make
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
from server.db.connection import Connection
from server.db.payments.payments import find_payment
from server.flows.operators.requests import Asked


def command(
    merchant: MerchantText,
    amount: Annotated[
        int,
        typer.Option(
            parser=minor_amount, metavar="MINOR", help="In minor units; negative amounts debit the wallet: --amount=-500."
        ),
    ],
    currency: Annotated[str, typer.Option(help="The currency, like EUR.")],
    account: Annotated[str, typer.Option(help=f"What it is for: {', '.join(ADJUSTMENT_ACCOUNTS)}.")],
    reason: Reason,
    payment: Annotated[str | None, typer.Option(help="The payment that it is about, if any.")] = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Credit or debit a merchant's wallet, after another operator has approved it."""
    merchant_id, said = merchant_id_of(merchant), require_reason(reason)
    if account not in ADJUSTMENT_ACCOUNTS:
        raise Unprocessable(unknown("account", account, list(ADJUSTMENT_ACCOUNTS)))
    try:
        size = payable(abs(amount), currency)
    except InvalidMoney as error:
        raise Unprocessable(str(error)) from error
    url, payment_id = find_database(data_dir, database_url), decode_id(PAYMENT, payment) if payment else None

    async def find(connection: Connection) -> None:
        await require_merchant(connection, merchant_id)
        if payment_id is not None and await find_payment(connection, merchant_id, PaymentId(payment_id)) is None:
            raise NotFound(f"this merchant has no payment {payment}")

    with_database(url, find)
    actor = acting("adjust", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    asked = Asked(
        act="adjust",
        merchant_id=merchant_id,
        document=Adjust(amount_minor=amount, currency=size.currency, account=account),
        reason=said,
        summary=f"{Money(amount, size.currency)}, {account}",
        payment_id=PaymentId(payment_id) if payment_id is not None else None,
    )
    make(url, asked, actor)

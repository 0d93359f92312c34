"""`florin payment`: what operators know of a payment, or have done with it."""

from typing import Annotated

import typer

from core.errors import Conflict, NotFound, Unprocessable
from core.ids import PAYMENT, REFUND, decode_id
from core.operator_requests import Document, RefundPayment, ResolvePayment, ResolveRefund, require_reason
from core.payment import Payment, Status
from core.refund import Refund
from server.cli.groups import group
from server.cli.operators.acting import Operator, Totp, acting
from server.cli.operators.requests import Reason, make
from server.cli.options import DatabaseUrl, DataDirectory, KeyFile, find_database, minor_amount, with_database
from server.db.connection import Connection
from server.db.payments.refunds import list_refunds
from server.flows.operators.requests import Asked, find_resolvable, is_large_refund, require_resolvable
from server.settings import refund_approval_minor

app = group("Say what became of a payment that the PSP has not told; refund one.")

PaymentText = Annotated[str, typer.Argument(help="The payment's id, pay_…", metavar="PAYMENT")]
REFERENCE_LENGTH_MAX = 200


@app.command("resolve")
def resolve(
    payment: PaymentText,
    reason: Reason,
    captured: Annotated[bool, typer.Option("--captured", help="The PSP has taken the money: needs another operator.")] = False,
    not_charged: Annotated[bool, typer.Option("--not-charged", help="The PSP has taken nothing.")] = False,
    refunded: Annotated[bool, typer.Option("--refunded", help="The PSP has made the refund.")] = False,
    not_refunded: Annotated[
        bool, typer.Option("--not-refunded", help="The PSP has not made the refund: needs another operator.")
    ] = False,
    refund: Annotated[str | None, typer.Option("--refund", help="The refund, ref_…, if several are open.")] = None,
    reference: Annotated[str | None, typer.Option("--reference", help="What the PSP's dashboard calls it.")] = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Say what became of a payment or its refund, from the PSP's dashboard. The PSP's own word counts more, even later."""
    if [captured, not_charged, refunded, not_refunded].count(True) != 1:
        raise Unprocessable("give one of --captured, --not-charged, --refunded and --not-refunded")
    if (captured or refunded) and not reference:
        raise Unprocessable("give --reference: what the PSP's dashboard calls the charge or refund")
    if reference is not None and not (1 <= len(reference) <= REFERENCE_LENGTH_MAX and reference.isprintable()):
        raise Unprocessable(f"--reference takes 1 to {REFERENCE_LENGTH_MAX} printable characters")
    said = require_reason(reason)
    url, payment_id = find_database(data_dir, database_url), decode_id(PAYMENT, payment)

    async def find(connection: Connection) -> tuple[Payment, Document]:
        found = await find_resolvable(connection, payment_id)
        if captured or not_charged:
            word = ResolvePayment(
                outcome="captured" if captured else "not_charged",
                reference=reference,
                takes_back=not_charged and found.status is Status.SUCCEEDED,
            )
            require_resolvable(found, word)
            return found, word
        chosen = _open_refund(await list_refunds(connection, found.merchant_id, found.id), payment, refund)
        return found, ResolveRefund(refund_id=chosen.id, outcome="succeeded" if refunded else "failed", reference=reference)

    found, document = with_database(url, find)
    names = {"--captured": captured, "--not-charged": not_charged, "--refunded": refunded, "--not-refunded": not_refunded}
    summary = " ".join(filter(None, [*(name for name, is_given in names.items() if is_given), reference]))
    actor = acting("payment.resolve", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    asked = Asked(
        act="payment.resolve",
        merchant_id=found.merchant_id,
        document=document,
        reason=said,
        summary=summary,
        payment_id=found.id,
    )
    make(url, asked, actor)


@app.command("refund")
def refund_payment(
    payment: PaymentText,
    reason: Reason,
    amount: Annotated[
        int | None, typer.Option(parser=minor_amount, metavar="MINOR", help="In minor units. Default: all that is left.")
    ] = None,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Refund a payment for its merchant. A large amount needs another operator (FLORIN_REFUND_APPROVAL_MINOR)."""
    said = require_reason(reason)
    url, payment_id = find_database(data_dir, database_url), decode_id(PAYMENT, payment)
    found = with_database(url, lambda connection: find_resolvable(connection, payment_id))
    if found.status is not Status.SUCCEEDED or not found.refundable_minor:
        raise Conflict(f"{payment} is {found.status} and has no money left to refund", code="not_refundable")
    wanted = amount if amount is not None else found.refundable_minor
    if wanted < 1:
        raise Unprocessable("--amount must be at least 1")
    if wanted > found.refundable_minor:
        raise Conflict(f"at most {found.refundable_minor} of {payment} can still be refunded", code="refund_too_large")
    actor = acting("payment.refund", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    asked = Asked(
        act="payment.refund",
        merchant_id=found.merchant_id,
        document=RefundPayment(amount_minor=wanted, is_large=is_large_refund(found, wanted, refund_approval_minor())),
        reason=said,
        summary=f"{wanted} {found.money.currency} (minor units)",
        payment_id=found.id,
    )
    make(url, asked, actor)


def _open_refund(refunds: list[Refund], payment: str, wanted: str | None) -> Refund:
    """The refund that is meant. Raises `NotFound`, `Unprocessable` if that is not clear."""
    if wanted is not None:
        refund_id = decode_id(REFUND, wanted)
        found = next((one for one in refunds if one.id == refund_id), None)
        if found is None:
            raise NotFound(f"{payment} has no refund {wanted}")
        if not found.is_open or found.is_accepted:
            said = "the payment provider has accepted it" if found.is_accepted else f"it is {found.status}"
            raise Conflict(f"{wanted} has nothing to be resolved: {said}", code="not_resolvable")
        return found
    still_open = [one for one in refunds if one.is_open and not one.is_accepted]
    if not still_open:
        raise NotFound(f"{payment} has no refund whose outcome is open: `florin explain {payment}` shows them")
    if len(still_open) > 1:
        names = ", ".join(one.public_id for one in still_open)
        raise Unprocessable(f"several refunds are open: choose one with --refund: {names}")
    return still_open[0]

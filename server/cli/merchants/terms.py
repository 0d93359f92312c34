"""`florin merchant set` and `florin merchant show`: a merchant's terms. Changed terms apply to new payments."""

import re
from enum import StrEnum
from typing import Annotated

import typer

from core.errors import NotFound, Unprocessable
from core.ids import MERCHANT, encode_id
from core.money import CURRENCY_EXPONENTS, Money
from server.cli.operators.acting import Operator, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    MerchantText,
    Mode,
    find_database,
    merchant_id_of,
    require_merchant,
    with_database,
)
from server.cli.output import Output, Rows, shown
from server.db.connection import Connection
from server.db.merchants import merchants

_console = Output()
_FEE = re.compile(r"([A-Z]{3}):(\d{1,5})(?:\+(\d{1,12}))?")
_HOST = re.compile(r"(?:\*\.)?(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9-]{1,63}|localhost|[0-9a-f]*:[0-9a-f:]+")
_LIMIT = re.compile(r"([A-Z]{3}):(\d{1,12})")

OneLivePayment = Annotated[
    bool | None,
    typer.Option(
        "--one-live-payment-per-order/--many-payments-per-order",
        help="Refuse another payment of an order while one is PENDING, AUTHORIZED or UNKNOWN. A paid order can be paid again.",
    ),
]
OnePaidPayment = Annotated[
    bool | None,
    typer.Option(
        "--one-paid-payment-per-order/--no-one-paid-payment-per-order",
        help="Refuse another payment of an order while one is live, and for ever once one has paid it.",
    ),
]
PaysRefundedAgain = Annotated[
    bool | None,
    typer.Option(
        "--pay-refunded-orders-again/--no-pay-refunded-orders-again",
        help="With --one-paid-payment-per-order: an order that was refunded in full can be paid again.",
    ),
]
ReturnHosts = Annotated[
    str | None,
    typer.Option(
        "--return-hosts",
        help="Hosts that a return_url in live mode may name, like shop.example,*.shop.example; empty for none.",
    ),
]
Fee = Annotated[
    list[str] | None,
    typer.Option(help="CURRENCY:BASIS_POINTS+FIXED, like EUR:150+25 for 1.5 % and 0.25 €. May be repeated."),
]
NegativeLimit = Annotated[
    list[str] | None,
    typer.Option(help="CURRENCY:MINOR, like EUR:100000: how far below zero refunds may take the wallet. May be repeated."),
]
FallbackLimit = Annotated[
    list[str] | None,
    typer.Option(help="CURRENCY:MINOR: the amount up to which a payment passes while the fraud check does not answer."),
]
SettlementDelay = Annotated[int | None, typer.Option(min=0, max=31_536_000, help="Seconds until charged money is available.")]
RequestsPerSecond = Annotated[
    int | None, typer.Option(min=0, max=100_000, help="API requests per second to all workers; 0: the default.")
]
RequestsInFlight = Annotated[
    int | None, typer.Option(min=0, max=100_000, help="Concurrent requests in each worker; 0: the default.")
]


class Late(StrEnum):
    """The treatment of money that comes after its payment was over."""

    KEEP = "keep"
    REFUND = "refund"


def show(merchant: MerchantText, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Show a merchant's terms."""
    merchant_id = merchant_id_of(merchant)
    url = find_database(data_dir, database_url)
    _print(with_database(url, lambda connection: require_merchant(connection, merchant_id)))


def change(
    merchant: MerchantText,
    payments: Annotated[
        bool | None, typer.Option("--payments/--no-payments", help="Take new payments, or stop them: the kill switch.")
    ] = None,
    one_live_payment_per_order: OneLivePayment = None,
    one_paid_payment_per_order: OnePaidPayment = None,
    pay_refunded_orders_again: PaysRefundedAgain = None,
    return_hosts: ReturnHosts = None,
    statement_descriptor: Annotated[
        str | None, typer.Option(help="Text on customers' statements, up to 22 characters; empty for none.")
    ] = None,
    late: Annotated[Late | None, typer.Option(help="Keep or refund money that arrives after its payment has ended.")] = None,
    settlement_delay: SettlementDelay = None,
    fee: Fee = None,
    refund_fee: Annotated[
        bool | None, typer.Option("--refund-fee/--keep-fee", help="Return the fee with a refund, or keep it.")
    ] = None,
    negative_limit: NegativeLimit = None,
    fallback_limit: FallbackLimit = None,
    requests_per_second: RequestsPerSecond = None,
    requests_in_flight: RequestsInFlight = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Change a merchant's terms. Workers pick them up within two seconds; they apply to payments created from then on."""
    merchant_id = merchant_id_of(merchant)
    if statement_descriptor is not None and not re.fullmatch(r"[ -~]{0,22}", statement_descriptor):
        raise Unprocessable("--statement-descriptor takes up to 22 printable ASCII characters")
    wanted = merchants.NewTerms(
        accepts_payments=payments,
        one_live_payment_per_order=one_live_payment_per_order,
        one_paid_payment_per_order=one_paid_payment_per_order,
        pays_refunded_orders_again=pay_refunded_orders_again,
        return_hosts=None if return_hosts is None else parse_hosts(return_hosts),
        statement_descriptor=statement_descriptor,
        refunds_late=None if late is None else late is Late.REFUND,
        refunds_fee=refund_fee,
        settlement_delay_seconds=settlement_delay,
        requests_per_second_max=requests_per_second,
        requests_in_flight_max=requests_in_flight,
        fees=[_fee(text) for text in fee or ()],
        negative_limits=[_limit("--negative-limit", text) for text in negative_limit or ()],
        fallback_limits=[_limit("--fallback-limit", text) for text in fallback_limit or ()],
    )
    summary, url = _summary(wanted), find_database(data_dir, database_url)
    made = acting("merchant.set", url, operator).act(merchant_id, summary)

    async def work(connection: Connection) -> merchants.Merchant:
        changed = await merchants.set_terms(connection, merchant_id, wanted, made)
        if changed is None:
            raise NotFound(f"there is no merchant {merchant}: `florin merchant list` shows them")
        return changed

    _print(with_database(url, work))


def _summary(wanted: merchants.NewTerms) -> str:
    if wanted == merchants.NewTerms():
        raise Unprocessable("nothing to change: `florin merchant set --help` lists the options")
    return wanted.summary()


def _fee(text: str) -> tuple[str, int, int]:
    match = _FEE.fullmatch(text)
    if match is None or match[1] not in CURRENCY_EXPONENTS or int(match[2]) > 10_000:
        raise Unprocessable(f"--fee must be like EUR:150+25 (1.5 % and 0.25 €), not {text!r}")
    return match[1], int(match[2]), int(match[3] or 0)


def parse_hosts(text: str) -> list[str]:
    """Return hosts, separated by commas. Raises `Unprocessable`."""
    hosts = [one.strip().lower() for one in text.split(",") if one.strip()]
    for host in hosts:
        if not _HOST.fullmatch(host):
            raise Unprocessable(
                f"--return-hosts takes names like shop.example or *.shop.example, without scheme, port or path, not {host!r}"
            )
    return hosts


def _limit(option: str, text: str) -> tuple[str, int]:
    match = _LIMIT.fullmatch(text)
    if match is None or match[1] not in CURRENCY_EXPONENTS:
        raise Unprocessable(f"{option} must be like EUR:100000 (1,000.00 €), not {text!r}")
    return match[1], int(match[2])


def _per_order(merchant: merchants.Merchant) -> str:
    if merchant.one_paid_payment_per_order:
        again = "until it is refunded in full" if merchant.pays_refunded_orders_again else "for ever"
        return f"one that is live or has paid it, {again}"
    return "one that is live; a paid order can be paid again" if merchant.one_live_payment_per_order else "any number"


def _print(merchant: merchants.Merchant) -> None:
    table = Rows()
    table.add("merchant", encode_id(MERCHANT, merchant.id))
    table.add("name", shown(merchant.name))
    table.add("payments", "taken" if merchant.accepts_payments else "stopped")
    table.add("payments per order", _per_order(merchant))
    if merchant.mode == Mode.LIVE:
        table.add("return hosts", ", ".join(merchant.return_hosts) or "none: every return_url is refused")
    table.add("statement descriptor", shown(merchant.statement_descriptor or "none"))
    table.add("late money", "refunded" if merchant.refunds_late else "kept")
    delay = merchant.settlement_delay_seconds
    table.add("available", f"{delay} s after the charge" if delay else "at once")
    table.add("requests per second", str(merchant.requests_per_second_max or "the default"))
    table.add("requests in flight", str(merchant.requests_in_flight_max or "the default"))
    table.add("fee of a refunded payment", "given back" if merchant.refunds_fee else "kept")
    for one in merchant.currencies:
        percent = f"{one.fee_basis_points / 100:g} % + {Money(one.fee_fixed_minor, one.currency)}"
        limit = Money(-one.negative_limit_minor, one.currency)
        fallback = Money(one.fallback_limit_minor, one.currency)
        without = f"; without a fraud check up to {fallback}" if one.fallback_limit_minor else ""
        table.add(f"in {one.currency}", f"fee {percent}; refunds may take the wallet to {limit}{without}")
    _console.print(table)

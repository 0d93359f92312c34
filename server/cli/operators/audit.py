"""`florin audit`: what operators have done."""

from datetime import datetime, timedelta
from typing import Annotated

import msgspec
import typer

from core.ids import MERCHANT, PAYMENT, decode_id, encode_id
from server.cli.options import DatabaseUrl, DataDirectory, find_database, merchant_id_of, with_database
from server.cli.output import Output, Rows, json_shown
from server.cli.since import Since, parse_since
from server.clock import utc_now
from server.db.alerts import NOBODY
from server.db.merchants.audit import Act, Wanted, list_acts
from server.db.roles import Role

_console = Output()


def command(
    merchant: Annotated[str | None, typer.Option("--merchant", help="Only acts on this merchant.")] = None,
    payment: Annotated[str | None, typer.Option("--payment", help="Only acts on this payment.")] = None,
    subject: Annotated[str | None, typer.Option("--subject", help="Only acts on this, like fnd_… or po_….")] = None,
    operator: Annotated[str | None, typer.Option("--operator", help="Only acts of this operator.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="The latest so many.")] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Show what operators have done."""
    age: timedelta | None = parse_since(since)
    wanted = Wanted(
        merchant_id=merchant_id_of(merchant) if merchant else None,
        payment_id=decode_id(PAYMENT, payment) if payment else None,
        subject=subject,
        actor=operator,
        since=utc_now() - age if age is not None else None,
    )
    url = find_database(data_dir, database_url)
    acts = with_database(url, lambda connection: list_acts(connection, wanted, limit=limit), role=Role.READ)
    if as_json:
        for one in acts:
            _console.print(json_shown(msgspec.json.encode(_document(one)).decode()))
        return
    if not acts:
        _console.print("There are no such acts.")
        return
    table = Rows("when", "operator", "act", "on", "detail")
    for one in acts:
        table.add(f"{one.at:%Y-%m-%d %H:%M:%S}", one.actor, one.action, _on(one), one.detail)
    _console.print(table)


def _on(act: Act) -> str:
    if act.payment_id is not None:
        return encode_id(PAYMENT, act.payment_id)
    return act.subject or (encode_id(MERCHANT, act.merchant_id) if act.merchant_id != NOBODY else "")


def _document(act: Act) -> dict[str, str | datetime | None]:
    return {
        "at": act.at,
        "operator": act.actor,
        "operator_id": str(act.operator_id) if act.operator_id else None,
        "act": act.action,
        "merchant_id": encode_id(MERCHANT, act.merchant_id) if act.merchant_id != NOBODY else None,
        "payment_id": encode_id(PAYMENT, act.payment_id) if act.payment_id else None,
        "subject": act.subject,
        "detail": act.detail,
    }

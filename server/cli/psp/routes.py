"""`florin psp route`: the rules by which a merchant's payments go to accounts."""

import re
from typing import Annotated

import typer

from core.errors import NotFound, Unprocessable
from core.ids import MERCHANT, PSP_ACCOUNT, PspAccountId, encode_id
from core.money import CURRENCY_EXPONENTS
from server.cli.operators.acting import Operator, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    MerchantText,
    find_database,
    merchant_id_of,
    psp_account_id_of,
    require_merchant,
    with_database,
)
from server.cli.output import Output, Rows
from server.db.connection import Connection
from server.db.psps.accounts import Route, list_psp_accounts, set_routes

WEIGHT_MAX = 1_000
_RULE = re.compile(r"(acct_[0-9a-f]{32})(?::([A-Z]{3})(?::(\d{1,15})?-(\d{1,15})?)?)?(?:=(\d{1,6}))?")
_console = Output()


def route(
    merchant: MerchantText,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            help="ACCOUNT, ACCOUNT:EUR or ACCOUNT:EUR:100-50000 (minor units), the preferred one first; with =70 behind it, "
            "neighboring rules share their payments by these weights. May be repeated."
        ),
    ] = None,
    default: Annotated[str | None, typer.Option(help="The account for payments that match no rule, and for failover.")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove all rules.")] = False,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Show the routes of a merchant's payments, or replace its rules. A payment goes to the first matching account that is
    healthy.
    """
    merchant_id = merchant_id_of(merchant)
    routes = [_route(text) for text in rule or ()]
    default_id = psp_account_id_of(default) if default is not None else None
    if clear and routes:
        raise Unprocessable("give either --clear, which removes all rules, or --rule, which replaces them")
    changes = clear or bool(routes) or default_id is not None
    url = find_database(data_dir, database_url)
    actor = acting("psp.route", url, operator) if changes else None

    async def work(connection: Connection) -> tuple[list[Route], PspAccountId]:
        found = await require_merchant(connection, merchant_id)
        modes = {one.id: one.mode for one in await list_psp_accounts(connection)}
        for named in [*(one.psp_account_id for one in routes), *([default_id] if default_id else [])]:
            if modes.get(named) != found.mode:
                raise NotFound(f"there is no {found.mode} account {encode_id(PSP_ACCOUNT, named)}: `florin psp list` shows them")
        if actor is not None:
            done = actor.act(merchant_id, f"rules={rule or []} default={default}")
            kept = routes if routes or clear else list(found.routes)
            await set_routes(connection, merchant_id, kept, done, default=default_id)
            found = await require_merchant(connection, merchant_id)
        return list(found.routes), found.psp_account_id

    rules, fallback = with_database(url, work)
    table = Rows()
    table.add("merchant", encode_id(MERCHANT, merchant_id))
    for position, one in enumerate(rules, start=1):
        amounts = f"{one.amount_minor_min or 1} to {one.amount_minor_max or 'any'}" if one.currency else ""
        weight = f"weight {one.weight}" if one.weight else ""
        table.add(f"rule {position}", encode_id(PSP_ACCOUNT, one.psp_account_id), one.currency or "any currency", amounts, weight)
    table.add("then", encode_id(PSP_ACCOUNT, fallback))
    _console.print(table)


def _route(text: str) -> Route:
    match = _RULE.fullmatch(text)
    if match is None or (match[2] is not None and match[2] not in CURRENCY_EXPONENTS):
        raise Unprocessable(f"--rule must be like acct_…, acct_…:EUR, acct_…:EUR:100-50000 or acct_…:EUR=70, not {text!r}")
    least, most = (int(match[one]) if match[one] else None for one in (3, 4))
    if least == 0 or most == 0 or (least is not None and most is not None and least > most):
        raise Unprocessable(f"the amounts of {text!r} must be at least 1, the lower one first")
    weight = int(match[5]) if match[5] else None
    if weight is not None and not 1 <= weight <= WEIGHT_MAX:
        raise Unprocessable(f"the weight of {text!r} must be from 1 to {WEIGHT_MAX}")
    return Route(psp_account_id_of(match[1]), match[2], least, most, weight)

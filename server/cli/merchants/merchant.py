"""`florin merchant`: merchants and their API keys. A key and a webhook secret are shown once, when they are created."""

import secrets
from typing import Annotated

import typer

from core.errors import NotFound, Unprocessable
from core.ids import MERCHANT, EndpointId, MerchantId, encode_id
from core.signing import standard_secret
from server.cli.groups import group
from server.cli.merchants import keys, terms
from server.cli.operators.acting import Operator, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    KeyFile,
    Mode,
    find_database,
    find_key_file,
    with_database,
)
from server.cli.output import Output, Rows, shown
from server.clock import utc_now
from server.db.connection import Connection
from server.db.merchants import merchants
from server.db.merchants.audit import record_act
from server.db.psps.accounts import list_psp_accounts
from server.db.webhooks.endpoints import Endpoint, add_endpoint
from server.flows.webhooks.destinations import Destinations
from server.process.instance import LOOPBACK
from server.sealing import Sealer
from server.settings import environment_networks, parse_networks
from server.uuid7 import uuid7

app = group("Add, list and show merchants, set their terms, and manage their API keys.")
app.add_typer(keys.app, name="key")
_console = Output()


@app.command("add")
def add(
    name: Annotated[str, typer.Argument(help="Name of the merchant.")],
    webhook_url: Annotated[
        str | None, typer.Option("--webhook-url", help="URL for its events: https, or http for a test merchant.")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="A live merchant needs a live PSP account.")] = Mode.TEST,
    return_hosts: terms.ReturnHosts = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Add a merchant with a first API key."""
    if not 1 <= len(name) <= 200 or not name.isprintable():
        raise Unprocessable("a merchant's name has 1 to 200 printable characters")
    url = find_database(data_dir, database_url)
    sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url)) if webhook_url else None
    actor = acting("merchant.add", url, operator)

    async def work(connection: Connection) -> tuple[MerchantId, str, str | None]:
        now = utc_now()
        if webhook_url is not None:
            networks = environment_networks("WEBHOOK_NETWORKS") or parse_networks(LOOPBACK if mode is Mode.TEST else "")
            await Destinations(networks).require(webhook_url, is_live=mode is Mode.LIVE, path="--webhook-url")
        accounts = [one for one in await list_psp_accounts(connection) if one.mode == mode]
        if not accounts:
            raise NotFound(
                f"there is no {mode} PSP account that could take its payments: "
                "add one with `florin psp add`; `florin up` adds the sandbox's to its database"
            )
        account = accounts[0]
        if sealer is not None:  # a secret sealed with another key than the workers' could never be used
            sealer.open(account.sealed_api_key, table="psp_accounts.api_key", row=account.id)
        merchant = merchants.Merchant(
            MerchantId(uuid7()), name, mode.value, account.id, now, return_hosts=tuple(terms.parse_hosts(return_hosts or ""))
        )
        secret = None
        async with connection.atomic():
            await merchants.add_merchant(connection, merchant)
            await record_act(connection, actor.act(merchant.id, name))
            key = (await keys.add_key(connection, merchant)).secret
            if webhook_url is not None and sealer is not None:
                secret = await _add_endpoint(connection, sealer, merchant, webhook_url)
        return merchant.id, key, secret

    merchant_id, key, secret = with_database(url, work)
    _console.print(f"merchant        {encode_id(MERCHANT, merchant_id)}")
    _console.print(f"API key         {key}")
    if secret:
        _console.print(f"webhook secret  {secret}")
    _console.print("Keep these now: they are not shown again.")


app.command("show")(terms.show)
app.command("set")(terms.change)


@app.command("list")
def show(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """List all merchants."""
    found = with_database(find_database(data_dir, database_url), merchants.list_merchants)
    if not found:
        _console.print("There are no merchants yet: add one with `florin merchant add NAME`.")
        return
    table = Rows("merchant", "name", "mode", "since")
    for merchant in found:
        since = merchant.created_at.date().isoformat()
        table.add(encode_id(MERCHANT, merchant.id), shown(merchant.name), merchant.mode, since)
    _console.print(table)


async def _add_endpoint(connection: Connection, sealer: Sealer, merchant: merchants.Merchant, url: str) -> str:
    """Add a webhook endpoint. Returns its secret."""
    endpoint_id, now = EndpointId(uuid7()), merchant.created_at
    secret = standard_secret(secrets.token_bytes(32))
    sealed = sealer.seal(secret, table="webhook_endpoints", row=endpoint_id, merchant=merchant.id)
    endpoint = Endpoint(id=endpoint_id, merchant_id=merchant.id, url=url, sealed_secret=sealed, created_at=now, updated_at=now)
    await add_endpoint(connection, endpoint)
    return secret

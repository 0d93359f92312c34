"""`florin psp`: accounts at payment service providers, the routes of payments to them, and events that could not be applied."""

import secrets as random_secrets
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from core.errors import NotFound, Unprocessable
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from server.cli.groups import group
from server.cli.operators.acting import Operator, acting
from server.cli.options import (
    DatabaseUrl,
    DataDirectory,
    KeyFile,
    Mode,
    find_database,
    find_key_file,
    psp_account_id_of,
    with_database,
)
from server.cli.output import Output, Rows, shown
from server.cli.psp.events import events
from server.cli.psp.routes import route
from server.cli.psp.secrets import read_secret
from server.clock import utc_now
from server.db.connection import Connection
from server.db.psps.accounts import (
    PspAccount,
    add_psp_account,
    list_psp_accounts,
    rotate_webhook_secret,
    set_psp_account,
)
from server.db.psps.inbox import NOBODY
from server.db.psps.shared_state import list_open_breakers
from server.http.client.url import parse_origin
from server.psp.providers import PROVIDERS, Provider, provider_of
from server.sealing import Sealer
from server.uuid7 import uuid7

WIDTH = 200
"""The width of tables that go to a file or a program, so that nothing is truncated."""

app = group("Manage accounts at payment service providers: add, limit, stop and route.")
app.add_typer(events, name="events")
app.command("route")(route)
_console = Output()

_ADDED = {name: one for name, one in PROVIDERS.items() if one.is_added}

AccountText = Annotated[str, typer.Argument(help="The account's id, acct_…", metavar="ACCOUNT")]
KeyPath = Annotated[
    Path | None, typer.Option("--api-key-file", help="A file with the secret API key, - for standard input. Default: ask.")
]
SecretPath = Annotated[
    Path | None,
    typer.Option("--webhook-secret-file", help="A file with the webhook's signing secret, - for standard input. Default: ask."),
]
Concurrency = Annotated[int | None, typer.Option(min=1, max=100_000, help="Concurrent calls of all workers together.")]
Rate = Annotated[int | None, typer.Option(min=0, max=100_000, help="Requests per second of all workers together; 0: no limit.")]
Payments = Annotated[
    bool | None,
    typer.Option("--payments/--no-payments", help="Take new payments, or stop them: the kill switch. Everything else continues."),
]
TokensOf = Annotated[
    str | None,
    typer.Option("--tokens-of", help="The account whose tokens this one knows too; its own id: only its own tokens."),
]


@app.command("add")
def add(
    psp: Annotated[str, typer.Argument(help=f"The provider: {', '.join(_ADDED)}.", metavar="PROVIDER")],
    name: Annotated[str, typer.Option(help="Your name for the account.")] = "",
    mode: Annotated[Mode, typer.Option(help="Live accounts take real money.")] = Mode.TEST,
    api_key_file: KeyPath = None,
    webhook_secret_file: SecretPath = None,
    base_url: Annotated[str, typer.Option(help="The provider's URL, if not the usual one.", show_default=False)] = "",
    concurrency: Concurrency = None,
    rate: Rate = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Add an account. Workers pick it up within a second; route payments to it with `florin psp route`."""
    if len(name) > 200 or not name.isprintable():
        raise Unprocessable("--name takes up to 200 printable characters")
    provider = _provider(psp)
    base_url = base_url or provider.base_url
    _require_address(base_url, mode, provider)
    url, sealer = find_database(data_dir, database_url), Sealer.from_file(find_key_file(data_dir, key_file, database_url))
    api_key, webhook_secret = _read_secrets(provider, mode, api_key_file, webhook_secret_file)
    drawn = webhook_secret or f"{provider.webhook_secret_prefix}{random_secrets.token_urlsafe(32)}"
    account_id = PspAccountId(uuid7())
    limit = provider.requests_per_second.get(mode.value) if rate is None else rate
    account = PspAccount(
        id=account_id,
        psp=provider.name,
        mode=mode.value,
        base_url=base_url.rstrip("/"),
        sealed_api_key=sealer.seal(api_key, table="psp_accounts.api_key", row=account_id),
        sealed_webhook_secret=sealer.seal(drawn, table="psp_accounts.webhook_secret", row=account_id),
        name=name,
        concurrency_max=concurrency or 200,
        requests_per_second_max=limit or None,
    )
    done = acting("psp.add", url, operator).act(NOBODY, f"{provider.name} {mode} {encode_id(PSP_ACCOUNT, account_id)}")

    async def work(connection: Connection) -> None:
        await _require_own_key(connection, sealer)
        await add_psp_account(connection, account, now=utc_now(), act=done)

    with_database(url, work)
    text = encode_id(PSP_ACCOUNT, account_id)
    _console.print(f"account         {text}")
    _console.print(f"webhooks        POST …{provider.webhook_path(account_id)} on your public address")
    if not webhook_secret:
        _console.print(f"webhook secret  {drawn}")
        _console.print(
            "Set it at the provider: it is not shown again. If the provider makes the secret itself, as Stripe does, add"
        )
        _console.print(f"the address there, and give the secret that it shows to `florin psp rotate-secret {text}`.")


@app.command("list")
def show(database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """List the accounts, their limits, and those whose breaker is open."""

    async def work(connection: Connection) -> tuple[list[PspAccount], set[PspAccountId]]:
        opened = {one.account_id for one in await list_open_breakers(connection)}
        return await list_psp_accounts(connection), opened

    accounts, opened = with_database(find_database(data_dir, database_url), work)
    if not accounts:
        _console.print("There are no accounts yet: add one with `florin psp add`; `florin up` adds the sandbox's.")
        return
    table = Rows("account", "psp", "mode", "name", "payments", "at once", "per s", "address")
    for one in accounts:
        state = "stopped" if not one.enabled else "failing: breaker open" if one.id in opened else "taken"
        rate = str(one.requests_per_second_max or "no limit")
        table.add(
            encode_id(PSP_ACCOUNT, one.id),
            one.psp,
            one.mode,
            shown(one.name),
            state,
            str(one.concurrency_max),
            rate,
            one.base_url,
        )
    _console.print(table)


@app.command("set")
def change(
    account: AccountText,
    payments: Payments = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    name: Annotated[str | None, typer.Option(help="Your name for the account.")] = None,
    base_url: Annotated[str | None, typer.Option(help="Another URL of the provider.")] = None,
    tokens_of: TokensOf = None,
    api_key_file: Annotated[Path | None, typer.Option(help="A file with a new API key, - for standard input.")] = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Stop an account, change its limits or its API key. Workers pick that up within a second."""
    account_id = psp_account_id_of(account)
    if (payments, concurrency, rate, name, base_url, tokens_of, api_key_file) == (None,) * 7:
        raise Unprocessable("nothing to change: `florin psp set --help` lists the options")
    url = find_database(data_dir, database_url)
    sealer = Sealer.from_file(find_key_file(data_dir, key_file, database_url)) if api_key_file is not None else None
    api_key = read_secret(api_key_file, "API key", flag="--api-key-file") if api_key_file is not None else None
    issuer_id = psp_account_id_of(tokens_of) if tokens_of is not None else None
    given = {"payments": payments, "concurrency": concurrency, "rate": rate, "name": name, "base_url": base_url}
    given |= {"tokens_of": tokens_of, "api_key": "new" if api_key else None}
    summary = ", ".join(f"{one}={value}" for one, value in given.items() if value is not None)
    done = acting("psp.set", url, operator).act(NOBODY, f"{account}: {summary}", subject=account)

    async def work(connection: Connection) -> bool:
        sealed = None
        known = next((one for one in await list_psp_accounts(connection) if one.id == account_id), None)
        if base_url is not None and known is not None:
            _require_address(base_url, Mode(known.mode), provider_of(known.psp))
        if sealer is not None and api_key is not None:
            await _require_own_key(connection, sealer)
            if known is not None:
                provider_of(known.psp).require_api_key(api_key, known.mode)
            sealed = sealer.seal(api_key, table="psp_accounts.api_key", row=account_id)
        return await set_psp_account(
            connection,
            account_id,
            done,
            enabled=payments,
            concurrency_max=concurrency,
            requests_per_second_max=rate,
            sealed_api_key=sealed,
            name=name,
            base_url=base_url.rstrip("/") if base_url is not None else None,
            tokens_of=issuer_id,
        )

    _require_known(with_database(url, work), account)
    _console.print(f"{account} changed")


@app.command("rotate-secret")
def rotate(
    account: AccountText,
    webhook_secret_file: SecretPath = None,
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="Time for which the old secret stays valid.")] = 24,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Replace the webhook secret; the old one stays valid for a while, so that no event is lost."""
    account_id = psp_account_id_of(account)
    url, sealer = find_database(data_dir, database_url), Sealer.from_file(find_key_file(data_dir, key_file, database_url))
    secret = read_secret(webhook_secret_file, "new webhook signing secret", flag="--webhook-secret-file")
    sealed = sealer.seal(secret, table="psp_accounts.webhook_secret", row=account_id)
    done = acting("psp.rotate-secret", url, operator).act(NOBODY, account, subject=account)
    until = utc_now() + timedelta(hours=overlap_hours)

    async def work(connection: Connection) -> bool:
        known = next((one for one in await _require_own_key(connection, sealer) if one.id == account_id), None)
        if known is not None:
            provider_of(known.psp).require_webhook_secret(secret)
        return await rotate_webhook_secret(connection, account_id, done, sealed_secret=sealed, old_until=until)

    _require_known(with_database(url, work), account)
    _console.print(f"{account} has a new webhook secret; the old one is valid until {until:%Y-%m-%d %H:%M} UTC")


def _read_secrets(provider: Provider, mode: Mode, api_key_file: Path | None, webhook_secret_file: Path | None) -> tuple[str, str]:
    """The API key, and the webhook secret or None if one is to be drawn."""
    if str(api_key_file) == str(webhook_secret_file) == "-":
        raise Unprocessable("only one of the two secrets can come from standard input: give the other one in a file")
    api_key = read_secret(api_key_file, "API key", flag="--api-key-file")
    provider.require_api_key(api_key, mode.value)
    webhook_secret = read_secret(
        webhook_secret_file,
        "webhook signing secret",
        flag="--webhook-secret-file",
        may_be_empty=True,
        advice=" (empty if there is none yet)",
    )
    if webhook_secret:
        provider.require_webhook_secret(webhook_secret)
    return api_key, webhook_secret


def _provider(name: str) -> Provider:
    provider = _ADDED.get(name)
    if provider is None:
        raise Unprocessable(f"unknown provider {name[:40]!r}: expected one of {', '.join(_ADDED)}")
    return provider


def _require_known(touched: bool, account: str) -> None:
    if not touched:
        raise NotFound(f"there is no account {account}: `florin psp list` shows them")


def _require_address(base_url: str, mode: Mode, provider: Provider) -> None:
    try:
        origin = parse_origin(base_url.rstrip("/"))
    except Exception as error:
        raise Unprocessable(f"--base-url must be a URL like {provider.base_url}, not {base_url!r}") from error
    if mode is Mode.LIVE and not origin.is_secure:
        raise Unprocessable("a live account needs an https URL")


async def _require_own_key(connection: Connection, sealer: Sealer) -> list[PspAccount]:
    """The accounts. Raises `SealError` if they were sealed with another key, with which the workers could not open this one."""
    accounts = await list_psp_accounts(connection)
    for one in accounts:
        sealer.open(one.sealed_api_key, table="psp_accounts.api_key", row=one.id)
    return accounts

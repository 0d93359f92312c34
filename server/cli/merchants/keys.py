"""`florin merchant key`: merchants' API keys. A key is shown once, when it is made."""

from datetime import timedelta
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

import typer

from core.api_keys import NAME_LENGTH_MAX, ApiKey, KeyScope, parse_key_networks, parse_scopes
from core.errors import NotFound, Unprocessable
from core.ids import API_KEY, decode_id, encode_id
from server.cli.groups import group
from server.cli.merchants import terms
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
from server.cli.output import Output, Rows
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.connection import Connection
from server.db.merchants import api_keys, merchants
from server.db.merchants.audit import record_act
from server.flows.merchants.api_keys import Made, rotate
from server.uuid7 import uuid7

app = group("Add, list, rotate and revoke API keys.")
_console = Output()


@app.command("add")
def key_add(
    merchant: MerchantText,
    requests_per_second: terms.RequestsPerSecond = None,
    name: Annotated[str, typer.Option(help="Your name for the key.")] = "",
    scopes: Annotated[str, typer.Option(help=f"What it may do, separated by commas: {', '.join(KeyScope)}.")] = KeyScope.ALL,
    networks: Annotated[str, typer.Option(help="The networks that may use it, separated by commas. Default: any.")] = "",
    expires_in_days: Annotated[int | None, typer.Option(min=1, max=3_650, help="Its life. Default: no end.")] = None,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Create another API key for a merchant."""
    merchant_id = merchant_id_of(merchant)
    if len(name) > NAME_LENGTH_MAX or not name.isprintable():
        raise Unprocessable(f"--name takes up to {NAME_LENGTH_MAX} printable characters")
    chosen = parse_scopes(scopes.split(","), path="--scopes")
    allowed = parse_key_networks([one for one in networks.split(",") if one.strip()], path="--networks")
    ends_at = utc_now() + timedelta(days=expires_in_days) if expires_in_days is not None else None
    url = find_database(data_dir, database_url)
    actor = acting("merchant.key.add", url, operator)

    async def work(connection: Connection) -> Added:
        found = await require_merchant(connection, merchant_id)
        async with connection.atomic():
            limits = {"requests_per_second_max": requests_per_second or None, "expires_at": ends_at}
            key = await add_key(connection, found, name=name, scopes=chosen, networks=allowed, **limits)
            detail = f"ends in {key.secret[-4:]}, {', '.join(chosen)}"
            await record_act(connection, actor.act(merchant_id, detail, subject=encode_id(API_KEY, key.id)))
        return key

    added = with_database(url, work)
    _console.print(f"id       {encode_id(API_KEY, added.id)}\nAPI key  {added.secret}")
    _console.print("Keep it now: it is not shown again.")


@app.command("list")
def key_list(merchant: MerchantText, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """List a merchant's API keys, without their secrets."""
    merchant_id = merchant_id_of(merchant)
    url = find_database(data_dir, database_url)

    async def work(connection: Connection) -> list[ApiKey]:
        await require_merchant(connection, merchant_id)
        return await api_keys.list_api_keys(connection, merchant_id)

    found = with_database(url, work)
    if not found:
        _console.print("This merchant has no API keys: add one with `florin merchant key add`.")
        return
    table = Rows("key", "name", "ends in", "scopes", "networks", "last used", "state")
    now = utc_now()
    for key in found:
        used = f"{key.last_used_at:%Y-%m-%d %H:%M}" if key.last_used_at else "never"
        state = "valid"
        if key.revoked_at is not None:
            state = f"revoked {key.revoked_at:%Y-%m-%d %H:%M}"
        elif key.expires_at is not None:
            state = f"{'valid until' if key.expires_at > now else 'expired'} {key.expires_at:%Y-%m-%d %H:%M}"
        table.add(encode_id(API_KEY, key.id), key.name, key.hint, ", ".join(key.scopes), ", ".join(key.networks), used, state)
    _console.print(table)


@app.command("rotate")
def key_rotate(
    merchant: MerchantText,
    key: Annotated[str, typer.Argument(help="The key's id, key_…, from `florin merchant key list`.")],
    overlap_hours: Annotated[float, typer.Option(min=0, max=720, help="Time for which the old key stays valid.")] = 24,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Replace an API key by a new one; the old one stays valid for a while."""
    merchant_id, key_id = merchant_id_of(merchant), decode_id(API_KEY, key)
    url = find_database(data_dir, database_url)
    actor = acting("merchant.key.rotate", url, operator)

    async def work(connection: Connection) -> Made:
        found = await require_merchant(connection, merchant_id)
        async with connection.atomic():
            seconds = int(overlap_hours * 3_600)
            made = await rotate(connection, found, key_id, uuid7(), overlap_seconds=seconds, renews=True, now=utc_now())
            await record_act(connection, actor.act(merchant_id, f"{key}, now ends in {made.key.hint}", subject=key))
        return made

    made = with_database(url, work)
    _console.print(f"id       {encode_id(API_KEY, made.key.id)}\nAPI key  {made.secret}")
    _console.print(f"Keep it now: it is not shown again. The old one is valid for {overlap_hours:g} hours more.")


@app.command("revoke")
def key_revoke(
    merchant: MerchantText,
    key: Annotated[str, typer.Argument(help="The key's id, key_…, from `florin merchant key list`.")],
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Revoke an API key; workers stop accepting it within two seconds."""
    merchant_id = merchant_id_of(merchant)
    key_id = decode_id(API_KEY, key)
    url = find_database(data_dir, database_url)
    actor = acting("merchant.key.revoke", url, operator)

    async def work(connection: Connection) -> bool:
        async with connection.atomic():
            done = await api_keys.revoke_api_key(connection, merchant_id, key_id, now=utc_now())
            if done:
                await record_act(connection, actor.act(merchant_id, key, subject=key))
        return done

    if not with_database(url, work):
        raise NotFound("this merchant has no such key, or it was revoked before")
    _console.print(f"revoked {key}")


class Added(NamedTuple):
    """A key that was just made."""

    id: UUID
    secret: str


async def add_key(connection: Connection, merchant: merchants.Merchant, **options: Any) -> Added:
    """Add a key with the options of `api_keys.add_api_key`, and return it."""
    mode: Literal["test", "live"] = "live" if merchant.mode == Mode.LIVE else "test"
    key, key_id = api_key(mode, merchant.id), uuid7()
    await api_keys.add_api_key(
        connection,
        merchant.id,
        key_id,
        secret_sha256=key_hash(key),
        hint=key[-4:],
        now=utc_now(),
        **options,
    )
    return Added(key_id, key)

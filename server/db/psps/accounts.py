"""Accounts at PSPs, and the routes of merchants' payments to them. Secrets arrive sealed and leave sealed."""

from dataclasses import dataclass, fields
from datetime import datetime

from core.ids import MerchantId, PspAccountId
from core.money import Money
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act


@dataclass(frozen=True, slots=True, kw_only=True)
class PspAccount:
    """An account at a PSP.

    `enabled`: it takes new payments. The limits apply to all workers together; without `requests_per_second_max` the rate is not
    limited. After a rotation the old webhook secret is accepted until `old_secret_until`. `tokens_of` is the account whose tokens
    this one knows too.
    """

    id: PspAccountId
    psp: str
    mode: str
    base_url: str
    sealed_api_key: bytes
    sealed_webhook_secret: bytes
    name: str = ""
    enabled: bool = True
    concurrency_max: int = 2_000
    requests_per_second_max: int | None = None
    sealed_old_secret: bytes | None = None
    old_secret_until: datetime | None = None
    tokens_of: PspAccountId | None = None


@dataclass(frozen=True, slots=True)
class Route:
    """A rule: payments of this currency and amount go to this account. None matches everything.

    Neighboring rules with weights share their payments in proportion.
    """

    psp_account_id: PspAccountId
    currency: str | None = None
    amount_minor_min: int | None = None
    amount_minor_max: int | None = None
    weight: int | None = None

    def fits(self, money: Money) -> bool:
        """Return whether the rule matches a payment."""
        if self.currency is not None and self.currency != money.currency:
            return False
        least, most = self.amount_minor_min, self.amount_minor_max
        return (least is None or money.amount_minor >= least) and (most is None or money.amount_minor <= most)


async def add_psp_account(connection: Connection, account: PspAccount, *, now: datetime, act: Act | None = None) -> None:
    """Store an account, or change its address; audited if an operator did it."""
    async with connection.atomic():
        await _add(connection, account, now)
        if act is not None:
            await record_act(connection, act)


async def _add(connection: Connection, account: PspAccount, now: datetime) -> None:
    await connection.run(
        """
        INSERT INTO psp_accounts (
            id, psp, mode, base_url, sealed_api_key, sealed_webhook_secret, created_at, name, concurrency_max,
            requests_per_second_max)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
        ON CONFLICT (id) DO UPDATE SET base_url = excluded.base_url
        """,
        account.id,
        account.psp,
        account.mode,
        account.base_url,
        account.sealed_api_key,
        account.sealed_webhook_secret,
        now,
        account.name,
        account.concurrency_max,
        account.requests_per_second_max,
    )


_RENAMED = {"sealed_old_secret": "sealed_old_webhook_secret", "old_secret_until": "old_webhook_secret_until"}
_COLUMN_BY_FIELD = {field.name: _RENAMED.get(field.name, field.name) for field in fields(PspAccount)}


async def list_psp_accounts(connection: Connection) -> list[PspAccount]:
    """All accounts, oldest first."""
    columns = ", ".join(_COLUMN_BY_FIELD.values())
    rows = await connection.query(f"SELECT {columns} FROM psp_accounts ORDER BY created_at, id")  # noqa: S608 - own columns
    return [PspAccount(**dict(zip(_COLUMN_BY_FIELD, row, strict=True))) for row in rows]


async def set_psp_account(
    connection: Connection,
    account_id: PspAccountId,
    act: Act,
    *,
    enabled: bool | None = None,
    concurrency_max: int | None = None,
    requests_per_second_max: int | None = None,
    sealed_api_key: bytes | None = None,
    name: str | None = None,
    base_url: str | None = None,
    tokens_of: PspAccountId | None = None,
) -> bool:
    """Change the given settings of an account, audited; a rate of 0 removes the limit, and naming the account itself as
    `tokens_of` makes it know its own tokens only. Returns False if there is no such account.
    """
    async with connection.atomic():
        touched = await connection.run(
            """
            UPDATE psp_accounts
               SET enabled = coalesce($2, enabled), concurrency_max = coalesce($3, concurrency_max),
                   requests_per_second_max = CASE WHEN $4::integer IS NULL THEN requests_per_second_max ELSE nullif($4, 0) END,
                   sealed_api_key = coalesce($5, sealed_api_key), name = coalesce($6, name), base_url = coalesce($7, base_url),
                   tokens_of = CASE WHEN $8::uuid IS NULL THEN tokens_of ELSE nullif($8, id) END
             WHERE id = $1
            """,
            account_id,
            enabled,
            concurrency_max,
            requests_per_second_max,
            sealed_api_key,
            name,
            base_url,
            tokens_of,
        )
        if touched:
            await record_act(connection, act)
    return touched == 1


async def rotate_webhook_secret(
    connection: Connection, account_id: PspAccountId, act: Act, *, sealed_secret: bytes, old_until: datetime
) -> bool:
    """Replace the webhook secret and keep the old one until then; audited. Returns False if there is no such account."""
    async with connection.atomic():
        touched = await connection.run(
            """
            UPDATE psp_accounts
               SET sealed_old_webhook_secret = sealed_webhook_secret, old_webhook_secret_until = $3, sealed_webhook_secret = $2
             WHERE id = $1
            """,
            account_id,
            sealed_secret,
            old_until,
        )
        if touched:
            await record_act(connection, act)
    return touched == 1


async def set_routes(
    connection: Connection, merchant_id: MerchantId, routes: list[Route], act: Act, *, default: PspAccountId | None = None
) -> bool:
    """Replace a merchant's rules, in order, and its default account if one is given; audited. Returns False if there is no such
    merchant.
    """
    async with connection.atomic():
        touched = await connection.run(
            "UPDATE merchants SET psp_account_id = coalesce($2, psp_account_id) WHERE merchant_id = $1", merchant_id, default
        )
        if not touched:
            return False
        await connection.run("DELETE FROM psp_routes WHERE merchant_id = $1", merchant_id)
        for position, route in enumerate(routes, start=1):
            await connection.run(
                """
                INSERT INTO psp_routes (
                    merchant_id, position, psp_account_id, currency, amount_minor_min, amount_minor_max, weight)
                VALUES ($1, $2, $3, $4, $5, $6, $7)
                """,
                merchant_id,
                position,
                route.psp_account_id,
                route.currency,
                route.amount_minor_min,
                route.amount_minor_max,
                route.weight,
            )
        await record_act(connection, act)
    return True

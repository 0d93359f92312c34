"""Merchants and their terms."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from itertools import groupby
from random import Random
from typing import Any
from uuid import UUID

from core.ids import MerchantId, PspAccountId
from core.money import Money
from core.payment import NO_TERMS, PaysOnce, Terms
from server.db.connection import Connection
from server.db.merchants.audit import Act, record_act
from server.db.psps.accounts import Route


@dataclass(frozen=True, slots=True)
class Merchant:
    """A merchant. `mode` is test or live; the two share nothing."""

    id: MerchantId
    name: str
    mode: str
    psp_account_id: PspAccountId
    created_at: datetime
    accepts_payments: bool = True
    one_live_payment_per_order: bool = False
    one_paid_payment_per_order: bool = False
    pays_refunded_orders_again: bool = False
    return_hosts: tuple[str, ...] = ()
    statement_descriptor: str | None = None
    refunds_late: bool = False
    refunds_fee: bool = False
    settlement_delay_seconds: int = 0
    requests_per_second_max: int | None = None
    requests_in_flight_max: int | None = None
    currencies: tuple["CurrencyTerms", ...] = ()
    routes: tuple[Route, ...] = ()

    def accounts_for(self, money: Money, rng: Random | None = None) -> list[PspAccountId]:
        """The PSP accounts that a payment may go to, the preferred one first: by the merchant's rules, then its default.

        With `rng`, neighboring rules with weights come in an order drawn by them (Efraimidis and Spirakis, 2006).
        """
        if not self.routes:
            return [self.psp_account_id]
        found: list[PspAccountId] = []
        for is_weighted, neighbors in groupby((one for one in self.routes if one.fits(money)), key=lambda one: bool(one.weight)):
            group = list(neighbors)
            if is_weighted and rng is not None:
                group.sort(key=lambda one: rng.random() ** (1 / (one.weight or 1)), reverse=True)
            found += [one.psp_account_id for one in group]
        return [*found, self.psp_account_id]

    def fallback_limit_minor(self, currency: str) -> int:
        """The amount up to which a payment passes while the fraud check does not answer."""
        return next((one.fallback_limit_minor for one in self.currencies if one.currency == currency), 0)

    @property
    def _pays_once(self) -> PaysOnce | None:
        if not self.one_paid_payment_per_order:
            return None
        return PaysOnce.UNLESS_REFUNDED if self.pays_refunded_orders_again else PaysOnce.ALWAYS

    def may_return_to(self, host: str) -> bool:
        """Return whether customers may be sent back to a host: any in test mode, and in live mode those of `return_hosts`."""
        if self.mode != "live":
            return True
        return any(host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self.return_hosts)

    def terms_in(self, currency: str) -> Terms:
        """The terms of a payment made now."""
        fee = next((one for one in self.currencies if one.currency == currency), _NO_FEE)
        terms = Terms(
            fee_basis_points=fee.fee_basis_points,
            fee_fixed_minor=fee.fee_fixed_minor,
            refunds_fee=self.refunds_fee,
            settlement_delay_seconds=self.settlement_delay_seconds,
            refunds_late=self.refunds_late,
            pays_once=self._pays_once,
        )
        return NO_TERMS if terms == NO_TERMS else terms


@dataclass(frozen=True, slots=True)
class CurrencyTerms:
    """The terms of a merchant for one currency."""

    currency: str
    fee_basis_points: int = 0
    fee_fixed_minor: int = 0
    negative_limit_minor: int = 0
    fallback_limit_minor: int = 0


_NO_FEE = CurrencyTerms("")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTerms:
    """A change of a merchant's terms. None leaves a field as it is; an empty statement descriptor removes it, and so does a limit
    of 0.

    `fees` are (currency, basis points, fixed minor units), `negative_limits` and `fallback_limits` (currency, minor units).
    """

    accepts_payments: bool | None = None
    one_live_payment_per_order: bool | None = None
    one_paid_payment_per_order: bool | None = None
    pays_refunded_orders_again: bool | None = None
    return_hosts: list[str] | None = None
    statement_descriptor: str | None = None
    refunds_late: bool | None = None
    refunds_fee: bool | None = None
    settlement_delay_seconds: int | None = None
    requests_per_second_max: int | None = None
    requests_in_flight_max: int | None = None
    fees: list[tuple[str, int, int]] = field(default_factory=list)
    negative_limits: list[tuple[str, int]] = field(default_factory=list)
    fallback_limits: list[tuple[str, int]] = field(default_factory=list)

    def summary(self) -> str:
        """The changed terms as text, for the audit log."""
        given = ((one.name, getattr(self, one.name)) for one in fields(self))
        return ", ".join(f"{name}={value}" for name, value in given if value is not None and (value or name not in _LISTS))


_LISTS = frozenset({"fees", "negative_limits", "fallback_limits"})


_COLUMN_BY_FIELD = {
    "id": "m.merchant_id",
    "name": "m.name",
    "mode": "m.mode",
    "psp_account_id": "m.psp_account_id",
    "created_at": "m.created_at",
    "accepts_payments": "m.accepts_payments",
    "one_live_payment_per_order": "m.one_live_payment_per_order",
    "one_paid_payment_per_order": "m.one_paid_payment_per_order",
    "pays_refunded_orders_again": "m.pays_refunded_orders_again",
    "return_hosts": "m.return_hosts",
    "statement_descriptor": "m.statement_descriptor",
    "refunds_late": "m.refunds_late",
    "refunds_fee": "m.refunds_fee",
    "settlement_delay_seconds": "m.settlement_delay_seconds",
    "requests_per_second_max": "m.requests_per_second_max",
    "requests_in_flight_max": "m.requests_in_flight_max",
    "currencies": """
        (SELECT json_agg(json_build_object(
                    'currency', c.currency, 'fee_basis_points', c.fee_basis_points, 'fee_fixed_minor', c.fee_fixed_minor,
                    'negative_limit_minor', c.negative_limit_minor, 'fallback_limit_minor', c.fallback_limit_minor)
                ORDER BY c.currency)
           FROM merchant_currencies c WHERE c.merchant_id = m.merchant_id)""",
    "routes": """
        (SELECT json_agg(json_build_object(
                    'psp_account_id', r.psp_account_id, 'currency', r.currency,
                    'amount_minor_min', r.amount_minor_min, 'amount_minor_max', r.amount_minor_max, 'weight', r.weight)
                ORDER BY r.position)
           FROM psp_routes r WHERE r.merchant_id = m.merchant_id)""",
}
MERCHANT_COLUMNS = ", ".join(_COLUMN_BY_FIELD.values())


def merchant_of(row: Sequence[Any]) -> Merchant:
    """The merchant of a row of `MERCHANT_COLUMNS`."""
    values = dict(zip(_COLUMN_BY_FIELD, row, strict=True))
    values["return_hosts"] = tuple(values["return_hosts"])
    values["currencies"] = tuple(CurrencyTerms(**one) for one in values["currencies"] or ())
    values["routes"] = tuple(
        Route(**{**one, "psp_account_id": PspAccountId(UUID(one["psp_account_id"]))}) for one in values["routes"] or ()
    )
    return Merchant(**values)


async def add_merchant(connection: Connection, merchant: Merchant) -> None:
    """Store a new merchant."""
    await connection.run(
        """
        INSERT INTO merchants (merchant_id, name, mode, psp_account_id, created_at, return_hosts)
        VALUES ($1, $2, $3, $4, $5, $6)
        """,
        merchant.id,
        merchant.name,
        merchant.mode,
        merchant.psp_account_id,
        merchant.created_at,
        list(merchant.return_hosts),
    )


async def list_merchants(connection: Connection) -> list[Merchant]:
    """All merchants, oldest first."""
    rows = await connection.query(
        f"SELECT {MERCHANT_COLUMNS} FROM merchants m ORDER BY created_at, merchant_id"  # noqa: S608 - own columns
    )
    return [merchant_of(row) for row in rows]


async def find_merchant(connection: Connection, merchant_id: MerchantId) -> Merchant | None:
    """Return the merchant of that id."""
    rows = await connection.query(
        f"SELECT {MERCHANT_COLUMNS} FROM merchants m WHERE merchant_id = $1",  # noqa: S608 - own columns
        merchant_id,
    )
    return merchant_of(rows[0]) if rows else None


async def set_terms(connection: Connection, merchant_id: MerchantId, new: NewTerms, act: Act) -> Merchant | None:
    """Change a merchant's terms, audited. Returns None if there is no such merchant."""
    async with connection.atomic():
        touched = await connection.run(
            """
            UPDATE merchants
               SET accepts_payments = coalesce($2, accepts_payments),
                   one_live_payment_per_order = coalesce($3, one_live_payment_per_order),
                   statement_descriptor = CASE WHEN $4::text IS NULL THEN statement_descriptor ELSE nullif($4, '') END,
                   refunds_late = coalesce($5, refunds_late), refunds_fee = coalesce($6, refunds_fee),
                   settlement_delay_seconds = coalesce($7, settlement_delay_seconds),
                   requests_per_second_max = CASE WHEN $8::integer IS NULL THEN requests_per_second_max ELSE nullif($8, 0) END,
                   requests_in_flight_max = CASE WHEN $9::integer IS NULL THEN requests_in_flight_max ELSE nullif($9, 0) END,
                   one_paid_payment_per_order = coalesce($10, one_paid_payment_per_order),
                   pays_refunded_orders_again = coalesce($11, pays_refunded_orders_again),
                   return_hosts = coalesce($12::text[], return_hosts)
             WHERE merchant_id = $1
            """,
            merchant_id,
            new.accepts_payments,
            new.one_live_payment_per_order,
            new.statement_descriptor,
            new.refunds_late,
            new.refunds_fee,
            new.settlement_delay_seconds,
            new.requests_per_second_max,
            new.requests_in_flight_max,
            new.one_paid_payment_per_order,
            new.pays_refunded_orders_again,
            new.return_hosts,
        )
        if not touched:
            return None
        await _set_currencies(connection, merchant_id, new)
        await record_act(connection, act)
    return await find_merchant(connection, merchant_id)


async def _set_currencies(connection: Connection, merchant_id: MerchantId, new: NewTerms) -> None:
    for currency, basis_points, fixed_minor in new.fees:
        await connection.run(
            """
            INSERT INTO merchant_currencies (merchant_id, currency, fee_basis_points, fee_fixed_minor) VALUES ($1, $2, $3, $4)
            ON CONFLICT (merchant_id, currency)
            DO UPDATE SET fee_basis_points = excluded.fee_basis_points, fee_fixed_minor = excluded.fee_fixed_minor
            """,
            merchant_id,
            currency,
            basis_points,
            fixed_minor,
        )
    for column, limits in (("negative_limit_minor", new.negative_limits), ("fallback_limit_minor", new.fallback_limits)):
        for currency, limit_minor in limits:
            await connection.run(
                f"""
                INSERT INTO merchant_currencies (merchant_id, currency, {column}) VALUES ($1, $2, $3)
                ON CONFLICT (merchant_id, currency) DO UPDATE SET {column} = excluded.{column}
                """,  # noqa: S608 - own columns
                merchant_id,
                currency,
                limit_minor,
            )

"""Chooses the PSP account of a new payment, and reserves a place there before anything is written.

A payment goes to the first account of its merchant's rules that can take it, is healthy and has room; if none has room, it waits
for one as long as its request can.
"""

from collections.abc import Mapping, Sequence
from random import Random

import msgspec
import trio

from core.errors import Overloaded, PspBusy, Unprocessable
from core.ids import PspAccountId
from core.money import Money
from core.payment import Capture, Payment
from server.db.merchants.merchants import Merchant
from server.db.payments.idempotency_keys import find_key
from server.flows.contexts import Payments, Psps, Storage
from server.flows.idempotency import Request
from server.psp.adapter import Adapter
from server.psp.routing import PaymentKind
from server.psp.turn import Turn

_rng = Random()  # noqa: S311 - spreads payments


class NewPayment(msgspec.Struct, frozen=True, kw_only=True):
    """A validated payment request. With a `token` of the PSP, issued by the account `token_issuer` if that is given, it is
    charged at once, otherwise it gets a hosted page.
    """

    money: Money
    order_id: str
    description: str | None
    return_url: str | None
    expires_in_seconds: int
    token: str | None = None
    token_issuer: PspAccountId | None = None
    capture: Capture = Capture.AUTOMATIC
    statement_descriptor: str | None = None
    metadata: Mapping[str, str] = msgspec.field(default_factory=dict)


class Chosen(msgspec.Struct, frozen=True):
    """The accounts that a payment may go to, the first one to ask first. `is_put_off`: there is no room, so its page is opened
    later.
    """

    account_ids: Sequence[PspAccountId]
    is_put_off: bool = False


async def choose(
    context: Payments,
    merchant: Merchant,
    wanted: NewPayment,
    request: Request,
    turn: Turn,
    *,
    reply_within_seconds: float | None,
) -> Chosen:
    """Choose the accounts, and reserve a place at the first one. A known key needs no place: its request was accepted before.

    Without a healthy account a page is opened later if its client need not have it at once, and a new request is refused
    otherwise. Raises `PspBusy`, `Overloaded` or `Unprocessable`.
    """
    candidates = candidates_for(context, merchant, wanted)
    if candidates and candidates[0].is_enabled and candidates[0].guard.try_reserve(turn):  # the usual case
        others = [one.account_id for one in candidates[1:] if one.is_enabled and one.guard.is_healthy]
        return Chosen([candidates[0].account_id, *others])
    enabled = [adapter for adapter in candidates if adapter.is_enabled]
    may_wait = reply_within_seconds is not None and wanted.token is None
    healthy = [adapter for adapter in enabled if adapter.guard.is_healthy]
    if (roomy := await first_with_room(healthy, turn)) is not None:
        if roomy is not enabled[0]:
            context.metrics.failed_over(enabled[0].account_id, roomy.account_id)
        return Chosen([roomy.account_id, *(one.account_id for one in healthy if one is not roomy)])
    if healthy:
        return await _wait(context, healthy, wanted, request, turn, seconds=reply_within_seconds if may_wait else None)
    if may_wait and enabled:
        return Chosen([enabled[0].account_id])
    if await is_known(context, request):
        return Chosen([merchant.psp_account_id])
    if enabled:
        seconds = min(one.guard.breaker.seconds_left(now=trio.current_time()) for one in enabled)
        raise Overloaded(
            "no payment provider can be reached at the moment: try again in a moment",
            code="psp_unavailable",
            retry_after_seconds=seconds,
        )
    if candidates or not has_an_account(context, merchant):
        raise Overloaded("no payment provider takes payments of this merchant at the moment", code="psp_unavailable")
    if wanted.token_issuer is not None:
        raise Unprocessable(
            "psp_account is not one of this merchant's accounts that take such a payment",
            code="no_provider",
            path="$.psp_account",
        )
    raise Unprocessable(
        "none of this merchant's payment providers takes a payment of this currency, amount and kind", code="no_provider"
    )


async def _wait(
    context: Payments, healthy: list[Adapter], wanted: NewPayment, request: Request, turn: Turn, *, seconds: float | None
) -> Chosen:
    """Wait for a place where the wait is shortest. Of a page whose client waits only `seconds`, the opening is put off after
    that.
    """
    healthy = sorted(healthy, key=lambda one: one.guard.wait_seconds(turn))
    ids = [adapter.account_id for adapter in healthy]
    if await is_known(context, request):
        return Chosen(ids)
    try:
        await healthy[0].guard.reserve(
            turn, seconds=context.psp_seconds if seconds is None else min(seconds, context.psp_seconds)
        )
    except PspBusy:
        if wanted.token is not None:
            raise
        context.background.require_room()
        return Chosen(ids, is_put_off=True)
    return Chosen(ids)


def candidates_for(context: Psps, merchant: Merchant, wanted: NewPayment) -> list[Adapter]:
    """The accounts that could take the payment, enabled or not, the preferred one first.

    A token is known only to the account that issued it, which is the one that the request names, else the first of the merchant's
    rules, and to accounts that share its tokens. Other payments are spread over rules with weights.
    """
    rng = _rng if wanted.token is None else None
    found = context.psps.capable(merchant.accounts_for(wanted.money, rng), kind_of(merchant, wanted))
    if wanted.token is None:
        return found
    issuer = next((one for one in found if wanted.token_issuer in (None, one.account_id)), None)
    if issuer is None:
        return []
    return [issuer, *(one for one in found if one is not issuer and one.token_scope == issuer.token_scope)]


def kind_of(merchant: Merchant, wanted: NewPayment) -> PaymentKind:
    """The capability that an account needs for the payment."""
    return PaymentKind(
        mode=merchant.mode,
        money=wanted.money,
        by_token=wanted.token is not None,
        by_hand=wanted.capture is Capture.MANUAL,
        has_return_url=wanted.return_url is not None,
        page_seconds=wanted.expires_in_seconds,
    )


def has_an_account(context: Psps, merchant: Merchant) -> bool:
    """Return whether any account of the merchant can take new payments."""
    account_ids = {merchant.psp_account_id, *(one.psp_account_id for one in merchant.routes)}
    return context.psps.has_any(account_ids, mode=merchant.mode)


async def first_with_room(adapters: Sequence[Adapter], turn: Turn) -> Adapter | None:
    """Reserve a place at the first account that has room, and return it; None if none has."""
    for adapter in adapters:
        if adapter.guard.try_reserve(turn) or await _reserve_soon(adapter, turn):
            return adapter
    return None


async def _reserve_soon(adapter: Adapter, turn: Turn) -> bool:
    """Reserve a place that needs a word with the other workers: the next slot of a rate, or the probe of a PSP that had failed.
    Returns whether there is one.
    """
    try:
        await adapter.guard.reserve(turn, seconds=0.0)
    except PspBusy:
        return False
    return True


async def reserve(context: Psps, request: Request, payment: Payment, turn: Turn) -> None:
    """Reserve a place for an operation on a payment, before its request claims its key. A known key needs none.

    Raises `PspBusy` if there is none in time.
    """
    adapter = await context.psps.find(payment.psp_account_id)
    if adapter is None or adapter.guard.try_reserve(turn) or await is_known(context, request):
        return
    await adapter.guard.reserve(turn, seconds=context.psp_seconds)


async def is_known(context: Storage, request: Request) -> bool:
    """Return whether the key was used before, so that its payment was accepted at that time."""
    async with context.pool.connection() as connection:
        return await find_key(connection, request.merchant_id, request.key) is not None

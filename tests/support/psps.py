"""Several PSPs, and payments there."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio
import trio.testing

from core.breaker import BreakerState
from core.ids import PAYMENT, MerchantId, PaymentId, PspAccountId, decode_id
from core.payment import Payment
from server.clock import utc_now
from server.db.payments.payments import find_payment
from server.db.psps.accounts import PspAccount, add_psp_account
from server.flows.contexts import Payments
from server.flows.payments.verify import Verified
from server.http.server.listener import bind
from server.process.demo import load_or_generate
from server.process.worker import open_worker
from server.psp.guard import Guard
from server.sandbox.program import SandboxConfiguration, open_sandbox
from server.sealing import Sealer
from server.settings import Settings
from tests.support.florin import Florin, order


@asynccontextmanager
async def second_psp(florin: Florin, directory: Path) -> AsyncIterator[tuple[PspAccountId, str]]:
    """Another sandbox PSP, and the demo merchant's rule that it is the one to prefer."""
    sockets = [bind("127.0.0.1", 0) for _ in range(2)]
    url = f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    other = load_or_generate(directory / "other.json")
    account_id = PspAccountId(other.psp_account_id)
    configuration = SandboxConfiguration(
        florin_url=florin.api_url,
        psp_url=url,
        psp_api_key=other.psp_api_key,
        psp_webhook_url=other.psp_webhook_url(florin.api_url),
        psp_webhook_secret=other.psp_webhook_secret,
        shop_url=florin.shop_url,
        shop_api_key=other.api_key,
        shop_webhook_secret=other.webhook_secret,
    )
    sealer = Sealer.from_file(directory / "sealing.key")
    account = PspAccount(
        id=account_id,
        psp="sandbox",
        mode="test",
        base_url=url,
        sealed_api_key=sealer.seal(other.psp_api_key, table="psp_accounts.api_key", row=account_id),
        sealed_webhook_secret=sealer.seal(other.psp_webhook_secret, table="psp_accounts.webhook_secret", row=account_id),
    )
    await add_psp_account(florin.connection, account, now=utc_now())
    await florin.connection.execute(
        """
        INSERT INTO psp_routes (merchant_id, position, psp_account_id, currency) SELECT merchant_id, 1, $1, 'EUR' FROM merchants
        """,
        (account_id,),
    )
    await florin.payments.psps.reload()
    async with open_sandbox(configuration, sockets[0], sockets[1]):
        yield account_id, url


async def share_tokens(florin: Florin, other: PspAccountId) -> None:
    """Make the other account know the demo account's tokens."""
    account = florin.demo.psp_account_id
    await florin.connection.execute("UPDATE psp_accounts SET tokens_of = $1 WHERE id = $2", (account, other))
    await florin.payments.psps.reload()


async def post_charge(florin: Florin, **fields: Any) -> Any:
    return await florin.post(order(confirm=True, token="tok_paid", **fields))


async def account_of(florin: Florin, payment_id: str) -> PspAccountId:
    return PspAccountId((await florin.row(payment_id))["psp_account_id"])


async def is_open(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.state is BreakerState.OPEN


async def is_closed(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.state is BreakerState.CLOSED


@asynccontextmanager
async def another_worker(florin: Florin, directory: Path) -> AsyncIterator[Payments]:
    settings = Settings(database_url=florin.database_url, key_file=directory / "sealing.key", sweep_seconds=60.0)
    async with open_worker(settings, bind("127.0.0.1", 0)) as (contexts, _):
        await trio.lowlevel.checkpoint()
        yield contexts.payments


async def is_full(guard: Guard) -> bool:
    await trio.lowlevel.checkpoint()
    return guard.in_flight == 4


async def stored_payments(florin: Florin, ids: list[str]) -> list[Payment]:
    """The payments as workers know them."""
    merchant_id = MerchantId(florin.demo.merchant_id)
    async with florin.payments.pool.connection() as connection:
        found = [await find_payment(connection, merchant_id, PaymentId(decode_id(PAYMENT, one))) for one in ids]
    return [payment for payment in found if payment is not None]


async def collect(receive: trio.MemoryReceiveChannel[Verified], into: list[Verified]) -> None:
    into.extend([one async for one in receive])

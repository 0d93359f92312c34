"""The counterparty of each provider for the conformance suite: a test account, and the acts of its customers."""

import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from core.evidence import Evidence
from core.ids import PspAccountId
from core.signing import sign_timestamped
from server.clock import utc_now
from server.http.client.client import ClientOptions, open_client
from server.http.server.listener import bind
from server.psp.adapter import Adapter
from server.psp.guard import Guard, Limits
from server.psp.providers import PROVIDERS
from server.psp.transport import Deadlines, PspTransport
from server.sandbox.program import SandboxConfiguration, open_sandbox
from server.uuid7 import uuid7
from tests.support.counterparty import process
from tests.support.florin import PAID, UNSHARED

ROOT = Path(__file__).parent.parent.parent
SECONDS = 5.0
API_KEYS = {"sandbox": "sandbox_x", "stripe": "sk_test_florin"}
"""A test key of each provider."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterparty:
    """A counterparty, and an adapter of an account there."""

    adapter: Adapter
    paying: str
    declined: str
    sign: Callable[[bytes, int], Mapping[bytes, bytes]]
    pay: Callable[[Evidence], Awaitable[object]]
    moved: Adapter
    captures_in_part: bool = True
    lists_events: bool = True


Harness = Callable[[], AbstractAsyncContextManager[Counterparty]]


@asynccontextmanager
async def _adapters(name: str, url: str, *, api_key: str, webhook_secret: str) -> AsyncIterator[tuple[Adapter, Adapter]]:
    """The provider's adapter for an account at an address, and one for an address where nobody listens."""
    provider, account_id = PROVIDERS[name], PspAccountId(uuid7())
    async with open_client(ClientOptions(connect_seconds=1.0)) as http:

        def make(base_url: str) -> Adapter:
            transport = PspTransport(
                http,
                Guard(Limits(concurrency=50), UNSHARED, admission_seconds_max=SECONDS),
                base_url=base_url,
                headers=provider.headers(api_key),
                deadlines=Deadlines(seconds=SECONDS, read_seconds=SECONDS, connect_seconds=1.0),
                observe=lambda *_: None,
                rng=random.Random(1),
                retry_header=provider.retry_header,
            )
            return provider.make_adapter(
                transport,
                account_id=account_id,
                webhook_secrets=(webhook_secret,),
                mode="test",
                is_enabled=True,
                token_scope=account_id,
                now=utc_now,
            )

        yield make(url), make("http://127.0.0.1:9")


@asynccontextmanager
async def sandbox() -> AsyncIterator[Counterparty]:
    """Florin's own sandbox PSP."""
    sockets = [bind("127.0.0.1", 0) for _ in range(2)]
    psp_url, shop_url = (f"http://127.0.0.1:{one.getsockname()[1]}" for one in sockets)
    secret, api_key = "sandbox_whsec_x", API_KEYS["sandbox"]
    configuration = SandboxConfiguration(
        florin_url="http://127.0.0.1:9",
        psp_url=psp_url,
        psp_api_key=api_key,
        psp_webhook_url="http://127.0.0.1:9/nobody",
        psp_webhook_secret=secret,
        shop_url=shop_url,
        shop_api_key="fl_test_x",
        shop_webhook_secret="whsec_eA==",
    )
    async with (
        open_sandbox(configuration, *sockets),
        httpx2.AsyncClient() as http,
        _adapters("sandbox", psp_url, api_key=api_key, webhook_secret=secret) as (adapter, moved),
    ):
        await http.post(f"{psp_url}/control", json={"webhooks": "hold"})  # only the adapter is used: nobody listens
        yield Counterparty(
            adapter=adapter,
            moved=moved,
            paying="tok_paid",
            declined="tok_declined",
            pay=lambda opened: http.post(opened.payment_url or "", data={"card": PAID}),
            sign=lambda body, at: {b"sandbox-signature": sign_timestamped(secret, timestamp=at, body=body).encode()},
        )


@asynccontextmanager
async def stripe() -> AsyncIterator[Counterparty]:
    """localstripe."""
    listening = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.support.local_stripe", str(listening.fileno())]
    secret = "whsec_x"
    with listening:
        async with (
            process(*command, url=url, pass_fds=[listening.fileno()], cwd=ROOT),
            httpx2.AsyncClient() as http,
            _adapters("stripe", url, api_key=API_KEYS["stripe"], webhook_secret=secret) as (adapter, moved),
        ):

            async def pay(opened: Evidence) -> None:
                basic = {"authorization": "Bearer sk_test_other"}
                body = {"payment_method": "pm_card_visa"}
                paid = await http.post(f"{url}/_config/pay/{opened.reference}", json=body, headers=basic)
                assert paid.status_code == 200, paid.text

            yield Counterparty(
                adapter=adapter,
                moved=moved,
                paying="pm_card_visa",
                declined="pm_card_chargeCustomerFail",
                pay=pay,
                sign=lambda body, at: {b"stripe-signature": sign_timestamped(secret, timestamp=at, body=body).encode()},
                captures_in_part=False,
                lists_events=False,
            )


HARNESSES: Mapping[str, Harness] = {"sandbox": sandbox, "stripe": stripe}

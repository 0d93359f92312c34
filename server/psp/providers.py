"""The payment service providers that Florin knows: one record each.

The command line and the composition root read these records; no code branches on a provider's name. A new provider is a package
with its adapter and a record here; `tests/server/psp/test_conformance.py` then runs against it as against every other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from core.errors import NotFound
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from server.psp.adapter import Adapter
from server.psp.sandbox import adapter as sandbox
from server.psp.stripe import account as stripe
from server.psp.transport import PspTransport


class MakeAdapter(Protocol):
    """Makes the adapter of one account. Any of `webhook_secrets` is valid; `now` is the clock."""

    def __call__(
        self,
        transport: PspTransport,
        *,
        account_id: PspAccountId,
        webhook_secrets: tuple[str, ...],
        mode: str,
        is_enabled: bool,
        token_scope: PspAccountId,
        now: Callable[[], datetime],
    ) -> Adapter: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """A provider.

    `headers` go with every call and carry the API key; `retry_header` is the header by which it says whether a call may be
    repeated. `base_url` and `requests_per_second` (by mode) are defaults for an account. `require_api_key` and
    `require_webhook_secret` raise `Unprocessable` for what cannot be one, saying what one looks like. `is_added`: accounts are
    added by `florin psp add`; other accounts come with their own program.
    """

    name: str
    make_adapter: MakeAdapter
    headers: Callable[[str], list[tuple[str, str]]]
    base_url: str
    requests_per_second: Mapping[str, int]
    webhook_secret_prefix: str
    require_api_key: Callable[[str, str], None]
    require_webhook_secret: Callable[[str], None]
    retry_header: bytes | None = None
    is_added: bool = True

    def webhook_path(self, account_id: PspAccountId) -> str:
        """The path on our public address to which the provider sends an account's webhooks."""
        return f"/v1/psp/{self.name}/{encode_id(PSP_ACCOUNT, account_id)}/webhooks"


PROVIDERS: Mapping[str, Provider] = {
    one.name: one
    for one in (
        Provider(
            name="sandbox",
            make_adapter=sandbox.make_adapter,
            headers=sandbox.headers,
            base_url="http://127.0.0.1:8090",
            requests_per_second={},
            webhook_secret_prefix="sandbox_whsec_",  # noqa: S106 - a prefix
            require_api_key=sandbox.require_api_key,
            require_webhook_secret=sandbox.require_webhook_secret,
            is_added=False,
        ),
        Provider(
            name="stripe",
            make_adapter=stripe.make_adapter,
            headers=stripe.headers,
            base_url="https://api.stripe.com",
            requests_per_second={"test": 25, "live": 100},  # docs.stripe.com/rate-limits
            webhook_secret_prefix="whsec_",  # noqa: S106 - a prefix
            require_api_key=stripe.require_api_key,
            require_webhook_secret=stripe.require_webhook_secret,
            retry_header=stripe.RETRY_HEADER,
        ),
    )
}


def provider_of(name: str) -> Provider:
    """The provider of that name. Raises `NotFound`."""
    provider = PROVIDERS.get(name)
    if provider is None:
        raise NotFound(f"unknown payment service provider {name[:40]!r}: expected one of {', '.join(PROVIDERS)}")
    return provider

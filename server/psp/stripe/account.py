"""Accounts at Stripe for `server.psp.providers`: the adapter, the headers, and the form of their secrets."""

import re
from collections.abc import Callable
from datetime import datetime

from core.errors import Unprocessable
from core.ids import PspAccountId
from server.psp.adapter import Adapter
from server.psp.stripe.adapter import StripeAdapter
from server.psp.stripe.api import RETRY_HEADER as RETRY_HEADER
from server.psp.stripe.api import StripeApi
from server.psp.stripe.api import headers as headers
from server.psp.transport import PspTransport


def make_adapter(
    transport: PspTransport,
    *,
    account_id: PspAccountId,
    webhook_secrets: tuple[str, ...],
    mode: str,
    is_enabled: bool,
    token_scope: PspAccountId,
    now: Callable[[], datetime],
) -> Adapter:
    """See `server.psp.providers.MakeAdapter`."""
    api = StripeApi(transport, now)
    return StripeAdapter(
        api=api,
        account_id=account_id,
        webhook_secrets=webhook_secrets,
        token_scope=token_scope,
        mode=mode,
        is_enabled=is_enabled,
    )


def require_api_key(api_key: str, mode: str) -> None:
    """Raise `Unprocessable` for a key of another form or mode: Stripe's keys show their mode."""
    other = "live" if mode == "test" else "test"
    if not re.match(r"[sr]k_(test|live)_", api_key):
        raise Unprocessable(f"Stripe's secret keys begin with sk_{mode}_ or rk_{mode}_")
    if re.match(rf"[a-z]+_{other}_", api_key):
        raise Unprocessable(f"this is a {other} key: give a {mode} one, or --mode {other}")


def require_webhook_secret(secret: str) -> None:
    """Raise `Unprocessable` for a secret of another form."""
    if not secret.startswith("whsec_"):
        raise Unprocessable("Stripe's webhook signing secrets begin with whsec_")

"""Limits of callers: 429 with the headers of draft-ietf-httpapi-ratelimit-headers-10, before any side effect."""

import math

import trio

from core.errors import RateLimited
from server.api.replies import with_headers
from server.api.routing import Caller
from server.concurrency.request_limits import Quota, RequestLimits
from server.db.merchants.merchants import Merchant
from server.http.asgi import Send


def limited(limits: RequestLimits, caller: Caller, send: Send) -> Send:
    """Admit a request by the rates of its key and its merchant. Returns the `send` that tells the tighter of them in the headers.

    Raises `RateLimited`.
    """
    now = trio.current_time()
    tightest: Quota | None = None
    if caller.key_requests_per_second_max:
        tightest = limits.admit(caller.key_id, per_second=caller.key_requests_per_second_max, now=now)
    if tightest is None or not tightest.wait_seconds:  # what a key is refused does not count for its merchant
        of_merchant = limits.admit(caller.merchant.id, per_second=caller.merchant.requests_per_second_max, now=now)
        if tightest is None or (of_merchant is not None and _is_tighter(of_merchant, tightest)):
            tightest = of_merchant
    if tightest is None:
        return send
    if tightest.wait_seconds:
        raise RateLimited(
            f"more than {tightest.limit:g} requests per second: nothing was done, repeat the request later",
            retry_after_seconds=tightest.wait_seconds,
            headers=_headers(tightest),
        )
    if 2 * tightest.remaining > tightest.limit:
        return send  # far from the limit: it is not worth telling
    return with_headers(send, _headers(tightest))


def _is_tighter(one: Quota, other: Quota) -> bool:
    return (-one.wait_seconds, one.remaining) < (-other.wait_seconds, other.remaining)


def require_room(limits: RequestLimits, merchant: Merchant) -> None:
    """Count a request of the merchant under way; `limits.leave` must follow. Raises `RateLimited` if there are too many."""
    if not limits.enter(merchant.id, in_flight_max=merchant.requests_in_flight_max):
        raise RateLimited("too many requests of this merchant are under way: wait for some of them", code="too_many_in_flight")


def _headers(quota: Quota) -> list[tuple[bytes, bytes]]:
    reset = max(math.ceil(quota.reset_seconds), 1)
    return [
        (b"ratelimit-policy", b'"requests";q=%d;w=1' % max(int(quota.limit), 1)),
        (b"ratelimit", b'"requests";r=%d;t=%d' % (quota.remaining, reset)),
    ]

"""Retry schedules: when to try again, and when to give up (promise:bounded).

A schedule is a tuple of delays in seconds; entry n is the wait before attempt n, and the first attempt is number 0. Jitter is an
argument, so a schedule is a pure function.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

DELIVERY_DELAYS_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Webhook attempts to a merchant: at once, then at growing intervals over about 75 hours (Standard Webhooks' advice)."""

RETRY_AFTER_SECONDS_MAX = 86_400.0
"""The longest Retry-After of an endpoint that is honored."""

FAILING_DAYS_MAX = 5
"""Days without a success after which an endpoint is disabled."""

INBOX_DELAYS_SECONDS = (2, 10, 60, 600, 3_600)
"""Retries of a PSP event that arrived before its payment or charge was known."""

RECHECK_DELAYS_SECONDS = (5, 30, 120, 600, 3_600, 86_400, 86_400, 86_400, 86_400, 86_400)
"""Fetches of an operation whose answer was lost. After the last one an operator has to look."""

JITTER_FRACTION = 0.2


def next_attempt_at(delays_seconds: tuple[int, ...], *, attempts: int, now: datetime, jitter: float = 0.5) -> datetime | None:
    """The time of the next attempt after `attempts` have been made, or None if the schedule is exhausted.

    `jitter` is a number in [0, 1): 0.5 means none, the ends mean ±20 %.
    """
    assert attempts >= 0
    assert 0 <= jitter < 1
    if attempts >= len(delays_seconds):
        return None
    spread = 1 + JITTER_FRACTION * (2 * jitter - 1)
    return now + timedelta(seconds=delays_seconds[attempts] * spread)


def retry_after_seconds(header: str, *, now: datetime) -> float | None:
    """The seconds of a Retry-After header (RFC 9110, 10.2.3), bounded, or None if it cannot be read."""
    text = header.strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:9]), RETRY_AFTER_SECONDS_MAX)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, IndexError, OverflowError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return min(max((moment - now).total_seconds(), 0.0), RETRY_AFTER_SECONDS_MAX)

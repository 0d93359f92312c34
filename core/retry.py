"""Schedules: when to try again, and when to give up.

A schedule is a tuple of delays in seconds; entry n is the wait before attempt n (the first attempt is number 0).
Jitter comes as an argument, so that a schedule is a pure function.
"""

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

DELIVERY_DELAYS_SECONDS = (0, 5, 300, 1_800, 7_200, 18_000, 36_000, 50_400, 72_000, 86_400)
"""Webhook attempts to a merchant: at once, then about 75 hours of growing patience (Standard Webhooks' advice)."""

RETRY_AFTER_SECONDS_MAX = 86_400.0
"""For how long an endpoint may put us off at a time."""

FAILING_DAYS_MAX = 5
"""After how many days without a success an endpoint gets no more."""

INBOX_DELAYS_SECONDS = (2, 10, 60, 600, 3_600)
"""A PSP's event that came before what it is about."""

RECHECK_DELAYS_SECONDS = (5, 30, 120, 600, 3_600, 86_400, 86_400, 86_400, 86_400, 86_400)
"""Fetches of an operation whose answer was lost; after the last one an operator has to look."""

JITTER_FRACTION = 0.2


def next_attempt_at(delays_seconds: tuple[int, ...], *, attempts: int, now: datetime, jitter: float = 0.5) -> datetime | None:
    """When to make the next attempt after `attempts` have been made, or None where the schedule is exhausted.

    `jitter` is a number in [0, 1): 0.5 is no jitter, the ends are ±20 %.
    """
    assert attempts >= 0
    assert 0 <= jitter < 1
    if attempts >= len(delays_seconds):
        return None
    spread = 1 + JITTER_FRACTION * (2 * jitter - 1)
    return now + timedelta(seconds=delays_seconds[attempts] * spread)


def retry_after_seconds(header: str, *, now: datetime) -> float | None:
    """What a Retry-After header (RFC 9110, 10.2.3) asks for, bounded; None where it cannot be read."""
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

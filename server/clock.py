"""The system clock. Code that needs the time takes it as an argument; the processes pass this."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)

"""The system clock. What needs the time takes it as an argument; this is what the processes pass."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)

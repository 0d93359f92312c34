"""UUIDv7 (RFC 9562): the only place that draws identifiers."""

from datetime import UTC, datetime
from uuid import UUID, SafeUUID

import uuid_utils

_blank, _fill = UUID.__new__, object.__setattr__
"""A payment draws seven: `UUID.__init__`, which takes all forms of a UUID, would cost more than drawing it."""


def uuid7() -> UUID:
    """A UUIDv7 (RFC 9562): sorts by the time it was made."""
    made = _blank(UUID)
    _fill(made, "int", int.from_bytes(uuid_utils.uuid7().bytes))
    _fill(made, "is_safe", SafeUUID.unknown)
    return made


def drawn_at(made: UUID) -> datetime:
    """When a UUIDv7 was drawn."""
    return datetime.fromtimestamp((made.int >> 80) / 1_000, UTC)

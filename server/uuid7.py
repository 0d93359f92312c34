"""UUIDv7 (RFC 9562). Identifiers are drawn here only."""

from datetime import UTC, datetime
from uuid import UUID, SafeUUID

import uuid_utils

_blank, _fill = UUID.__new__, object.__setattr__
"""A payment draws seven, and `UUID.__init__`, which accepts every form of a UUID, would cost more than drawing one."""


def uuid7() -> UUID:
    """A UUIDv7 (RFC 9562), which sorts by its time."""
    made = _blank(UUID)
    _fill(made, "int", int.from_bytes(uuid_utils.uuid7().bytes))
    _fill(made, "is_safe", SafeUUID.unknown)
    return made


def drawn_at(made: UUID) -> datetime:
    """The time at which a UUIDv7 was drawn."""
    return datetime.fromtimestamp((made.int >> 80) / 1_000, UTC)

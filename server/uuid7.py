"""UUIDv7 (RFC 9562). Identifiers are drawn here only."""

from datetime import UTC, datetime
from uuid import UUID, SafeUUID

import uuid_utils

_blank, _set_int, _set_is_safe = UUID.__new__, UUID.int.__set__, UUID.is_safe.__set__  # type: ignore[attr-defined,misc]  # its slots
_UNKNOWN = SafeUUID.unknown
"""A payment draws five, and `UUID.__init__`, which accepts every form of a UUID, would cost more than drawing one."""


def uuid7() -> UUID:
    """A UUIDv7 (RFC 9562), which sorts by its time."""
    made = _blank(UUID)
    _set_int(made, uuid_utils.uuid7().int)
    _set_is_safe(made, _UNKNOWN)
    return made


def drawn_at(made: UUID) -> datetime:
    """The time at which a UUIDv7 was drawn."""
    return datetime.fromtimestamp((made.int >> 80) / 1_000, UTC)

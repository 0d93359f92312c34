"""The document of an event: the same bytes by webhook, on the stream and from the API."""

import msgspec

from core.events import API_VERSION
from core.ids import EVENT, encode_id
from server.db.events.events import Event


def encode_event(event: Event) -> bytes:
    """Encode an event with its object as it was at that time."""
    head = {
        "id": encode_id(EVENT, event.id),
        "type": event.type,
        "seq": event.seq,
        "api_version": API_VERSION,
        "timestamp": event.created_at,
        "data": msgspec.Raw(event.data),
    }
    return msgspec.json.encode(head)

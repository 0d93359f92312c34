"""The bodies of requests about consumers and the stream."""

from typing import Annotated

import msgspec

from server.api.parsing import SEQ_MAX, Types, TypesToo, decode_body, with_types

ORIGIN_PATTERN = r"^https?://[A-Za-z0-9.\[\]:-]{1,253}\Z"
CONSUMER_PATTERN = r"^[A-Za-z0-9_.-]{1,64}\Z"
Seq = Annotated[int, msgspec.Meta(ge=0, le=SEQ_MAX)]
ConsumerName = Annotated[str, msgspec.Meta(pattern=CONSUMER_PATTERN)]


class PlaceConsumer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PUT /v1/consumers/{name}`: the last event that was handled."""

    acked_seq: Seq


class CreateTicket(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/stream/tickets`: the origin whose pages may use the ticket, and the events that they may read."""

    origin: Annotated[str, msgspec.Meta(pattern=ORIGIN_PATTERN, description="like https://shop.example")]
    event_types: Types = []
    consumer: ConsumerName | None = None
    types: TypesToo = msgspec.UNSET


class Ack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A message from a client of the stream: everything up to this event was handled."""

    ack: Seq


_consumer = msgspec.json.Decoder(PlaceConsumer)
_ticket = msgspec.json.Decoder(CreateTicket)
_ack = msgspec.json.Decoder(Ack)


def read_place_consumer(body: bytes) -> PlaceConsumer:
    """Decode the request."""
    return decode_body(_consumer, body)


def read_ticket(body: bytes) -> CreateTicket:
    """Decode the request."""
    return with_types(decode_body(_ticket, body))


def read_ack(text: str) -> Ack:
    """Decode a message of the websocket."""
    return decode_body(_ack, text.encode("utf-8", "surrogatepass"))

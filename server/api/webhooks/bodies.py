"""The bodies of requests about webhook endpoints and dead letters, validated as a whole before anything happens."""

from typing import Annotated, Literal

import msgspec

from core.errors import Unprocessable
from server.api.parsing import SEQ_MAX, Types, TypesToo, decode_body, require_harmless, with_types
from server.flows.webhooks.destinations import URL_LENGTH_MAX

OVERLAP_SECONDS_DEFAULT = 86_400
OVERLAP_SECONDS_MAX = 604_800
Url = Annotated[str, msgspec.Meta(min_length=1, max_length=URL_LENGTH_MAX, description="https, port 443 or 8443")]
Description = Annotated[str, msgspec.Meta(max_length=255)]
Rate = Annotated[int, msgspec.Meta(ge=1, le=10_000, description="the maximum number of deliveries per second")]
Concurrency = Annotated[int, msgspec.Meta(ge=1, le=256, description="the maximum number of concurrent deliveries")]
Mode = Literal["parallel", "ordered"]


class CreateEndpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/webhook-endpoints`. `ordered`: an event that fails holds back the later ones of this endpoint."""

    url: Url
    mode: Mode = "parallel"
    event_types: Types = []
    description: Description = ""
    requests_per_second_max: Rate | None = None
    concurrency_max: Concurrency = 32
    types: TypesToo = msgspec.UNSET


class ChangeEndpoint(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `PATCH /v1/webhook-endpoints/{id}`. Omitted fields are not changed. Another `mode` applies to events to
    come. `missed` says what becomes of the events of the time in which it was paused or disabled: by default those of a pause are
    sent, in order, and others skipped.
    """

    url: Url | msgspec.UnsetType = msgspec.UNSET
    mode: Mode | msgspec.UnsetType = msgspec.UNSET
    event_types: Types | msgspec.UnsetType = msgspec.UNSET
    description: Description | msgspec.UnsetType = msgspec.UNSET
    requests_per_second_max: Rate | msgspec.UnsetType | None = msgspec.UNSET
    concurrency_max: Concurrency | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET
    paused: bool | msgspec.UnsetType = msgspec.UNSET
    missed: Literal["send", "skip"] | msgspec.UnsetType = msgspec.UNSET
    types: TypesToo = msgspec.UNSET


class RotateSecret(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/webhook-endpoints/{id}/rotate-secret`: how long the old secret signs beside the new one."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_SECONDS_MAX)] = OVERLAP_SECONDS_DEFAULT


class ReplayEvents(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/webhook-endpoints/{id}/replay`: the events with these numbers, both ends included, at most 10,000."""

    from_seq: Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)]
    to_seq: Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)] | None = None


class SelectLetters(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A selection of dead letters: all, those of an endpoint, or one of them by the number of its event."""

    endpoint_id: Annotated[str, msgspec.Meta(max_length=64)] | None = None
    seq: Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)] | None = None


_create = msgspec.json.Decoder(CreateEndpoint)
_change = msgspec.json.Decoder(ChangeEndpoint)
_rotate = msgspec.json.Decoder(RotateSecret)
_replay = msgspec.json.Decoder(ReplayEvents)
_letters = msgspec.json.Decoder(SelectLetters)


def read_create_endpoint(body: bytes) -> CreateEndpoint:
    """Decode the request. Raises `Malformed` or `Unprocessable`, like all of these."""
    request = with_types(decode_body(_create, body))
    require_harmless([("description", request.description), ("url", request.url)])
    return request


def read_change_endpoint(body: bytes) -> ChangeEndpoint:
    """Decode the request."""
    request = with_types(decode_body(_change, body))
    if request.paused is not msgspec.UNSET and request.enabled is not msgspec.UNSET:
        raise Unprocessable("give either enabled or paused", code="invalid_field", path="$.paused")
    if request.missed is not msgspec.UNSET and request.enabled is not True and request.paused is not False:
        raise Unprocessable("missed goes with enabled: true or paused: false", code="invalid_field", path="$.missed")
    given = [("description", request.description), ("url", request.url)]
    require_harmless((name, text) for name, text in given if not isinstance(text, msgspec.UnsetType))
    return request


def read_rotate(body: bytes) -> RotateSecret:
    """Decode the request."""
    return decode_body(_rotate, body or b"{}")


def read_replay(body: bytes) -> ReplayEvents:
    """Decode the request."""
    request = decode_body(_replay, body)
    if request.to_seq is not None and request.to_seq < request.from_seq:
        raise Unprocessable("to_seq must not be less than from_seq", code="invalid_field", path="$.to_seq")
    return request


def read_letters(body: bytes) -> SelectLetters:
    """Decode the request."""
    request = decode_body(_letters, body or b"{}")
    if request.seq is not None and request.endpoint_id is None:
        raise Unprocessable("seq needs the endpoint_id of its endpoint", code="invalid_field", path="$.endpoint_id")
    return request

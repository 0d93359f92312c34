"""The bodies of requests about API keys."""

from typing import Annotated

import msgspec

from server.api.parsing import decode_body
from server.flows.merchants.api_keys import OVERLAP_SECONDS_MAX

OVERLAP_SECONDS_DEFAULT = 86_400


class RotateKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The body of `POST /v1/api-keys/{id}/rotate`: how long the old key is valid beside the new one."""

    overlap_seconds: Annotated[int, msgspec.Meta(ge=0, le=OVERLAP_SECONDS_MAX)] = OVERLAP_SECONDS_DEFAULT


_rotate = msgspec.json.Decoder(RotateKey)


def read_rotate_key(body: bytes) -> RotateKey:
    """Decode the request. Raises `Malformed` or `Unprocessable`."""
    return decode_body(_rotate, body or b"{}")

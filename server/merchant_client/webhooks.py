"""Webhooks as they arrive: verified, then read."""

import time
from collections.abc import Mapping

import msgspec

from core.errors import InvalidSignature
from core.signing import verify_standard
from server.resources import Event

_event = msgspec.json.Decoder(Event)


def verify_webhook(secret: str | list[str], headers: Mapping[str, str], body: bytes, *, now: float | None = None) -> Event:
    """The event of a request to your endpoint, once its signature is known to be ours and not older than five minutes.

    `body` is the raw body, as it came. `secret` is the endpoint's `whsec_…`, or several while you change from one to another.
    Raises `InvalidSignature`: answer 400 then. The event may come more than once, with the same `id`.
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, timestamp = given["webhook-id"], given["webhook-timestamp"]
        signature = given["webhook-signature"]
    except KeyError as error:
        raise InvalidSignature(f"there is no header {error.args[0]}") from error
    verify_standard(
        [secret] if isinstance(secret, str) else secret,
        message_id=message_id,
        timestamp=timestamp,
        signature=signature,
        body=body,
        now=time.time() if now is None else now,
    )
    try:
        return _event.decode(body)
    except msgspec.DecodeError as error:
        raise InvalidSignature(f"the body is no event: {error}") from error

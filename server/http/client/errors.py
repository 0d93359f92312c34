"""The failures of a call over HTTP. Each says what may have happened, because that decides what may be done next."""

from core.errors import FlorinError


class ClientError(FlorinError):
    """A call over HTTP failed."""

    code = "http_error"


class NotSent(ClientError):
    """Nothing reached the peer, so the call may be repeated, elsewhere too."""


class Refused(NotSent):
    """Nothing was sent, because the address of the name is forbidden. Repeating the call does not help."""


class OutcomeUnknown(ClientError):
    """The peer may have received the request; its answer did not arrive."""


class BadResponse(ClientError):
    """The peer sent an unusable answer."""

"""What a call over HTTP can fail with. With money, what matters is what is known: each error says what may have happened."""

from core.errors import FlorinError


class ClientError(FlorinError):
    """A call over HTTP failed."""

    code = "http_error"


class NotSent(ClientError):
    """Nothing reached the peer, so the call may be repeated, elsewhere too."""


class Refused(NotSent):
    """Nothing was sent, because the address that the name stands for may not be called. A repetition will not help."""


class OutcomeUnknown(ClientError):
    """The peer may have received the request; its answer did not arrive."""


class BadResponse(ClientError):
    """The peer answered, with something that cannot be used."""

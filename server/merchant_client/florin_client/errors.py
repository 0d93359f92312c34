"""The exceptions of the client. Everything that it raises because of a reply or the network is a `FlorinError`.

A `ValueError` or `TypeError` is a mistake of the caller's, found before anything is sent. All exceptions can be pickled.
"""

from typing import Any

from florin_client.resources import Payment


class FlorinError(Exception):
    """The base of the client's exceptions."""


class ApiError(FlorinError):
    """The API refused the request with a problem document (RFC 9457).

    `status` is the HTTP status and `code` the stable name of the problem. `path` names the offending field, if there is one.
    `payment` is the payment of a declined or unfinished charge. `problem` is the whole document. `idempotency_key` is the key of
    the request, drawn or given: after a `status` of 500 and above, repeat the call with it to learn how it ended.
    """

    def __init__(
        self, status: int, problem: dict[str, Any], payment: Payment | None = None, idempotency_key: str | None = None
    ) -> None:
        super().__init__(f"{problem['detail']} ({problem['code']}, {problem['request_id']})")
        self.status = status
        self.code: str = problem["code"]
        self.request_id: str = problem["request_id"]
        self.path: str | None = problem.get("path")
        self.problem = problem
        self.payment = payment
        self.idempotency_key = idempotency_key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.status, self.problem, self.payment, self.idempotency_key)


class FlorinUnavailable(FlorinError):
    """No readable reply came, after several tries. Repeat the call with `idempotency_key` to learn how it ended."""

    def __init__(self, detail: str, idempotency_key: str | None = None) -> None:
        super().__init__(detail)
        self.idempotency_key = idempotency_key

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0], self.idempotency_key)


class Gap(FlorinError):
    """Events after `after_seq` are no longer available. Read the current state from the API and continue after `seq`."""

    def __init__(self, after_seq: int | None, seq: int) -> None:
        super().__init__(f"the events that followed {after_seq} are no longer available; continue after {seq}")
        self.after_seq = after_seq
        self.seq = seq

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.after_seq, self.seq)


class InvalidSignature(FlorinError):
    """The request was not signed by Florin with this secret within the last five minutes. Answer it with 400."""


class Unreadable(FlorinError):
    """A document of the API does not have the expected shape. A newer client may be able to read it."""

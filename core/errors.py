"""The one exception tree.

Expected outcomes are return values. Whatever is raised is a failure and belongs to this tree. Every class has a stable `code`
that merchants may program against; `server.api.problems` decides the HTTP status of each.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class FlorinError(Exception):
    """The base of all failures that Florin itself raises."""

    code: str = "internal_error"


class NotChecked(FlorinError):
    """The database could not be inspected, which says nothing about the promises."""

    code = "not_checked"


class DomainError(FlorinError):
    """A rule of the domain was about to be broken."""


class InvalidMoney(DomainError):
    """An amount or a currency that no payment can have."""

    code = "invalid_money"


class IllegalTransition(DomainError):
    """The table of transitions does not allow this change of a payment."""

    code = "illegal_transition"


class UnbalancedTransfer(DomainError):
    """The postings of a transfer do not sum to zero per currency."""

    code = "unbalanced_transfer"


class InvalidId(DomainError):
    """A public identifier that Florin did not make."""

    code = "invalid_id"


class InvalidSignature(DomainError):
    """A signed message with a wrong signature, timestamp or format."""

    code = "invalid_signature"


class RequestError(FlorinError):
    """The request cannot be carried out; nothing was changed."""

    def __init__(self, detail: str, *, code: str | None = None, path: str | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.path = path


class Malformed(RequestError):
    """The request could not be parsed."""

    code = "malformed_request"


class Unauthenticated(RequestError):
    """The API key is missing, unknown or revoked."""

    code = "unauthenticated"


class Forbidden(RequestError):
    """The caller is known but not allowed to do this."""

    code = "forbidden"


class NotFound(RequestError):
    """Nothing with that name belongs to the caller."""

    code = "not_found"


class Conflict(RequestError):
    """The current state of the resource does not allow the request."""

    code = "conflict"


class Unprocessable(RequestError):
    """The request is readable but breaks a rule; `path` names the field."""

    code = "unprocessable"


@dataclass(frozen=True, slots=True)
class ItemError:
    """The problem with one item of a batch. `item` counts from 1."""

    item: int
    path: str
    code: str
    detail: str


ITEM_ERRORS_MAX = 100


class InvalidItems(Unprocessable):
    """Some items of a batch break a rule, so none was begun. The first of them are listed, and `more` is the number of others."""

    code = "invalid_items"

    def __init__(self, errors: Sequence[ItemError], *, count: int) -> None:
        first = errors[0]
        super().__init__(
            f"{len(errors):,} of {count:,} items are invalid, so nothing was begun; "
            f"the first is item {first.item}: {first.detail}",
            path=first.path,
        )
        self.errors = errors[:ITEM_ERRORS_MAX]
        self.more = len(errors) - len(self.errors)


class TooLarge(RequestError):
    """The body is larger than the route accepts."""

    code = "body_too_large"


class BodyTooLate(RequestError):
    """The body did not arrive in time."""

    code = "body_too_late"


class UnsupportedEncoding(RequestError):
    """The body has a coding that is not supported."""

    code = "unsupported_encoding"


class Overloaded(FlorinError):
    """A limit was reached before any side effect; the caller may try again after `retry_after_seconds`."""

    code = "overloaded"

    def __init__(self, detail: str, *, code: str | None = None, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.retry_after_seconds = retry_after_seconds


class RateLimited(FlorinError):
    """The caller has sent too many requests; nothing was done."""

    code = "rate_limited"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        retry_after_seconds: float = 1.0,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.retry_after_seconds = retry_after_seconds
        self.headers = headers


class DatabaseUnavailable(FlorinError):
    """The database could not be reached or did not answer. The outcome of the last write may be unknown."""

    code = "database_unavailable"


class DatabaseRefused(FlorinError):
    """The database refused a statement: a privilege is missing, or a constraint caught what the code should have prevented.

    `constraint` is its name, if known.
    """

    def __init__(self, detail: str, *, constraint: str | None = None) -> None:
        super().__init__(detail)
        self.constraint = constraint


class PspError(FlorinError):
    """A failure between Florin and a payment service provider."""

    code = "psp_error"


class PspUnreachable(PspError):
    """The PSP provably received nothing."""

    code = "psp_unreachable"


class PspBusy(PspUnreachable):
    """Nothing was sent, or the PSP accepted nothing, because it is overloaded or failing.

    `retry_after_seconds` is when another try makes sense, if that is known.
    """

    code = "psp_busy"

    def __init__(self, detail: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class PspOutcomeUnknown(PspError):
    """The PSP may have received the request, but its answer was lost."""

    code = "psp_timeout"


class PspRejected(PspError):
    """The PSP understood the request and refused it."""

    code = "psp_rejected"


class TokenUnknown(PspRejected):
    """The PSP does not know the token, so nothing was charged."""

    code = "token_unknown"


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """Return the exceptions of a group, without the groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found

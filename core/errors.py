"""One tree of failures.

Expected outcomes are return values; what is raised is a failure and belongs to this tree. Every class carries a stable
`code` that merchants may program against; the HTTP status of each is decided in one place, `server.api.problems`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class FlorinError(Exception):
    """The root of all failures that Florin raises itself."""

    code: str = "internal_error"


class NotChecked(FlorinError):
    """The database could not be looked at, which says nothing about the promises."""

    code = "not_checked"


class DomainError(FlorinError):
    """A rule of the domain was about to be broken."""


class InvalidMoney(DomainError):
    """An amount or a currency that no payment can have."""

    code = "invalid_money"


class IllegalTransition(DomainError):
    """A payment was asked to go where the table of transitions does not lead."""

    code = "illegal_transition"


class UnbalancedTransfer(DomainError):
    """Postings of one transfer that do not sum to zero per currency."""

    code = "unbalanced_transfer"


class InvalidId(DomainError):
    """A public identifier that was not made by Florin."""

    code = "invalid_id"


class InvalidSignature(DomainError):
    """A signed message whose signature, timestamp or form is not acceptable."""

    code = "invalid_signature"


class RequestError(FlorinError):
    """The caller's request cannot be carried out as it stands; nothing was changed."""

    def __init__(self, detail: str, *, code: str | None = None, path: str | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code
        self.path = path


class Malformed(RequestError):
    """The request could not be read at all."""

    code = "malformed_request"


class Unauthenticated(RequestError):
    """No key, an unknown key or a revoked key."""

    code = "unauthenticated"


class Forbidden(RequestError):
    """The caller is known and may not do this."""

    code = "forbidden"


class NotFound(RequestError):
    """Nothing of that name belongs to the caller."""

    code = "not_found"


class Conflict(RequestError):
    """The state of things forbids it for now."""

    code = "conflict"


class Unprocessable(RequestError):
    """Readable, but against the rules; `path` names the field."""

    code = "unprocessable"


@dataclass(frozen=True, slots=True)
class ItemError:
    """What is wrong with one item of a batch; `item` counts from 1."""

    item: int
    path: str
    code: str
    detail: str


class InvalidItems(Unprocessable):
    """Some items of a batch are against the rules, so that none was begun. All that are wrong are named."""

    code = "invalid_items"

    def __init__(self, errors: Sequence[ItemError], *, count: int) -> None:
        first = errors[0]
        super().__init__(
            f"{len(errors):,} of {count:,} items cannot be carried out, so nothing was begun; "
            f"the first is item {first.item}: {first.detail}",
            path=first.path,
        )
        self.errors = errors


class TooLarge(RequestError):
    """The body is larger than the route takes."""

    code = "body_too_large"


class Overloaded(FlorinError):
    """A bound was reached before any side effect; try again in a moment."""

    code = "overloaded"

    def __init__(self, detail: str, *, code: str | None = None) -> None:
        super().__init__(detail)
        self.code = code or self.code


class DatabaseUnavailable(FlorinError):
    """The database could not be reached or did not answer; whether the last write happened may be unknown."""

    code = "database_unavailable"


class DatabaseRefused(FlorinError):
    """The database refused: a right is missing, or a constraint held what the code should have held.

    `constraint` is its name where it is known.
    """

    def __init__(self, detail: str, *, constraint: str | None = None) -> None:
        super().__init__(detail)
        self.constraint = constraint


class PspError(FlorinError):
    """Something went wrong between Florin and a Payment Service Provider."""

    code = "psp_error"


class PspUnreachable(PspError):
    """The PSP provably received nothing."""

    code = "psp_unreachable"


class PspBusy(PspUnreachable):
    """Nothing was sent, or the PSP took nothing, because it is asked too much or fails at the moment.

    `retry_after_seconds`: when it makes sense to try again, where that is known.
    """

    code = "psp_busy"

    def __init__(self, detail: str, *, retry_after_seconds: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after_seconds = retry_after_seconds


class PspOutcomeUnknown(PspError):
    """The PSP may have received the request; its answer was lost."""

    code = "psp_timeout"


class PspRejected(PspError):
    """The PSP understood the request and refused to carry it out."""

    code = "psp_rejected"


def leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    """The exceptions of a group, without the groups."""
    found: list[BaseException] = []
    for error in group.exceptions:
        found += leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found

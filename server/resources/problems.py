"""Problem documents (RFC 9457)."""

from typing import Annotated

import msgspec

from server.resources.batches import Batch, BatchItem
from server.resources.payments import Payment, Refund


class ItemProblem(msgspec.Struct, frozen=True, kw_only=True):
    """The problem with one item of a batch."""

    item: int
    path: str
    code: str
    detail: str


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a request failed (RFC 9457). `code` is stable; `path` names the field."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    request_id: Annotated[str, msgspec.Meta(description="name it when you ask for help")]
    path: str | msgspec.UnsetType = msgspec.UNSET
    decline_code: str | msgspec.UnsetType | None = msgspec.UNSET
    payment: Payment | msgspec.UnsetType = msgspec.UNSET
    refund: Refund | msgspec.UnsetType = msgspec.UNSET
    errors: list[ItemProblem] | msgspec.UnsetType = msgspec.UNSET
    more_errors: Annotated[int, msgspec.Meta(description="further errors, which are not listed")] | msgspec.UnsetType = (
        msgspec.UNSET
    )
    resume_token: str | msgspec.UnsetType | None = msgspec.UNSET
    batch: Batch | msgspec.UnsetType = msgspec.UNSET
    items: list[BatchItem] | msgspec.UnsetType = msgspec.UNSET

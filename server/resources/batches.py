"""Batches and their items as merchants see them."""

from typing import Literal

import msgspec

from server.resources.payments import PaymentStatus
from server.resources.times import Time

ItemStatus = Literal["SUCCEEDED", "DECLINED", "PENDING", "UNKNOWN", "FAILED", "NOT_STARTED"]


class BatchItem(msgspec.Struct, frozen=True, kw_only=True):
    """The result of an item of a batch. `success` is 1 if the status is SUCCEEDED, else 0; `item` is its number in the request,
    from 1.

    UNKNOWN: the PSP was or may have been asked; the outcome is settled later. FAILED: nothing was done, and `code` and `detail`
    say why.
    """

    object: Literal["batch_item"]
    item: int
    position: int | None
    type: Literal["charge", "verify", "capture", "refund"] | None
    status: ItemStatus
    success: Literal[0, 1]
    order_id: str | None
    payment_id: str | None
    payment_status: PaymentStatus | None
    refund_id: str | None
    did_check_again: bool
    code: str | None
    detail: str | None


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """A batch. `outcomes` counts its items by status, `unfinished` those that have no result while it runs. `resume_token`
    resumes the unfinished items, once.
    """

    id: str
    object: Literal["batch"]
    status: Literal["RUNNING", "COMPLETED", "TIMED_OUT", "STOPPED"]
    count: int
    unfinished: int
    outcomes: dict[str, int]
    concurrency: int
    deadline_seconds: int
    deadline_at: Time
    run: int
    resume_token: str | None
    created_at: Time
    started_at: Time
    finished_at: Time | None


class BatchReport(Batch, frozen=True, kw_only=True):
    """A batch that has ended, with all its items."""

    items: list[BatchItem]


class BatchItemPage(msgspec.Struct, frozen=True, kw_only=True):
    """Results in the order in which they became known. Continue with `after=position`."""

    data: list[BatchItem]
    position: int
    has_more: bool


class BatchState(msgspec.Struct, frozen=True, kw_only=True):
    """A batch in the events about it. `outcomes` counts its items by status."""

    id: str
    object: Literal["batch"]
    status: Literal["COMPLETED", "TIMED_OUT", "STOPPED"]
    count: int
    outcomes: dict[str, int]
    run: int
    finished_at: Time

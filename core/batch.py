"""Batches: many charges, verifications, captures and refunds in one request, carried out under one deadline.

A batch is RUNNING until every item has a result, the deadline passes or somebody stops it. Unfinished items can be resumed. Each
item runs under an idempotency key derived from the batch and the item's number, so another worker or a later run finds what has
been done and charges nothing twice. A merchant cannot send such a key, because it begins with a character that merchants' keys
must not contain.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import NewType
from uuid import UUID

from core.errors import InvalidId
from core.idempotency import KeyedOperation
from core.ids import PaymentId, RefundId, decode_id, encode_id
from core.payment import Payment, Status
from core.refund import Refund, RefundStatus

BatchId = NewType("BatchId", UUID)
BATCH = "bat"
RESUME = "res"
_RUN = re.compile(r"[1-9][0-9]{0,5}")
COUNT_MAX = 10_000
DEADLINE_SECONDS_DEFAULT, DEADLINE_SECONDS_MAX = 300, 900
CONCURRENCY_DEFAULT, CONCURRENCY_MAX = 1_000, 2_500
RESUMABLE_DAYS = 7
"""The time after acceptance in which a batch can be resumed; much shorter than the life of its items' idempotency keys."""

ATTEMPTS_MAX = 5
"""The most payments that an item may open one after another, where the PSP provably never received the earlier ones."""


class BatchStatus(StrEnum):
    """The state of a batch."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    TIMED_OUT = "TIMED_OUT"
    STOPPED = "STOPPED"


class ItemType(StrEnum):
    """The operation that an item asks for."""

    CHARGE = "charge"
    VERIFY = "verify"
    CAPTURE = "capture"
    REFUND = "refund"


TYPE_BY_OPERATION = {
    KeyedOperation.CREATE: ItemType.CHARGE,
    KeyedOperation.CAPTURE: ItemType.CAPTURE,
    KeyedOperation.REFUND: ItemType.REFUND,
}
"""The item type of each keyed operation."""


class ItemStatus(StrEnum):
    """The result of an item. UNKNOWN: the PSP was or may have been asked, and its answer has not come. FAILED: nothing
    was done.
    """

    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    UNKNOWN = "UNKNOWN"
    FAILED = "FAILED"
    NOT_STARTED = "NOT_STARTED"


UNFINISHED = frozenset({ItemStatus.UNKNOWN, ItemStatus.NOT_STARTED})
"""The results that a resumption starts or settles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """The result of one item. `number` counts from 1; `reference` is the merchant's order id if the item has one."""

    number: int
    type: ItemType
    status: ItemStatus
    reference: str | None = None
    payment_id: PaymentId | None = None
    payment_status: Status | None = None
    refund_id: RefundId | None = None
    did_check_again: bool = False
    code: str | None = None
    detail: str | None = None

    @property
    def success(self) -> int:
        """1 exactly if the item achieved what was asked for."""
        return int(self.status is ItemStatus.SUCCEEDED)


def item_key(batch_id: BatchId, number: int, *, attempt: int = 1) -> str:
    """The idempotency key of an item."""
    return f"§{encode_id(BATCH, batch_id)}:{number}" + (f":{attempt}" if attempt > 1 else "")


def resume_token(batch_id: BatchId, run: int) -> str:
    """The token that resumes a batch after this run, once."""
    return f"{encode_id(RESUME, batch_id)}_{run}"


def parse_resume_token(text: str) -> tuple[BatchId, int]:
    """Return the batch and the run of a token. Raises `InvalidId`."""
    head, _, run = text.rpartition("_")
    if _RUN.fullmatch(run) is None:
        raise InvalidId("this is not a resume token")
    return BatchId(decode_id(RESUME, head)), int(run)


def status_of_payment(payment: Payment) -> ItemStatus:
    """The item status that follows from the current state of its payment."""
    match payment.status:
        case Status.SUCCEEDED | Status.AUTHORIZED:
            return ItemStatus.SUCCEEDED
        case Status.DECLINED:
            return ItemStatus.DECLINED
        case Status.PENDING:
            # With an address it waits for its customer; a charge without one was sent or is being sent.
            return ItemStatus.UNKNOWN if is_under_way(payment) else ItemStatus.PENDING
        case Status.UNKNOWN:
            return ItemStatus.UNKNOWN
        case Status.CANCELED | Status.EXPIRED:
            return ItemStatus.FAILED


def is_under_way(payment: Payment) -> bool:
    """Return whether a charge is still undecided, so that asking the PSP again makes sense. One that waits for its customer is
    not.
    """
    is_open = payment.status is Status.PENDING and payment.is_sync
    return payment.status is Status.UNKNOWN or (is_open and (payment.payment_url is None or payment.decline_code is not None))


def status_of_refund(refund: Refund) -> ItemStatus:
    """The item status that follows from the current state of its refund."""
    match refund.status:
        case RefundStatus.SUCCEEDED:
            return ItemStatus.SUCCEEDED
        case RefundStatus.PENDING:
            return ItemStatus.PENDING
        case RefundStatus.UNKNOWN:
            return ItemStatus.UNKNOWN
        case RefundStatus.FAILED:
            return ItemStatus.FAILED


def was_never_received(payment: Payment) -> bool:
    """Return whether the PSP provably never received the payment, so that the item may open another one."""
    return payment.status is Status.CANCELED and payment.decline_code == "psp_unreachable"

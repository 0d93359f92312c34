"""Batches: many charges, verifications, captures and refunds in one request, carried out under one deadline.

A batch is RUNNING until every item has its result, its deadline has passed, or someone has stopped it; what is unfinished then
can be resumed. An item is carried out under an idempotency key that follows from the batch and its number, so that whoever
carries it out again, another worker or a later run, finds what was done and charges nothing twice. Merchants cannot send such a
key: it begins with a character that theirs must not hold.
"""

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
COUNT_MAX = 10_000
DEADLINE_SECONDS_DEFAULT, DEADLINE_SECONDS_MAX = 300, 900
CONCURRENCY_DEFAULT, CONCURRENCY_MAX = 1_000, 2_500
RESUMABLE_DAYS = 7
"""For how long after it was accepted a batch can be resumed: much shorter than its items' idempotency keys are kept."""

ATTEMPTS_MAX = 5
"""How many payments an item may open one after the other, each of which the PSP provably never received."""


class BatchStatus(StrEnum):
    """How a batch stands."""

    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    TIMED_OUT = "TIMED_OUT"
    STOPPED = "STOPPED"


class ItemType(StrEnum):
    """What is asked for."""

    CHARGE = "charge"
    VERIFY = "verify"
    CAPTURE = "capture"
    REFUND = "refund"


TYPE_BY_OPERATION = {
    KeyedOperation.CREATE: ItemType.CHARGE,
    KeyedOperation.CAPTURE: ItemType.CAPTURE,
    KeyedOperation.REFUND: ItemType.REFUND,
}
"""What an item is, by the operation of its key."""


class ItemStatus(StrEnum):
    """What came of an item. UNKNOWN: the PSP was asked, or may have been, and the answer is not in. FAILED: nothing was done."""

    SUCCEEDED = "SUCCEEDED"
    DECLINED = "DECLINED"
    PENDING = "PENDING"
    UNKNOWN = "UNKNOWN"
    FAILED = "FAILED"
    NOT_STARTED = "NOT_STARTED"


UNFINISHED = frozenset({ItemStatus.UNKNOWN, ItemStatus.NOT_STARTED})
"""What a resumption carries out, or finds out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ItemResult:
    """What came of one item. `number` counts from 1; `reference` is the merchant's order id where the item names one."""

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
        """1 exactly where the item came to what was asked for."""
        return int(self.status is ItemStatus.SUCCEEDED)


def item_key(batch_id: BatchId, number: int, *, attempt: int = 1) -> str:
    """The idempotency key of an item."""
    return f"§{encode_id(BATCH, batch_id)}:{number}" + (f":{attempt}" if attempt > 1 else "")


def resume_token(batch_id: BatchId, run: int) -> str:
    """What resumes a batch after this run of it, once."""
    return f"{encode_id(RESUME, batch_id)}_{run}"


def parse_resume_token(text: str) -> tuple[BatchId, int]:
    """The batch and the run that a token is about. Raises `InvalidId`."""
    head, _, run = text.rpartition("_")
    if not (run.isascii() and run.isdigit() and len(run) <= 6):
        raise InvalidId("this is not a resume token")
    return BatchId(decode_id(RESUME, head)), int(run)


def status_of_payment(payment: Payment) -> ItemStatus:
    """What a payment as it stands means for the item that asked for it."""
    match payment.status:
        case Status.SUCCEEDED | Status.AUTHORIZED:
            return ItemStatus.SUCCEEDED
        case Status.DECLINED:
            return ItemStatus.DECLINED
        case Status.PENDING:
            # With an address it waits for its customer; a charge without one was sent, or is just being sent.
            return ItemStatus.UNKNOWN if is_under_way(payment) else ItemStatus.PENDING
        case Status.UNKNOWN:
            return ItemStatus.UNKNOWN
        case Status.CANCELED | Status.EXPIRED:
            return ItemStatus.FAILED


def is_under_way(payment: Payment) -> bool:
    """Whether a charge has not come to anything yet, so that asking again makes sense."""
    return payment.status is Status.UNKNOWN or (
        payment.status is Status.PENDING and payment.is_sync and payment.payment_url is None
    )


def status_of_refund(refund: Refund) -> ItemStatus:
    """What a refund as it stands means for its item."""
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
    """Whether the PSP provably never received the payment, so that the item may open another one."""
    return payment.status is Status.CANCELED and payment.decline_code == "psp_unreachable"

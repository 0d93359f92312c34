"""What Florin asks of a PSP, whoever it is.

Every answer is `Evidence` about one operation, so that all of them meet in the one transition function. The operation's id is the
PSP's idempotency key and goes, with the payment's and the merchant's, into the metadata of the PSP's object, so that an operation
whose answer was lost can be found again, and a webhook its payment. Calls that fail raise what is known: `PspUnreachable`
(provably nothing was done; `PspBusy` for want of room), `PspRejected` (the PSP refused), `PspOutcomeUnknown` (the answer was
lost). Repeating a call changes nothing within `Capabilities.key_lifetime`. Callers own the deadlines, but for `charge` where it
is one step: that ends by its transport's; a call that is cancelled may have taken place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import msgspec

from core.evidence import Evidence, EvidenceKind, Source
from core.ids import MerchantId, PaymentId, PspAccountId
from core.money import Money
from core.payment import Payment, PendingOperation
from core.refund import Refund
from server.psp.guard import Guard


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a PSP can do, and how long it remembers an idempotency key."""

    key_lifetime: timedelta
    hosted_page: bool = True
    tokens: bool = True
    manual_capture: bool = True
    page_needs_return_url: bool = False
    page_seconds_max: int | None = None


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """An event of a PSP, verified and read. `evidence` is what it says, in order; empty for a type that is of no concern.

    `merchant_id` and `payment_id` are None where the event does not name them; then `reference` is the PSP's object to ask about.
    `problem`: why an event of a list could not be read.
    """

    event_id: str
    event_type: str
    merchant_id: MerchantId | None
    payment_id: PaymentId | None
    evidence: tuple[Evidence, ...] = ()
    reference: str | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A payment's object in the PSP's list: whose it is by its metadata, and how it stands."""

    merchant_id: MerchantId
    payment_id: PaymentId
    evidence: Evidence
    created_at: datetime


class TwoSteps(Protocol):
    """Charging a token in two steps, so that the reference of what is charged is committed before it is."""

    async def prepare(self, payment: Payment, token: str) -> Evidence:
        """Make the object that `charge` will charge: OPENED with its reference."""
        ...


class Adapter(Protocol):
    """One account at one PSP."""

    @property
    def psp(self) -> str:
        """The PSP's name."""
        ...

    @property
    def account_id(self) -> PspAccountId:
        """Our account there."""
        ...

    @property
    def mode(self) -> str:
        """Test or live."""
        ...

    @property
    def is_enabled(self) -> bool:
        """Whether new payments may go there."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What the PSP can do."""
        ...

    @property
    def guard(self) -> Guard:
        """What stands before every call."""
        ...

    @property
    def two_steps(self) -> "TwoSteps | None":
        """How a token is prepared, for a PSP that charges it in two steps; None where `charge` is the only one."""
        ...

    def takes(self, money: Money) -> bool:
        """Whether the PSP can be asked for this amount of this currency."""
        ...

    async def create_intent(self, payment: Payment) -> Evidence:
        """Open a hosted page for the payment: OPENED with its address, or how it stands already."""
        ...

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """Authorize the PSP's token, and capture where the payment says so.

        The answer is AUTHORIZED, CAPTURED or DECLINED, or OPENED with an address where the customer has to confirm it.
        """
        ...

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Take the operation's amount of what is authorized; the PSP releases the rest."""
        ...

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Release what is authorized; the answer is CANCELED, or what had ended it before."""
        ...

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """Give money back; the refund's id is the PSP's key. The answer is REFUND_SUCCEEDED, REFUND_PENDING or REFUND_FAILED."""
        ...

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """How a refund stands at the PSP, REFUND_NOT_FOUND included. Raises `PspError`: nothing was learned."""
        ...

    async def fetch(self, payment: Payment, *, source: Source) -> Evidence:
        """How the payment's operation stands at the PSP, by its reference or by our metadata, NOT_FOUND included.

        Raises `PspError`: nothing was learned.
        """
        ...

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """Close what can be paid, so that it no longer can, and say how the operation stands then.

        `as_kind` is EXPIRED or CANCELED; if the customer was faster, the answer is CAPTURED or AUTHORIZED. Raises `PspError`.
        """
        ...

    async def list_window(self, *, since: datetime, until: datetime) -> Sequence[Seen]:
        """The payments that the PSP made in a window of time, as far as our metadata names them; at Stripe, those that somebody
        has begun to pay. Raises `PspError`."""
        ...

    async def list_events(self, *, since: datetime, until: datetime, only_rare: bool) -> Sequence[Notice]:
        """The PSP's events of a window of time, oldest first: what its webhooks said, or would have.

        `only_rare`: refunds and disputes, which nothing else would find out. Raises `PspError`.
        """
        ...

    async def resolve(self, notice: Notice) -> Notice:
        """Find out which payment an event is about that does not name it. Raises `PspError`."""
        ...

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """Verify and read a webhook. Raises `InvalidSignature`, or `Malformed` for a signed body that cannot be read."""
        ...

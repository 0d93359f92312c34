"""The contract of a PSP's adapter.

Every answer is `Evidence` about one operation, so all of them reach the one transition function. The operation's id is the PSP's
idempotency key. It also goes, with the ids of payment and merchant, into the metadata of the PSP's object, so that an operation
whose answer was lost can be found again, and a webhook finds its payment. A failed call raises what is known: `PspUnreachable`
(provably nothing was done; `PspBusy` for lack of room), `PspRejected` (the PSP refused), `PspOutcomeUnknown` (the answer was
lost). Repeating a call changes nothing within `Capabilities.key_lifetime`. Callers own the deadlines, except for a one-step
`charge`, which is bounded by its transport; a canceled call may have taken place.
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
    """The capabilities of a PSP.

    It remembers an idempotency key for `key_lifetime`. A request that it has not shown in a fetch `arrival_seconds` after it can
    have been sent for the last time will never arrive: absence then proves that nothing was charged.
    """

    key_lifetime: timedelta
    arrival_seconds: float = 300.0
    hosted_page: bool = True
    tokens: bool = True
    manual_capture: bool = True
    page_needs_return_url: bool = False
    page_seconds_max: int | None = None


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """A PSP event, verified and decoded. `evidence` is in order, and empty for irrelevant types.

    `merchant_id` and `payment_id` are None if the event does not name them; then `reference` is the PSP's object to ask about.
    `problem` says why an event of a list could not be read.
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
    """A payment's object in the PSP's list: its ids by our metadata, and its state."""

    merchant_id: MerchantId
    payment_id: PaymentId
    evidence: Evidence
    created_at: datetime


class TwoSteps(Protocol):
    """Charging a token in two steps, so that the reference of the object is committed before it is charged."""

    async def prepare(self, payment: Payment, token: str) -> Evidence:
        """Create the object that `charge` will charge: OPENED with its reference."""
        ...


class Adapter(Protocol):
    """One account at one PSP."""

    @property
    def psp(self) -> str:
        """The PSP's name."""
        ...

    @property
    def account_id(self) -> PspAccountId:
        """Our id of the account."""
        ...

    @property
    def mode(self) -> str:
        """Test or live."""
        ...

    @property
    def is_enabled(self) -> bool:
        """True if it takes new payments."""
        ...

    @property
    def token_scope(self) -> PspAccountId:
        """The account whose tokens it knows; accounts with the same scope know each other's."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """The capabilities of the PSP."""
        ...

    @property
    def guard(self) -> Guard:
        """The guard that every call passes."""
        ...

    @property
    def two_steps(self) -> "TwoSteps | None":
        """The preparation of a token at a PSP that charges in two steps; None if `charge` is the only one."""
        ...

    def takes(self, money: Money) -> bool:
        """Return whether the PSP can be asked for this amount in this currency."""
        ...

    async def create_intent(self, payment: Payment) -> Evidence:
        """Open a hosted page for the payment: OPENED with its address, or the current state of an existing one."""
        ...

    async def charge(self, payment: Payment, token: str) -> Evidence:
        """Authorize the PSP's token, and capture if the payment says so.

        The answer is AUTHORIZED, CAPTURED or DECLINED, or OPENED with a page on which the customer has to confirm.
        """
        ...

    async def capture(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Capture the operation's amount of an authorization; the PSP releases the rest."""
        ...

    async def void(self, payment: Payment, operation: PendingOperation) -> Evidence:
        """Release an authorization. The answer is CANCELED, or what had ended it before."""
        ...

    async def refund(self, payment: Payment, refund: Refund) -> Evidence:
        """Refund; the refund's id is the PSP's key. The answer is REFUND_SUCCEEDED, REFUND_PENDING or REFUND_FAILED."""
        ...

    async def fetch_refund(self, payment: Payment, refund: Refund, *, source: Source) -> Evidence:
        """Fetch a refund, REFUND_NOT_FOUND included. Raises `PspError` if nothing was learned."""
        ...

    async def fetch(self, payment: Payment, *, source: Source) -> Evidence:
        """Fetch the payment's operation, by its reference or by our metadata, NOT_FOUND included.

        Raises `PspError` if nothing was learned.
        """
        ...

    async def close(self, payment: Payment, *, as_kind: EvidenceKind, source: Source) -> Evidence:
        """Close an open object so that it can no longer be paid, and return its state.

        `as_kind` is EXPIRED or CANCELED; if the customer paid first, the answer is CAPTURED or AUTHORIZED. Raises `PspError`.
        """
        ...

    async def list_window(self, *, since: datetime, until: datetime) -> Sequence[Seen]:
        """The payments that the PSP created in a time window, if our metadata names them; at Stripe, those that somebody has
        started to pay. Raises `PspError`.
        """
        ...

    async def list_events(self, *, since: datetime, until: datetime, only_rare: bool) -> Sequence[Notice]:
        """The PSP's events of a time window, oldest first, whether or not webhooks have delivered them.

        `only_rare` selects refunds and disputes, which nothing else would find. Raises `PspError`.
        """
        ...

    async def resolve(self, notice: Notice) -> Notice:
        """Find the payment of an event that does not name it. Raises `PspError`."""
        ...

    def read_webhook(self, headers: Mapping[bytes, bytes], body: bytes, *, now: float) -> Notice:
        """Verify and decode a webhook. Raises `InvalidSignature`, or `Malformed` for a signed body that cannot be read."""
        ...

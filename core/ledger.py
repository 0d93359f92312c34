"""The double-entry ledger: accounts, and the balanced postings that a change of a payment makes.

Sign: an amount is what the account's owner is owed. A charge credits (+) the merchant and debits (-) the receivable from the
PSP that holds the money. Invariants: a transfer sums to zero per currency; a change of one kind makes the same transfer id, kind
and accounts whenever it is computed, so that the ledger's primary key refuses a second posting of it.
"""

from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from uuid import UUID, uuid5

from core.errors import UnbalancedTransfer
from core.ids import PspAccountId
from core.money import Money
from core.payment import Change, Status


class WalletKind(StrEnum):
    """The merchant's own accounts; each has a wallet that holds the sum of its entries."""

    AVAILABLE = "merchant_available"
    PENDING = "merchant_pending"


class TransferKind(StrEnum):
    """Why money moved."""

    CHARGE = "charge"
    SUSPENSE = "suspense"


SUSPENSE = "suspense"


def psp_receivable(account: PspAccountId) -> str:
    """The account that says what a PSP owes us."""
    return f"psp_receivable:{account.hex}"


@dataclass(frozen=True, slots=True)
class Posting:
    """One entry of a transfer."""

    account: str
    money: Money


@dataclass(frozen=True, slots=True)
class Transfer:
    """Postings that happen together or not at all. `id` is the payment (or refund) that they belong to.

    Raises `UnbalancedTransfer` unless it sums to zero in every currency.
    """

    id: UUID
    kind: TransferKind
    postings: tuple[Posting, ...]

    def __post_init__(self) -> None:
        totals: dict[str, int] = defaultdict(int)
        for posting in self.postings:
            totals[posting.money.currency] += posting.money.amount_minor
        if not self.postings or any(totals.values()):
            raise UnbalancedTransfer(f"a transfer sums to zero, this one to {dict(totals)}")


def transfer_of(change: Change) -> Transfer | None:
    """The transfer that belongs to a change, or None where no money moved."""
    if change.to_suspense is not None:
        # Named by what the PSP calls the money, so that a second mismatch is posted too and a repeated one is not.
        name = f"{change.evidence.psp_account_id.hex}:{change.evidence.reference}"
        return _transfer(change, TransferKind.SUSPENSE, uuid5(change.after.id, name), to=SUSPENSE, money=change.to_suspense)
    if change.after.status is Status.SUCCEEDED and change.before.status is not Status.SUCCEEDED:
        money = Money(change.after.captured_minor, change.after.money.currency)
        return _transfer(change, TransferKind.CHARGE, change.after.id, to=WalletKind.AVAILABLE, money=money)
    return None


def _transfer(change: Change, kind: TransferKind, transfer_id: UUID, *, to: str, money: Money) -> Transfer:
    debit = Money(-money.amount_minor, money.currency)
    postings = (Posting(to, money), Posting(psp_receivable(change.evidence.psp_account_id), debit))
    return Transfer(transfer_id, kind, postings)

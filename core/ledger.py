"""The double-entry ledger: accounts, and the balanced postings of a change.

Sign: a positive amount is owed to the account's owner. A charge credits (+) the merchant and debits (-) the receivable from the
PSP that holds the money. Invariants: a transfer sums to zero per currency (promise:money-conserved); a change of one kind has the
same transfer id, kind and accounts whenever it is computed, so the ledger's primary key rejects a second posting.
"""

from collections import defaultdict
from enum import StrEnum
from uuid import UUID, uuid5

import msgspec

from core.errors import UnbalancedTransfer
from core.evidence import DISPUTES, Evidence, EvidenceKind
from core.ids import PaymentId, PspAccountId
from core.money import Money
from core.payment import Change, Payment, Status
from core.refund import Refund, RefundStatus


class WalletKind(StrEnum):
    """The merchant's accounts. Each has a wallet that holds the sum of its entries."""

    AVAILABLE = "merchant_available"
    PENDING = "merchant_pending"


class TransferKind(StrEnum):
    """The reason for a movement of money."""

    CHARGE = "charge"
    RELEASE = "release"
    REFUND = "refund"
    REFUND_REVERSAL = "refund_reversal"
    DISPUTE = "dispute"
    DISPUTE_WON = "dispute_won"
    DISPUTE_LOST = "dispute_lost"
    PAYOUT = "payout"
    PAYOUT_SUCCESS = "payout_success"
    PAYOUT_REVERSAL = "payout_reversal"
    SUSPENSE = "suspense"
    SUSPENSE_RETURN = "suspense_return"
    SUSPENSE_CREDIT = "suspense_credit"
    SUSPENSE_AGAIN = "suspense_again"
    OPERATOR_CHARGE = "operator_charge"
    OPERATOR_CHARGE_REVERSAL = "operator_charge_reversal"
    OPERATOR_RELEASE = "operator_release"
    OPERATOR_REFUND_REVERSAL = "operator_refund_reversal"
    REFUND_AGAIN = "refund_again"
    ADJUSTMENT = "adjustment"


PLATFORM_FEES = "platform_fees"
PAYOUTS_IN_TRANSIT = "payouts_in_transit"
BANK = "bank"
DISPUTED = "disputes"
SUSPENSE = "suspense"
GOODWILL = "goodwill"
CORRECTIONS = "corrections"
RESERVE = "merchant_reserve"


def psp_receivable(account: PspAccountId) -> str:
    """The account of the money that a PSP owes us."""
    return f"psp_receivable:{account.hex}"


class Posting(msgspec.Struct, frozen=True):
    """One entry of a transfer."""

    account: str
    money: Money


class Transfer(msgspec.Struct, frozen=True):
    """Postings that happen together or not at all. `id` is that of the payment, refund or payout.

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
            raise UnbalancedTransfer(f"a transfer must sum to zero, this one sums to {dict(totals)}")


def transfer(transfer_id: UUID, kind: TransferKind, currency: str, **amounts_minor: int) -> Transfer:
    """A transfer in one currency, without the accounts whose amount is zero."""
    postings = tuple(Posting(account, Money(amount, currency)) for account, amount in amounts_minor.items() if amount)
    return Transfer(transfer_id, kind, postings)


def transfer_of(change: Change, *, pending_minor: int = 0) -> Transfer | None:
    """The transfer of a change, or None if no money moves.

    `pending_minor`, read under the wallet's lock, is what a release can take: refunds may have used some of it.
    """
    if change.to_suspense is not None:
        # Identified by the PSP's reference, so that a second mismatch is posted too and a repeated one is not.
        name = f"{change.evidence.psp_account_id.hex}:{change.evidence.reference}"
        return _from_psp(change, TransferKind.SUSPENSE, uuid5(change.after.id, name), to=SUSPENSE, money=change.to_suspense)
    if change.is_mismatch:
        return None
    if change.refund is not None:
        return _refund_transfer(change, change.refund)
    match change.evidence.kind:
        case EvidenceKind.CAPTURED if change.before.status is not Status.SUCCEEDED:
            return _charge(change)
        case EvidenceKind.RELEASED:
            return _release(change, pending_minor=pending_minor)
        case kind if kind in DISPUTES:
            return dispute_transfer(change.after, change.evidence)
        case _ if change.before.captured_minor and not change.after.captured_minor:
            return _charge_reversal(change.before)
        case _ if change.before.from_suspense and not change.after.from_suspense:
            return _back_in_suspense(change.before)
        case _:
            return None


def _from_psp(change: Change, kind: TransferKind, transfer_id: UUID, *, to: str, money: Money) -> Transfer:
    receivable = psp_receivable(change.evidence.psp_account_id)
    return transfer(transfer_id, kind, money.currency, **{to: money.amount_minor, receivable: -money.amount_minor})


def _charge(change: Change) -> Transfer:
    payment = change.after
    captured, fee = payment.captured_minor, payment.terms.fee_minor(payment.captured_minor)
    to = WalletKind.PENDING if payment.terms.settlement_delay_seconds else WalletKind.AVAILABLE
    receivable = psp_receivable(change.evidence.psp_account_id)
    transfer_id, kind = payment.id, TransferKind.CHARGE
    if payment.is_operators_word:  # it may be reversed and said again, and the PSP's own charge may follow
        transfer_id, kind = PaymentId(uuid5(payment.id, f"charge:{payment.version}")), TransferKind.OPERATOR_CHARGE
    if not fee:  # the usual case, on the payment path
        money, debit = Money(captured, payment.money.currency), Money(-captured, payment.money.currency)
        return Transfer(transfer_id, kind, (Posting(to, money), Posting(receivable, debit)))
    amounts = {to.value: captured - fee, PLATFORM_FEES: fee, receivable: -captured}
    return transfer(transfer_id, kind, payment.money.currency, **amounts)


def _charge_reversal(payment: Payment) -> Transfer:
    """The reversal of a charge that rested on operators' word."""
    assert payment.is_operators_word
    captured, fee = payment.captured_minor, payment.terms.fee_minor(payment.captured_minor)
    held_in = WalletKind.PENDING if payment.release_at is not None else WalletKind.AVAILABLE
    back_to = SUSPENSE if payment.from_suspense else psp_receivable(payment.psp_account_id)
    amounts = {held_in.value: fee - captured, PLATFORM_FEES: -fee, back_to: captured}
    transfer_id = uuid5(payment.id, f"reversal:{payment.version}")
    return transfer(transfer_id, TransferKind.OPERATOR_CHARGE_REVERSAL, payment.money.currency, **amounts)


def _back_in_suspense(payment: Payment) -> Transfer:
    """The transfer once the PSP has charged a payment to which operators had assigned money from suspense: that is another's."""
    captured, receivable = payment.captured_minor, psp_receivable(payment.psp_account_id)
    transfer_id = uuid5(payment.id, f"suspense:{payment.version}")
    amounts = {SUSPENSE: captured, receivable: -captured}
    return transfer(transfer_id, TransferKind.SUSPENSE_AGAIN, payment.money.currency, **amounts)


def _release(change: Change, *, pending_minor: int) -> Transfer | None:
    payment = change.before
    amount = min(payment.unreleased_minor, max(pending_minor, 0))
    if not amount:
        return None
    amounts = {WalletKind.AVAILABLE.value: amount, WalletKind.PENDING.value: -amount}
    if payment.is_operators_word:
        transfer_id = uuid5(payment.id, f"release:{payment.version}")
        return transfer(transfer_id, TransferKind.OPERATOR_RELEASE, payment.money.currency, **amounts)
    return transfer(payment.id, TransferKind.RELEASE, payment.money.currency, **amounts)


def _refund_transfer(change: Change, refund: Refund) -> Transfer | None:
    if change.refund_before is None:
        kind, sign = TransferKind.REFUND, -1
    elif refund.status is RefundStatus.FAILED and change.refund_before.status is not RefundStatus.FAILED:
        is_word = refund.is_operators_word
        kind, sign = TransferKind.OPERATOR_REFUND_REVERSAL if is_word else TransferKind.REFUND_REVERSAL, 1
    elif change.refund_before.status is RefundStatus.FAILED and refund.status is not RefundStatus.FAILED:
        kind, sign = TransferKind.REFUND_AGAIN, -1
    else:
        return None
    amount = refund.money.amount_minor
    from_pending = refund.from_pending_minor
    if sign > 0:
        # Only the payment's own money becomes pending again, because nothing would ever release the rest.
        from_pending = change.before.pending_taken_minor - change.after.pending_taken_minor
    amounts = {
        WalletKind.AVAILABLE.value: sign * (amount - refund.fee_minor - from_pending),
        WalletKind.PENDING.value: sign * from_pending,
        PLATFORM_FEES: sign * refund.fee_minor,
        psp_receivable(refund.psp_account_id): -sign * amount,
    }
    return transfer(refund.id, kind, refund.money.currency, **amounts)


def dispute_transfer(payment: Payment, evidence: Evidence) -> Transfer:
    """The transfer of a dispute's step. It is the same whenever it is computed, so a repeated step is recognized."""
    assert evidence.money is not None
    amount = evidence.money.amount_minor
    transfer_id = uuid5(payment.id, f"dispute:{evidence.reference}")
    match evidence.kind:
        case EvidenceKind.DISPUTED:
            kind, amounts = TransferKind.DISPUTE, {WalletKind.AVAILABLE.value: -amount, DISPUTED: amount}
        case EvidenceKind.DISPUTE_WON:
            kind, amounts = TransferKind.DISPUTE_WON, {DISPUTED: -amount, WalletKind.AVAILABLE.value: amount}
        case _:
            receivable = psp_receivable(evidence.psp_account_id)
            kind, amounts = TransferKind.DISPUTE_LOST, {DISPUTED: -amount, receivable: amount}
    return transfer(transfer_id, kind, evidence.money.currency, **amounts)

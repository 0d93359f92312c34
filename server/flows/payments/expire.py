"""Expire a payment that nobody paid in time. The PSP's page is closed first, and what the PSP answers decides.

EXPIRED is written only when the PSP has confirmed that its page can no longer be paid; if the customer paid first, the answer
says captured and the payment succeeds. If the PSP does not know the operation there is nothing to pay: that is EXPIRED too, once
no request for it can be under way (`server.flows.payments.submit` sends none when the time is nearly over) and unless another
change of the payment came first. A payment by token that the PSP does not know waits until its charge can no longer arrive, and
ends as CANCELED, with `psp_unreachable`.
"""

from datetime import timedelta

import trio
from msgspec.structs import replace

from core.errors import PspOutcomeUnknown
from core.evidence import EvidenceKind, Source
from core.payment import Payment
from core.schedule import COMPLETE_AFTER_SECONDS
from server.flows.contexts import Psps
from server.flows.payments.settle import settle
from server.flows.payments.verify import look_once_it_proves, proven


async def expire(context: Psps, payment: Payment) -> Payment:
    """Close the payment at the PSP and apply the result.

    Raises `PspError` if nothing was learned, `DatabaseUnavailable`, `Overloaded`.
    """
    end = EvidenceKind.CANCELED if payment.is_sync else EvidenceKind.EXPIRED
    try:
        with trio.fail_after(context.psp_seconds):
            adapter = await context.psps.of(payment.psp_account_id)
            evidence = await adapter.close(payment, as_kind=end, source=Source.EXPIRY)
    except trio.TooSlowError as error:
        raise PspOutcomeUnknown("the PSP did not answer in time") from error
    is_absent = evidence.kind is EvidenceKind.NOT_FOUND
    if is_absent and payment.is_sync:
        evidence = await proven(context, payment, evidence)
        if evidence.kind is EvidenceKind.NOT_FOUND and payment.reference is None:
            await look_once_it_proves(context, payment)
            return payment
    elif is_absent and payment.reference is None and _is_long_ago(context, payment):
        evidence = replace(evidence, kind=EvidenceKind.EXPIRED)
    settled = await settle(context, payment.merchant_id, payment.id, evidence, known=payment, only_if_unchanged=is_absent)
    assert settled is not None
    return settled.payment


def _is_long_ago(context: Psps, payment: Payment) -> bool:
    """Return whether the first request has ended: it is older than any call to a PSP may be."""
    return context.now() - payment.created_at > timedelta(seconds=COMPLETE_AFTER_SECONDS)

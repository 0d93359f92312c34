"""Ask the PSP how a payment stands, and apply what it says."""

import trio

from core.errors import DatabaseUnavailable, Overloaded, PspError, PspOutcomeUnknown
from core.evidence import Evidence, EvidenceKind, Source
from core.payment import Payment
from server.flows.services import Services
from server.flows.settle import settle


async def look(services: Services, payment: Payment, *, source: Source) -> Evidence:
    """How the payment stands at the PSP. Raises `PspError` where nothing was learned within the PSP deadline."""
    try:
        with trio.fail_after(services.psp_seconds):
            adapter = await services.psps.of(payment.psp_account_id)
            return await adapter.fetch(payment, source=source)
    except trio.TooSlowError as error:
        raise PspOutcomeUnknown("the PSP did not answer in time") from error


async def verify(services: Services, payment: Payment, *, source: Source) -> Payment:
    """The payment after a fetch of its operation. Never charges.

    A decline or an absence is evidence only about the payment as it was when we asked: with another change in between it is
    dropped, so that the second look at a decline is always younger than the first.

    Raises `PspError` where nothing was learned within the PSP deadline, `DatabaseUnavailable`, `Overloaded`.
    """
    evidence = await look(services, payment, source=source)
    about_then = evidence.kind in (EvidenceKind.DECLINED, EvidenceKind.NOT_FOUND)
    settled = await settle(services, payment.merchant_id, payment.id, evidence, known=payment, only_if_unchanged=about_then)
    assert settled is not None
    return settled.payment


async def verify_if_possible(services: Services, payment: Payment, *, source: Source, seconds: float) -> Payment:
    """Like `verify`, but whatever goes wrong within `seconds` leaves the payment as it was known."""
    with trio.move_on_after(seconds):
        try:
            return await verify(services, payment, source=source)
        except (PspError, DatabaseUnavailable, Overloaded):
            pass
    return payment

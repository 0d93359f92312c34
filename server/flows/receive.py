"""Receive a webhook of a PSP: verified, applied once, remembered."""

from enum import Enum, auto

from core.ids import PspAccountId
from core.payment import Evidence, EvidenceKind, Finding, Source, is_provisionally_declined
from server.db import psp_events
from server.db.change_batch import PspEvent
from server.db.findings import add_finding
from server.flows.services import Services
from server.flows.settle import settle
from server.flows.verify import verify_if_possible
from server.new_ids import uuid7
from server.psp.adapter import Notice


class Received(Enum):
    """What became of the webhook."""

    APPLIED = auto()
    NOTHING_NEW = auto()
    IGNORED = auto()
    UNMATCHED = auto()


async def receive(services: Services, account_id: PspAccountId, notice: Notice) -> Received:
    """Apply a verified notice. Returns after the commit; repeating it changes nothing.

    Raises `DatabaseUnavailable` or `Overloaded`: the PSP has to send it again.
    """
    if notice.evidence is None:
        await _remember(services, account_id, notice, psp_events.Outcome.IGNORED)
        return Received.IGNORED
    # Other evidence is idempotent by itself; a refused attempt is logged each time, so its event must be new.
    if notice.evidence.kind is EvidenceKind.ATTEMPT_FAILED and await _was_seen(services, account_id, notice):
        return Received.NOTHING_NEW
    settled = await settle(
        services,
        notice.merchant_id,
        notice.payment_id,
        notice.evidence,
        psp_event=PspEvent(notice.event_id, notice.event_type),
    )
    if settled is None:
        await _report_unmatched(services, notice, notice.evidence)
        await _remember(services, account_id, notice, psp_events.Outcome.UNMATCHED)
        return Received.UNMATCHED
    if not settled.changed:
        await _remember(services, account_id, notice, psp_events.Outcome.NOTHING_NEW)
        return Received.NOTHING_NEW
    if is_provisionally_declined(settled.payment):
        await verify_if_possible(services, settled.payment, source=Source.RECHECK, seconds=services.psp_seconds)
    return Received.APPLIED


async def _was_seen(services: Services, account_id: PspAccountId, notice: Notice) -> bool:
    async with services.db.pool.connection() as connection:
        return await psp_events.was_seen(connection, notice.merchant_id, notice.payment_id, account_id, event_id=notice.event_id)


async def _report_unmatched(services: Services, notice: Notice, evidence: Evidence) -> None:
    """Money for a payment that we do not have is for a person to look at: the PSP will not tell again."""
    if evidence.money is None or await _was_seen(services, evidence.psp_account_id, notice):
        return
    detail = f"{evidence.kind} {evidence.money} as {evidence.reference}, of a payment that is not here"
    async with services.db.pool.connection() as connection:
        await add_finding(
            connection,
            notice.merchant_id,
            notice.payment_id,
            uuid7(),
            kind=Finding.UNMATCHED_EVENT,
            detail=detail,
            now=services.now(),
        )


async def _remember(services: Services, account_id: PspAccountId, notice: Notice, outcome: psp_events.Outcome) -> None:
    async with services.db.pool.connection() as connection:
        await psp_events.record(
            connection,
            notice.merchant_id,
            notice.payment_id,
            account_id,
            event_id=notice.event_id,
            event_type=notice.event_type,
            outcome=outcome,
            now=services.now(),
        )

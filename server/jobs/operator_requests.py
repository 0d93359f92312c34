"""Carries out operators' requests that are approved, and ends those that nobody has approved in time.

Every worker looks; two that carry out the same one change nothing twice (`server.flows.operators.carry_out`).
"""

from contextlib import suppress

import structlog
import trio

from core.errors import FlorinError
from core.ids import OPERATOR_REQUEST, encode_id
from server.db.operators.requests import approved_requests, put_back
from server.flows.contexts import Psps
from server.flows.operators.carry_out import carry_out
from server.flows.operators.requests import expire
from server.jobs.due_work import DueWork

AT_ONCE_MAX = 20
AGAIN_SECONDS = 5.0
_log = structlog.get_logger()


async def run(
    context: Psps,
    work: DueWork,
    *,
    sweep_seconds: float,
    refund_approval_minor: int,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Look until canceled."""
    task_status.started()
    while True:
        failed = False
        if work.now.operator_requests:
            failed = not await sweep(context, refund_approval_minor=refund_approval_minor)
        await trio.sleep(AGAIN_SECONDS if failed else sweep_seconds)


async def sweep(context: Psps, *, refund_approval_minor: int) -> bool:
    """Carry out what is approved. Returns whether nothing is to be tried again."""
    is_well = True
    try:
        async with context.pool.connection() as connection:
            await expire(connection)
            found = await approved_requests(connection, limit=AT_ONCE_MAX)
    except FlorinError as error:
        _log.warning("cannot look for operators' requests", error=str(error))
        return False
    for one in found:
        try:
            await carry_out(context, one, refund_approval_minor=refund_approval_minor)
            is_left = one.document is None
        except FlorinError as error:
            _log.warning("a request cannot be carried out yet", request=encode_id(OPERATOR_REQUEST, one.id), error=str(error))
            is_left = True
        except Exception:  # noqa: BLE001 - one request must not end the worker
            _log.exception("a request cannot be carried out", request=encode_id(OPERATOR_REQUEST, one.id))
            is_left = True
        if is_left:
            is_well = False
            with suppress(FlorinError):
                async with context.pool.connection() as connection:
                    await put_back(connection, one)
    return is_well

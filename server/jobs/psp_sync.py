"""Keeps a worker's view of the PSP accounts in step with the other workers: settings, breakers, and shares of the limits.

Once a second this worker publishes what its breakers did and adopts what the others' did, if any did anything; it loads the
accounts again when settings have changed. While the database is unavailable each worker goes by what it knows, and makes no calls
to accounts with a rate limit.
"""

import structlog
import trio

from core.breaker import BreakerState
from core.errors import FlorinError
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id
from server.concurrency.wakeup import Wakeup
from server.concurrency.worker_count import WorkerCount
from server.db.alerts import Alert, note_alert
from server.db.connection import Connection
from server.db.psps.recovery import hasten
from server.db.psps.shared_state import close_breaker, give_probe_back, list_open_breakers, open_breaker
from server.flows.contexts import Psps
from server.jobs.due_work import DueWork
from server.psp.guard import Guard

SYNC_SECONDS = 1.0
RELOAD_SECONDS = 10.0
"""The interval at which accounts are loaded again although nothing has changed: a secret may have expired."""

HASTEN_SECONDS = 10.0
"""The shortest time between two such questions of a worker, in case a PSP fails and recovers all the time."""

_log = structlog.get_logger()


async def run(
    context: Psps, workers: WorkerCount, work: DueWork, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Keep in step until canceled. Started after the first round."""
    changed, loaded_at, generation = Wakeup(), float("-inf"), -1
    work.on_settings = changed.wake
    is_first = True
    while True:
        try:
            began_at = trio.current_time()
            if generation != work.validity.generation or began_at >= min(work.validity.until, loaded_at + RELOAD_SECONDS):
                now_at = work.validity.generation
                await context.psps.reload()
                loaded_at, generation = began_at, now_at
            await _sync(context, workers, any_open=is_first or work.now.breakers)
        except FlorinError as error:
            _log.warning("cannot share the state of the PSPs with other workers", error=str(error))
        if is_first:
            is_first = False
            task_status.started()
        await changed.wait(seconds=SYNC_SECONDS)


async def _sync(context: Psps, workers: WorkerCount, *, any_open: bool) -> None:
    """Tell and adopt. `any_open`: some worker's breaker is open in the table, or may be."""
    guards = {adapter.account_id: adapter.guard for adapter in context.psps.adapters}
    opened: dict[PspAccountId, float] = {}
    if any_open or any(map(_has_something_to_tell, guards.values())):
        async with context.pool.connection() as connection:
            for account_id, guard in guards.items():
                await _tell(context, connection, account_id, guard)
                await _ask_about_unknown(connection, account_id, guard)
            opened = {one.account_id: one.seconds_left for one in await list_open_breakers(connection)}
    for account_id, guard in guards.items():
        guard.share_with(workers.count)
        _take_over(guard, opened.get(account_id))


def _has_something_to_tell(guard: Guard) -> bool:
    return guard.news is not None or guard.has_recovered or guard.state is not BreakerState.CLOSED


async def _tell(context: Psps, connection: Connection, account_id: PspAccountId, guard: Guard) -> None:
    news, guard.news = guard.news, None
    try:
        if news is BreakerState.OPEN:
            _log.warning("a PSP is failing: its breaker is open", account=encode_id(PSP_ACCOUNT, account_id))
            await open_breaker(connection, account_id, seconds=guard.breaker.seconds_left(now=trio.current_time()))
            await note_alert(connection, _breaker_alert(account_id), now=context.now())
        elif news is BreakerState.CLOSED:
            _log.warning("a PSP has recovered", account=encode_id(PSP_ACCOUNT, account_id))
            await close_breaker(connection, account_id)
        elif news is BreakerState.HALF_OPEN:
            await give_probe_back(connection, account_id)
    except BaseException:
        guard.news = guard.news or news
        raise


async def _ask_about_unknown(connection: Connection, account_id: PspAccountId, guard: Guard) -> None:
    """Have everything UNKNOWN at a PSP that answers again asked about at once."""
    now = trio.current_time()
    if not guard.has_recovered or now < guard.hasten_at:
        return
    guard.has_recovered, guard.hasten_at = False, now + HASTEN_SECONDS
    try:
        count = await hasten(connection, account_id)
    except BaseException:
        guard.has_recovered, guard.hasten_at = True, now
        raise
    if count:
        _log.info("a PSP answers again: what is unknown is asked about", account=encode_id(PSP_ACCOUNT, account_id), count=count)


def _breaker_alert(account_id: PspAccountId) -> Alert:
    name = encode_id(PSP_ACCOUNT, account_id)
    return Alert(
        key=f"breaker:{name}",
        kind="breaker",
        title=f"PSP account {name} is failing: at least half of its calls in 30 s failed",
        detail="Its breaker is open, with a probe each 10 s. Payments go to another account of their merchant, wait, or get 503.",
    )


def _take_over(guard: Guard, seconds_left: float | None) -> None:
    """Adopt another worker's breaker, unless ours has just changed in a way that the others do not know yet."""
    if guard.news is not None:
        return
    state = guard.state
    if seconds_left is None:
        if state is not BreakerState.CLOSED:
            guard.breaker.close()
    elif state is BreakerState.CLOSED or (state is BreakerState.HALF_OPEN and seconds_left > 0):
        guard.breaker.open(until=trio.current_time() + max(seconds_left, 0.0))

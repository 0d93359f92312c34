"""Sends the events of one ordered endpoint by number, one after another, while this worker holds its lease.

Invariants: an event is sent only after the previous one was delivered or became a dead letter; a worker that lost its lease sends
nothing more; an attempt is counted before it is made.
"""

from uuid import UUID

import structlog
import trio

from core.errors import FlorinError
from core.ids import EndpointId, MerchantId
from server.db.database import Database
from server.db.webhooks.deliveries import give_back
from server.db.webhooks.ordered_deliveries import claim_next, has_waiting, release_endpoint, take_endpoint
from server.flows.webhooks.send import NotMade, Sender
from server.telemetry import Metrics
from server.uuid7 import uuid7

ORDERED_MAX = 512
LET_GO_SECONDS = 2.0
TURN_SECONDS = 10.0
"""The longest turn of one endpoint, so that others are served if there are very many."""

NOT_MADE_SECONDS = 1.0
MARGIN = 1 / 3
"""The extra time for an attempt and for writing its result, as a fraction of the attempt's time limit."""

_log = structlog.get_logger()


class OrderedEndpoints:
    """The ordered endpoints that this worker serves, one task each in `nursery`, at most `ORDERED_MAX`."""

    def __init__(self, db: Database, sender: Sender, metrics: Metrics, *, lease_seconds: float) -> None:
        self.nursery: trio.Nursery | None = None
        self._db = db
        self._sender = sender
        self._metrics = metrics
        self._lease_seconds = lease_seconds
        self._served: dict[EndpointId, bool] = {}
        """True for an endpoint for which more has been committed since its task last began to send."""

    @property
    def is_idle(self) -> bool:
        """True if none is served."""
        return not self._served

    def want(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        """Serve an endpoint for which something is due; what does not fit is found again in the table."""
        if endpoint_id in self._served:
            self._served[endpoint_id] = True
        elif len(self._served) < ORDERED_MAX and self.nursery is not None:
            self._served[endpoint_id] = False
            self.nursery.start_soon(self._serve, merchant_id, endpoint_id)

    async def _serve(self, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        try:
            is_wanted = True
            while is_wanted:
                self._served[endpoint_id] = False
                is_left = await send_in_order(
                    self._db, self._sender, self._metrics, merchant_id, endpoint_id, lease_seconds=self._lease_seconds
                )
                is_wanted = self._served[endpoint_id] or (is_left and len(self._served) < ORDERED_MAX)
        except FlorinError as error:
            _log.warning("an ordered endpoint cannot be served; its lease will expire", error=str(error))
        finally:
            del self._served[endpoint_id]


async def send_in_order(
    db: Database, sender: Sender, metrics: Metrics, merchant_id: MerchantId, endpoint_id: EndpointId, *, lease_seconds: float
) -> bool:
    """Send until nothing waits, the next event failed, another worker holds the endpoint, or the turn is over.

    Returns whether more could be sent at once. Raises `DatabaseUnavailable`, `Overloaded`; the lease then ends by itself. If
    canceled, it releases the lease.
    """
    token = uuid7()
    async with db.pool.connection() as connection:
        if not await take_endpoint(connection, merchant_id, endpoint_id, token, lease_seconds=lease_seconds):
            return False
    sending = _Sending(db, sender, metrics, merchant_id, endpoint_id)
    turn_ends_at = trio.current_time() + TURN_SECONDS
    try:
        while await sending.send_next(token, lease_seconds=lease_seconds) and trio.current_time() < turn_ends_at:
            pass
    finally:
        with trio.move_on_after(LET_GO_SECONDS, shield=True):
            async with db.pool.connection() as connection:
                await release_endpoint(connection, merchant_id, endpoint_id, token, held_seconds=sending.held_seconds)
    if sending.held_seconds:
        return False
    async with db.pool.connection() as connection:  # deliveries committed while the endpoint was held are still waiting
        return await has_waiting(connection, merchant_id, endpoint_id)


class _Sending:
    """The deliveries of one lease. `held_seconds`: how long nothing may be sent, because the last one failed."""

    def __init__(self, db: Database, sender: Sender, metrics: Metrics, merchant_id: MerchantId, endpoint_id: EndpointId) -> None:
        self._db = db
        self._sender = sender
        self._metrics = metrics
        self._merchant_id = merchant_id
        self._endpoint_id = endpoint_id
        self.held_seconds = 0.0

    async def send_next(self, token: UUID, *, lease_seconds: float) -> bool:
        """Send the next one. Returns whether to continue."""
        too_old_at = trio.current_time() + lease_seconds - (1 + MARGIN) * self._sender.attempt_seconds
        async with self._db.pool.connection() as connection:
            claimed, is_ours = await claim_next(
                connection, self._merchant_id, self._endpoint_id, token, lease_seconds=lease_seconds
            )
        if claimed is None:
            return is_ours
        attempted = await self._sender.attempt(claimed, too_old_at=too_old_at, now=trio.current_time())
        if isinstance(attempted, NotMade):
            self.held_seconds = NOT_MADE_SECONDS
            async with self._db.pool.connection() as connection:
                await give_back(connection, [(claimed, 0.0)])
            return False
        result = attempted.result
        self._metrics.webhook_attempted(result.status, delivered=result.delivered)
        if not result.delivered and result.retry_seconds is not None:
            self.held_seconds = result.retry_seconds
        is_written = await self._db.delivery_results.submit(result)
        if not is_written or self.held_seconds:
            return False
        destination = self._sender.known(self._merchant_id, self._endpoint_id)
        if destination is not None and destination.endpoint.requests_per_second_max:
            await trio.sleep(1 / destination.endpoint.requests_per_second_max)
        return True

"""Claims of deliveries that could not be attempted: released together, without counting an attempt."""

import structlog
import trio

from core.errors import DatabaseUnavailable, Overloaded
from server.db.pool import Pool
from server.db.webhooks.deliveries import ClaimedDelivery, give_back

RETURNED_MAX = 16_384
RETURNED_AT_ONCE_MAX = 500
RETURN_SECONDS = 0.1
_log = structlog.get_logger()


class ReturnedClaims:
    """Claims to release. Beyond `RETURNED_MAX`, and while the database cannot be reached, their leases have to expire."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._claims: list[tuple[ClaimedDelivery, float]] = []
        self._has_some = trio.Event()

    def add(self, claimed: ClaimedDelivery, seconds: float) -> None:
        """Release a claim soon; it is due again that many seconds later."""
        if len(self._claims) < RETURNED_MAX:
            self._claims.append((claimed, seconds))
            self._has_some.set()

    @property
    def is_empty(self) -> bool:
        """True if nothing is left to release."""
        return not self._claims

    async def run(self) -> None:
        """Release until canceled."""
        while True:
            await self._has_some.wait()
            await trio.sleep(RETURN_SECONDS)
            self._has_some = trio.Event()
            while self._claims:
                released, self._claims = self._claims[:RETURNED_AT_ONCE_MAX], self._claims[RETURNED_AT_ONCE_MAX:]
                try:
                    async with self._pool.connection() as connection:
                        await give_back(connection, released)
                except (DatabaseUnavailable, Overloaded) as error:
                    _log.warning("claims could not be released; their leases will expire", error=str(error))

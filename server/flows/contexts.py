"""The contexts of flows, by noun: a flow's signature shows what it can touch.

The composition root makes them, and they are passed explicitly. Contexts extend each other, so a flow can hand its own to a flow
that needs less.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from core.fair_queue import Urgency
from core.idempotency import StoredKey
from core.ids import MerchantId
from server.concurrency.background import Background
from server.concurrency.health import Health
from server.concurrency.request_limits import RequestLimits
from server.concurrency.single_flight_cache import Validity
from server.concurrency.wakeup import Wakeup
from server.concurrency.worker_count import WorkerCount
from server.db.group_commit import Committer
from server.db.payments.change_row import ChangeRow
from server.db.payments.changes import Applied, ChangeGroup, Lost
from server.db.payments.creations import Creation, OrderIsLive
from server.db.payments.idempotency_keys import Flights
from server.db.pool import Pool
from server.flows.events.acknowledgements import Acks
from server.flows.events.live_feeds import Feeds
from server.flows.payments.fraud import FraudCheck
from server.flows.webhooks.destinations import Destinations
from server.psp.routing import Routing
from server.psp.turn import Turn
from server.sealing import Sealer
from server.telemetry import Metrics


@dataclass(frozen=True, kw_only=True)
class Storage:
    """The tables and the time."""

    pool: Pool
    now: Callable[[], datetime]


@dataclass(frozen=True, kw_only=True)
class Keys(Storage):
    """Idempotency keys. `psp_seconds` bounds one call to a PSP, and so how long a request may be in flight.

    `worker_id` owns the keys that this worker claims; `flights` ends those of requests that have failed.
    """

    psp_seconds: float
    worker_id: UUID
    flights: Flights


@dataclass(frozen=True, kw_only=True)
class SealedKeys(Keys):
    """Idempotency keys whose replies are stored sealed."""

    sealer: Sealer


@dataclass(frozen=True, kw_only=True)
class Settlement(Storage):
    """Changes of payments. `notify` hands a committed event to the jobs; it never waits, and may drop what they find anyway."""

    changes: Committer[ChangeRow, Applied | Lost]
    change_group: ChangeGroup
    notify: Callable[[Applied], None]


@dataclass(frozen=True, kw_only=True)
class Psps(Settlement, Keys):
    """Existing payments and their PSPs. `background` continues work that a request does not wait for.

    `urgency` is that of the calls to PSPs.
    """

    psps: Routing
    background: Background
    metrics: Metrics
    urgency: Urgency = Urgency.INTERACTIVE

    def turn(self, merchant_id: MerchantId) -> Turn:
        """A turn at PSPs for a merchant."""
        return Turn(merchant_id, self.urgency)


@dataclass(frozen=True, kw_only=True)
class Payments(Psps):
    """New payments as well."""

    creations: Committer[Creation, StoredKey | OrderIsLive | None]
    fraud: FraudCheck | None = None


@dataclass(frozen=True, kw_only=True)
class Webhooks(SealedKeys):
    """Webhook endpoints and their allowed destinations."""

    destinations: Destinations
    feeds: Feeds


@dataclass(frozen=True, kw_only=True)
class Events(Storage):
    """Events for readers. Other workers, if any, are told what this worker commits."""

    feeds: Feeds
    acks: Acks
    workers: WorkerCount


@dataclass(frozen=True, kw_only=True)
class Batches(Storage):
    """Batches: accepting and claiming them. `wakeup` tells the job of a new one."""

    sealer: Sealer
    wakeup: Wakeup


@dataclass(frozen=True, kw_only=True)
class Receipts(Storage):
    """Receipts and the key that signs them."""

    receipt_key: Ed25519PrivateKey


@dataclass(frozen=True, kw_only=True)
class Contexts:
    """All contexts of one worker, its health, and the limits of its callers. `settings_validity`: of what it caches of merchants,
    keys and endpoints.
    """

    health: Health
    settings_validity: Validity
    request_limits: RequestLimits
    payments: Payments
    webhooks: Webhooks
    events: Events
    batches: Batches
    receipts: Receipts

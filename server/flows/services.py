"""What the use cases of one worker work with. Made by the worker, passed explicitly."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.concurrency.background import Background
from server.concurrency.wakeup import Bell
from server.concurrency.worker_count import Workers
from server.db.database import Database
from server.db.payments.changes import Applied
from server.flows.events.acknowledgements import Acks
from server.flows.events.live_feeds import Feeds
from server.flows.payments.fraud import FraudCheck
from server.flows.webhooks.destinations import Destinations
from server.psp.routing import Routing
from server.sealing import Sealer
from server.telemetry import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`notify` tells the jobs of a committed event; it never waits, and may drop what they find in the tables anyway."""

    db: Database
    psps: Routing
    notify: Callable[[Applied], None]
    psp_seconds: float
    now: Callable[[], datetime]
    background: Background
    batch_bell: Bell
    feeds: Feeds
    acks: Acks
    workers: Workers
    receipt_key: Ed25519PrivateKey
    sealer: Sealer
    destinations: Destinations
    metrics: Metrics
    fraud: FraudCheck | None = None

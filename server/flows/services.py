"""What the use cases of one worker work with. Made by the worker, passed explicitly."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.db.change_batch import Applied
from server.db.database import Database
from server.flows.acks import Acks
from server.flows.background import Background
from server.flows.bell import Bell
from server.flows.destination import Destinations
from server.flows.feeds import Feeds
from server.flows.fraud import FraudCheck
from server.flows.workers import Workers
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


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)

"""What the use cases of one worker work with. Made by the worker, passed explicitly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from server.db.change_batch import NewDelivery
from server.db.database import Database
from server.flows.background import Background
from server.flows.fraud import FraudCheck
from server.psp.routing import Routing
from server.telemetry import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """`notify` hands committed deliveries to the job that sends them; it never waits and may drop what the lease recovers."""

    db: Database
    psps: Routing
    notify: Callable[[Sequence[NewDelivery]], None]
    psp_seconds: float
    now: Callable[[], datetime]
    background: Background
    receipt_key: Ed25519PrivateKey
    metrics: Metrics
    fraud: FraudCheck | None = None


def utc_now() -> datetime:
    """The current time, with its zone."""
    return datetime.now(UTC)

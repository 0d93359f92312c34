"""Logs and metrics, without secrets or customers' data.

Logs are one JSON object per line on standard error, or readable lines on a terminal. Metrics are Prometheus', of one worker each.
"""

import logging
import sys
from collections.abc import Callable

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from core.breaker import BreakerState
from core.ids import PSP_ACCOUNT, PspAccountId, encode_id

_STATE_NUMBERS = {BreakerState.CLOSED: 0, BreakerState.HALF_OPEN: 1, BreakerState.OPEN: 2}


def configure_logs(level: str) -> None:
    """Set up logging for this process."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # never tracebacks with local variables: they hold keys and customers' texts
    last: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
        if sys.stderr.isatty()
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=shared + last,
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


class Metrics:
    """The metrics of one worker."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._batch_items = Histogram(
            "florin_commit_group_items",
            "Items written by one statement of a committer",
            ["committer"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self._registry,
        )
        self._commit_seconds = Histogram(
            "florin_commit_seconds",
            "Time of one statement of a committer, including its commit to disk",
            ["committer"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0),
            registry=self._registry,
        )

        labels = ["account", "psp"]
        self._psp_seconds = Histogram(
            "florin_psp_attempt_seconds",
            "Time of one attempt of a call to a PSP, from its admission, by purpose and result",
            [*labels, "call", "outcome"],
            buckets=(0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0),
            registry=self._registry,
        )
        self._psp_observed: dict[tuple[str, str, str, str], Histogram] = {}
        self._breaker = Gauge(
            "florin_psp_breaker_state", "State of the breaker: 0 closed, 1 half-open, 2 open", labels, registry=self._registry
        )
        self._in_flight = Gauge(
            "florin_psp_in_flight", "Calls to the PSP that are under way or have a place", labels, registry=self._registry
        )
        self._waiting = Gauge("florin_psp_waiting", "Calls that wait for a place at the PSP", labels, registry=self._registry)
        self._limit = Gauge(
            "florin_psp_concurrency_limit", "Limit of concurrent calls to the PSP", labels, registry=self._registry
        )
        self._failovers = Counter(
            "florin_psp_failovers",
            "Payments that went to another account, because the first provably received nothing or its breaker was open",
            ["from_account", "to_account"],
            registry=self._registry,
        )
        self._webhooks = Counter("florin_psp_events", "PSP events by result", ["psp", "outcome"], registry=self._registry)
        self._verdicts = Counter(
            "florin_fraud_checks", "Fraud checks by verdict, or the reason for having none", ["verdict"], registry=self._registry
        )

        self._webhook_attempts = Counter(
            "florin_webhook_attempts",
            "Attempts to deliver an event to a merchant, by result: delivered, refused or unanswered",
            ["outcome"],
            registry=self._registry,
        )
        self._delivered, self._refused, self._unanswered = (
            self._webhook_attempts.labels(outcome) for outcome in ("delivered", "refused", "unanswered")
        )

    def webhook_attempted(self, status: int | None, *, delivered: bool) -> None:
        """Record an attempt at a delivery; `status` None means that there was no answer."""
        (self._delivered if delivered else self._unanswered if status is None else self._refused).inc()

    def psp_called(self, account: str, psp: str, call: str, outcome: str, seconds: float) -> None:
        """Record an attempt of a call to a PSP."""
        labels = (account, psp, call, outcome)
        observed = self._psp_observed.get(labels)
        if observed is None:  # `labels` validates all its arguments each time
            observed = self._psp_observed[labels] = self._psp_seconds.labels(*labels)
        observed.observe(seconds)

    def watch_psp(
        self,
        account: str,
        psp: str,
        *,
        state: Callable[[], BreakerState],
        in_flight: Callable[[], int],
        waiting: Callable[[], int],
        limit: Callable[[], float],
    ) -> None:
        """Expose the state of an account's guard whenever the metrics are read."""
        self._breaker.labels(account, psp).set_function(lambda: _STATE_NUMBERS[state()])
        self._in_flight.labels(account, psp).set_function(in_flight)
        self._waiting.labels(account, psp).set_function(waiting)
        self._limit.labels(account, psp).set_function(limit)

    def failed_over(self, from_account: PspAccountId, to_account: PspAccountId) -> None:
        """Record that a payment went to another PSP account than the preferred one."""
        self._failovers.labels(*(encode_id(PSP_ACCOUNT, one) for one in (from_account, to_account))).inc()

    def psp_event(self, psp: str, outcome: str) -> None:
        """Record the result of a PSP event."""
        self._webhooks.labels(psp, outcome).inc()

    def fraud_checked(self, verdict: str) -> None:
        """Record the result of a fraud check."""
        self._verdicts.labels(verdict).inc()

    def committed(self, committer: str, items: int, seconds: float) -> None:
        """Record a group that a committer has written."""
        self._batch_items.labels(committer).observe(items)
        self._commit_seconds.labels(committer).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, 0.0.4."""
        return generate_latest(self._registry)

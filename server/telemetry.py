"""Logs and metrics. Never secrets, never customers' data.

Logs are one JSON object a line on standard error, or readable lines on a terminal. Metrics are Prometheus', of one worker each.
"""

import logging
import sys

import structlog
from prometheus_client import CollectorRegistry, Histogram, generate_latest


def configure_logs(level: str) -> None:
    """Set up logging for this process."""
    shared: list[structlog.typing.Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    # Never the traceback with local variables: they hold keys and what customers wrote.
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
    """What a worker measures of itself."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._batch_items = Histogram(
            "florin_commit_batch_items",
            "Items written by one statement of a committer",
            ["committer"],
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256),
            registry=self._registry,
        )
        self._commit_seconds = Histogram(
            "florin_commit_seconds",
            "Time of one statement of a committer, its commit to disk included",
            ["committer"],
            buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 10.0),
            registry=self._registry,
        )

    def committed(self, committer: str, items: int, seconds: float) -> None:
        """A committer has written a batch."""
        self._batch_items.labels(committer).observe(items)
        self._commit_seconds.labels(committer).observe(seconds)

    def exposition(self) -> bytes:
        """All metrics in Prometheus' text format, 0.0.4."""
        return generate_latest(self._registry)

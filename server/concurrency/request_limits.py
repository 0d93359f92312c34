"""Limits of a merchant's requests: how many per second, by token bucket, and how many at the same time in this worker.

The rate of a merchant, and of a key that has its own, holds for all workers together. Each worker counts what it admits; a job
shares the counts of those that come near their rate (`server.jobs.request_usage`), and each worker leaves the others what they
use, but never takes less than its even share. Before any side effect a request past a limit is refused.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from core.throttling import TokenBucket

SUBJECTS_MAX = 20_000
NEAR = 0.1
"""A worker tells the others of a merchant whose requests here come to this part of its rate."""


class Quota(msgspec.Struct, frozen=True):
    """The state of a rate after a request: its limit per second, what is left now, and the seconds until it is full again.

    `wait_seconds` is above 0 if the request was refused.
    """

    limit: float
    remaining: int
    reset_seconds: float
    wait_seconds: float = 0.0


@dataclass(slots=True)
class _Subject:
    """A merchant or a key."""

    bucket: TokenBucket
    limit: float
    admitted: int = 0
    in_flight: int = 0


class RequestLimits:
    """The limits of all merchants in one worker. Rates without a number of their own are `per_second`; 0 means none."""

    def __init__(self, *, per_second: float, in_flight_max: int) -> None:
        self._per_second = per_second
        self._in_flight_max = in_flight_max
        self._subjects: dict[Hashable, _Subject] = {}

    def admit(self, subject: Hashable, *, per_second: float | None, now: float) -> Quota | None:
        """Admit a request by the rate of a merchant or key. Returns the quota, or None if it has no rate."""
        limit = self._per_second if per_second is None else per_second
        if not limit:
            return None
        known = self._subjects.get(subject)
        if known is None or known.limit != limit:
            known = self._add(subject, limit, now)
        wait_seconds = known.bucket.take(now=now)
        if not wait_seconds:
            known.admitted += 1
        remaining = max(int(known.bucket.tokens), 0)
        return Quota(limit, remaining, (known.bucket.burst - known.bucket.tokens) / known.bucket.per_second, wait_seconds)

    def enter(self, merchant: Hashable, *, in_flight_max: int | None) -> bool:
        """Count a request under way. Returns False, counting nothing, if the merchant has too many."""
        known = self._subjects.get(merchant)
        if known is None:
            known = self._add(merchant, 0.0, 0.0)
        if known.in_flight >= (in_flight_max or self._in_flight_max):
            return False
        known.in_flight += 1
        return True

    def leave(self, merchant: Hashable) -> None:
        """Count the end of a request."""
        known = self._subjects.get(merchant)
        if known is not None:
            known.in_flight -= 1

    def take_counts(self) -> dict[Hashable, float]:
        """The requests admitted since the last call, of those that come near their rate."""
        found = {
            name: float(one.admitted) for name, one in self._subjects.items() if one.limit and one.admitted >= NEAR * one.limit
        }
        for one in self._subjects.values():
            one.admitted = 0
        return found

    def share(self, used_elsewhere: Mapping[Any, float], *, workers: int) -> None:
        """Leave the other workers what they have used, but keep an even share."""
        for name, one in self._subjects.items():
            if one.limit:
                one.bucket.per_second = max(one.limit - used_elsewhere.get(name, 0.0), one.limit / workers)

    def _add(self, subject: Hashable, limit: float, now: float) -> _Subject:
        known = self._subjects.get(subject)
        in_flight = known.in_flight if known is not None else 0
        if known is None and len(self._subjects) >= SUBJECTS_MAX:
            self._subjects = {name: one for name, one in self._subjects.items() if one.in_flight}
        bucket = TokenBucket(per_second=limit, burst=max(limit, 1.0), tokens=max(limit, 1.0), at=now)
        added = self._subjects[subject] = _Subject(bucket, limit, in_flight=in_flight)
        return added

"""Calls to one PSP account over HTTP: guarded, bounded in time, repeated only if that is safe, and classified.

Each call returns a response or raises `PspUnreachable` (the PSP provably did nothing), `PspBusy` (the same, because it or we had
no capacity) or `PspOutcomeUnknown`. A call is repeated if it was never sent, if it was refused for now (409, 429), or if it ended
in a 5xx and is a read or has an idempotency key. A call that may change something and whose answer was lost is not repeated here:
it is settled by a fetch (promise:unknown-not-declined). All attempts share one deadline, and each is admitted by the guard.
"""

import math
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec
import structlog
import trio

from core.errors import PspBusy, PspOutcomeUnknown, PspRejected, PspUnreachable
from server.http.client.client import Client
from server.http.client.errors import BadResponse, NotSent, OutcomeUnknown
from server.http.client.response import Response
from server.psp.guard import Guard
from server.psp.turn import current_turn

ATTEMPTS_MAX = 3
BACKOFF_SECONDS = 0.1
BACKOFF_SECONDS_MAX = 2.0
RETRY_AFTER_SECONDS_MAX = 60.0
MIN_SHARE = 0.2
"""The share of its time that a call must have left when its turn comes. One sent later could only end UNKNOWN."""

_NOT_NOW = frozenset({409, 425})
_LOST = frozenset({408, 424})
_NOT_OURS = frozenset({401, 403})
_NO_ANSWERS = _NOT_NOW | _LOST | _NOT_OURS | {429}
_log = structlog.get_logger()


class PspCall(StrEnum):
    """The purpose of a call, for metrics and deadlines."""

    INTENT = "intent"
    CHARGE = "charge"
    CAPTURE = "capture"
    VOID = "void"
    REFUND = "refund"
    CLOSE = "close"
    FETCH = "fetch"
    LIST = "list"


READS = frozenset({PspCall.FETCH, PspCall.LIST})


@dataclass(frozen=True, slots=True, kw_only=True)
class Deadlines:
    """The time limits of a whole call (with waiting and retries), of one try of a read, and of connecting."""

    seconds: float
    read_seconds: float
    connect_seconds: float


class Answer(msgspec.Struct, frozen=True):
    """A response that is not a 5xx. `after_loss`: an earlier attempt may have taken effect, whatever this one says."""

    response: Response
    after_loss: bool

    def accepted(self) -> Response:
        """The response of a call that was carried out. Raises `PspRejected`, or `PspOutcomeUnknown` after a loss."""
        status = self.response.status
        if status < 300:
            return self.response
        if self.after_loss or status < 400:
            raise PspOutcomeUnknown(f"the PSP answered {status}")
        raise PspRejected(f"the PSP refused: {status}")  # its body may repeat what must not be logged


Observe = Callable[[PspCall, str, float], None]
"""Called for every attempt with its purpose, its result (a status class, 429, not_sent, lost, cancelled) and its seconds."""


class PspTransport:
    """The transport of one account. `headers` go with every call."""

    def __init__(
        self,
        http: Client,
        guard: Guard,
        *,
        base_url: str,
        headers: Iterable[tuple[str, str]],
        deadlines: Deadlines,
        observe: Observe,
        rng: random.Random,
        retry_header: bytes | None = None,
    ) -> None:
        self.guard = guard
        self._http = http
        self._base_url = base_url
        self._headers = list(headers)
        self._deadlines = deadlines
        self._observe = observe
        self._rng = rng
        self._retry_header = retry_header

    async def call(
        self,
        call: PspCall,
        method: str,
        path: str,
        *,
        body: bytes = b"",
        headers: Iterable[tuple[str, str]] = (),
        is_keyed: bool = False,
    ) -> Answer:
        """Make a call, and repeat it if that is safe. `is_keyed`: the PSP recognizes a repetition by its idempotency key.

        Raises `PspUnreachable`, `PspBusy` or `PspOutcomeUnknown`. If canceled, the call may have taken effect.
        """
        deadlines = self._deadlines
        is_read = call in READS
        ends_at = trio.current_time() + deadlines.seconds
        wanted = [*self._headers, *headers]
        was_lost = False
        failure: PspUnreachable | PspOutcomeUnknown | None = None
        for attempt in range(1, ATTEMPTS_MAX + 1):
            wait_seconds = 0.0
            try:
                response = await self._attempt(call, method, path, wanted, body, ends_at=ends_at)
            except PspBusy as error:
                failure = failure or error  # an earlier attempt has told more
                break
            except NotSent as error:
                failure = PspUnreachable(f"the PSP cannot be reached: {error}")
            except (OutcomeUnknown, BadResponse) as error:
                failure, was_lost = PspOutcomeUnknown(f"the PSP's answer was lost: {error}"), True
                if not is_read:
                    break
            else:
                status = response.status
                if status < 500 and status not in _NO_ANSWERS:
                    return Answer(response, was_lost)
                wait_seconds = _retry_after_seconds(response)
                failure = self._failure(status, wait_seconds)
                was_lost = was_lost or isinstance(failure, PspOutcomeUnknown)
                if not self._may_repeat(response, is_safe=is_read or is_keyed):
                    break
            delay = max(wait_seconds, self._backoff_seconds(attempt))
            if attempt == ATTEMPTS_MAX or trio.current_time() + delay + deadlines.connect_seconds > ends_at:
                break
            await trio.sleep(delay)
        assert failure is not None
        if was_lost and not isinstance(failure, PspOutcomeUnknown):
            raise PspOutcomeUnknown(f"an earlier attempt was lost, and then: {failure}") from failure
        raise failure

    async def _attempt(
        self,
        call: PspCall,
        method: str,
        path: str,
        headers: list[tuple[str, str]],
        body: bytes,
        *,
        ends_at: float,
    ) -> Response:
        turn, guard = current_turn(), self.guard
        admission = guard.try_admit(turn) or await guard.admit(turn)
        began_at = trio.current_time()
        if ends_at - began_at < MIN_SHARE * self._deadlines.seconds:
            guard.leave(admission)
            raise PspBusy("too little of the call's time was left when its turn came")
        is_read = call in READS  # a call lost with its connection may have arrived: only a read is sent again
        seconds = max(min(ends_at - began_at, self._deadlines.read_seconds if is_read else math.inf), 0.1)
        outcome, failed = "cancelled", None
        try:
            response = await self._http.request(
                method, self._base_url + path, headers=headers, body=body, idempotent=is_read, total_seconds=seconds
            )
            outcome = "429" if response.status == 429 else f"{response.status // 100}xx"
            if response.status == 429:
                guard.record_429()
            else:
                failed = response.status >= 500 or response.status in _NOT_OURS
        except NotSent:
            outcome, failed = "not_sent", True
            raise
        except (OutcomeUnknown, BadResponse):
            outcome, failed = "lost", True
            raise
        finally:
            took_seconds = trio.current_time() - began_at
            if outcome == "cancelled" and took_seconds >= 0.8 * seconds:
                failed = True  # the caller's deadline came first, and ours was near
            guard.leave(admission, failed=failed, took_seconds=took_seconds)
            self._observe(call, outcome, took_seconds)
        return response

    def _failure(self, status: int, wait_seconds: float) -> PspUnreachable | PspOutcomeUnknown:
        """The failure that a response means."""
        if status == 429:
            return PspBusy("the PSP takes no more calls at the moment", retry_after_seconds=max(wait_seconds, 1.0))
        if status in _NOT_OURS:
            _log.error("a PSP rejects our credentials", address=self._base_url, status=status)
            return PspUnreachable("the PSP rejects our credentials")
        return PspOutcomeUnknown(f"the PSP answered {status}")

    def _may_repeat(self, response: Response, *, is_safe: bool) -> bool:
        """Return whether a call may be repeated. A PSP's own word decides; otherwise safe calls and those refused for now are
        repeated.
        """
        said = response.header(self._retry_header) if self._retry_header is not None else None
        if said in (b"true", b"false"):
            return said == b"true" and (is_safe or response.status < 500)
        return response.status == 429 or (is_safe and response.status not in _NOT_OURS)

    def _backoff_seconds(self, attempt: int) -> float:
        """The wait before a call is repeated, with jitter, so that calls that failed together are not repeated together."""
        return self._rng.uniform(0.3, 1.0) * min(BACKOFF_SECONDS * 2.0 ** (attempt - 1), BACKOFF_SECONDS_MAX)


def _retry_after_seconds(response: Response) -> float:
    """The seconds of Retry-After (RFC 9110, 10.2.3); a date is ignored."""
    text = response.header(b"retry-after") or b""
    return min(float(text), RETRY_AFTER_SECONDS_MAX) if text.isdigit() and len(text) <= 5 else 0.0

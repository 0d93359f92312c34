"""Turns at PSPs: who calls, how urgently, and with which place that was reserved before.

The turn of a task's calls is ambient, like a cancel scope: a flow takes one for a block, and whatever is called inside, through
any adapter, passes the account's guard by it.
"""

from collections.abc import Hashable
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Protocol

from core.breaker import Admission
from core.fair_queue import Urgency


class Places(Protocol):
    """The guard of an account, which has places for calls."""

    def leave(self, admission: Admission) -> None:
        """Take back a place that was not used."""
        ...


class Turn:
    """A caller at PSPs: the merchant and the urgency of its calls, and the place that was reserved for the next one, if any.

    As a context manager it is the turn of all calls in its block, and what is reserved and unused at the end is given back.
    """

    __slots__ = ("_admission", "_guard", "_tokens", "merchant", "urgency")

    def __init__(self, merchant: Hashable = None, urgency: Urgency = Urgency.BACKGROUND) -> None:
        self.merchant = merchant
        self.urgency = urgency
        self._guard: Places | None = None
        self._admission = Admission.CALL
        self._tokens: list[Token[Turn | None]] = []

    def __enter__(self) -> "Turn":
        self._tokens.append(_current.set(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        _current.reset(self._tokens.pop())
        if not self._tokens:
            self.release()

    @property
    def guard(self) -> Places | None:
        """The guard of the account at which a place is reserved."""
        return self._guard

    def release(self) -> None:
        """Give back what was reserved and not used."""
        if self._guard is not None:
            guard, self._guard = self._guard, None
            guard.leave(self._admission)

    def hold(self, guard: Places, admission: Admission) -> None:
        """Keep a place for the next call."""
        self.release()
        self._guard, self._admission = guard, admission

    def take(self, guard: Places) -> Admission | None:
        """Use the reserved place, if there is one of this guard."""
        if self._guard is not guard:
            return None
        self._guard = None
        return self._admission


_current: ContextVar[Turn | None] = ContextVar("turn", default=None)


def current_turn() -> Turn:
    """The turn of the running task's calls; one of no merchant, in the background, if none was taken."""
    return _current.get() or Turn()

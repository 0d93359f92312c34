"""Operators: the people and programs that run an instance, their roles, and what each role may do.

`ACTS` is the one table of rights, for the commands and for whatever else lets operators act. Reading needs no right. An act is
named like its entry in the audit log.
"""

from collections.abc import Mapping
from enum import StrEnum
from uuid import UUID

import msgspec

PASSWORD_LENGTH_MIN, PASSWORD_LENGTH_MAX = 12, 1_000


class OperatorRole(StrEnum):
    """The role of an operator. Each may do what the one before may, and more; only finance and admin move money."""

    VIEWER = "viewer"
    SUPPORT = "support"
    FINANCE = "finance"
    ADMIN = "admin"


class Right(StrEnum):
    """A group of acts. MONEY asks for a second factor at the time of the act."""

    NOTIFICATIONS = "notifications"
    FINDINGS = "findings"
    MONEY = "money"
    SETTINGS = "settings"
    OPERATORS = "operators"


RIGHTS: Mapping[OperatorRole, frozenset[Right]] = {
    OperatorRole.VIEWER: frozenset(),
    OperatorRole.SUPPORT: frozenset({Right.NOTIFICATIONS, Right.FINDINGS}),
    OperatorRole.FINANCE: frozenset({Right.NOTIFICATIONS, Right.FINDINGS, Right.MONEY}),
    OperatorRole.ADMIN: frozenset(Right),
}
SERVICE_ROLES = (OperatorRole.VIEWER, OperatorRole.SUPPORT)
"""The roles that a program may have."""

ACTS: Mapping[str, Right] = {
    "dead_letters.retry": Right.NOTIFICATIONS,
    "dead_letters.drop": Right.NOTIFICATIONS,
    "psp_event.retry": Right.NOTIFICATIONS,
    "psp_event.drop": Right.NOTIFICATIONS,
    "finding.take": Right.FINDINGS,
    "finding.explain": Right.FINDINGS,
    "finding.resolve": Right.FINDINGS,
    "payment.resolve": Right.MONEY,
    "payment.refund": Right.MONEY,
    "suspense.return": Right.MONEY,
    "suspense.credit": Right.MONEY,
    "suspense.assign": Right.MONEY,
    "adjust": Right.MONEY,
    "request.approve": Right.MONEY,
    "request.withdraw": Right.MONEY,
    "payout.request": Right.MONEY,
    "payout.approve": Right.MONEY,
    "payout.succeed": Right.MONEY,
    "payout.fail": Right.MONEY,
    "wallet.rebuild": Right.MONEY,
    "merchant.add": Right.SETTINGS,
    "merchant.set": Right.SETTINGS,
    "merchant.key.add": Right.SETTINGS,
    "merchant.key.rotate": Right.SETTINGS,
    "merchant.key.revoke": Right.SETTINGS,
    "psp.add": Right.SETTINGS,
    "psp.set": Right.SETTINGS,
    "psp.rotate-secret": Right.SETTINGS,
    "psp.route": Right.SETTINGS,
    "operator.add": Right.OPERATORS,
    "operator.role": Right.OPERATORS,
    "operator.disable": Right.OPERATORS,
    "operator.enable": Right.OPERATORS,
    "operator.reset-totp": Right.OPERATORS,
}
"""The right that each act needs."""


class Operator(msgspec.Struct, frozen=True, kw_only=True):
    """An operator who is known by a session or a key."""

    id: UUID
    name: str
    role: OperatorRole
    is_service: bool = False


def may(role: OperatorRole, act: str) -> bool:
    """Return whether a role may do this. Raises `KeyError` for an act that is not in the table."""
    return ACTS[act] in RIGHTS[role]


def roles_that_may(act: str) -> list[OperatorRole]:
    """The roles that may do this, the least first."""
    return [role for role in OperatorRole if may(role, act)]

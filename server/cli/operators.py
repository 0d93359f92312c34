"""The operator at the command line, and the acts that are written to the audit log."""

import os
import pwd
from typing import Annotated

import typer

from core.errors import Unprocessable
from core.ids import MerchantId
from server.clock import utc_now
from server.db.merchants.audit import Act
from server.uuid7 import uuid7

Operator = Annotated[
    str | None,
    typer.Option("--operator", help="Your name for the audit log. Default: your login name.", show_default=False),
]


def operator_name(given: str | None) -> str:
    """The operator's name. Raises `Unprocessable` for an invalid one."""
    name = given if given is not None else _login_name()
    if not 1 <= len(name) <= 100 or not name.isprintable():
        raise Unprocessable("--operator takes 1 to 100 printable characters")
    return name


def act(operator: str | None, merchant_id: MerchantId, action: str, detail: str) -> Act:
    """An act of an operator, now."""
    return Act(id=uuid7(), merchant_id=merchant_id, actor=operator_name(operator), action=action, detail=detail, at=utc_now())


def _login_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"uid {os.getuid()}"

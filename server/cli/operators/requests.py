"""`florin request`: what operators have asked for about money, waiting for another operator or carried out."""

from typing import Annotated

import trio
import typer

from core.errors import NotFound
from core.ids import MERCHANT, OPERATOR_REQUEST, PAYMENT, decode_id, encode_id
from core.operator_requests import described, require_reason
from server.cli.groups import group
from server.cli.operators.acting import Acting, Operator, Totp, acting
from server.cli.options import DatabaseUrl, DataDirectory, KeyFile, find_database, with_database
from server.cli.output import Output, Rows, shown
from server.clock import utc_now
from server.db.connection import Connection
from server.db.operators.requests import OperatorRequest, RequestState, find_request, list_requests
from server.flows.operators.requests import Asked, approve, ask, withdraw

app = group("List, approve and withdraw what operators have asked for.")
_console = Output()

LIST_MAX = 200
WAIT_SECONDS = 10.0
RequestText = Annotated[str, typer.Argument(help="The request's id, opr_…", metavar="REQUEST")]
Reason = Annotated[str, typer.Option("--reason", help="The reason, for the audit log.")]


@app.command("list")
def show_all(
    every: Annotated[bool, typer.Option("--all", help="Those that have ended, too.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """List open requests, newest first."""
    url = find_database(data_dir, database_url)
    found = with_database(url, lambda connection: list_requests(connection, only_open=not every, limit=LIST_MAX))
    if not found:
        _console.print("There are no open requests." if not every else "There are no requests.")
        return
    table = Rows("request", "what", "about", "by", "state", "expires")
    for one in found:
        about = encode_id(PAYMENT, one.payment_id) if one.payment_id else encode_id(MERCHANT, one.merchant_id)
        what = _kind(one)
        expires = f"{one.expires_at:%Y-%m-%d}" if one.state is RequestState.REQUESTED else ""
        table.add(encode_id(OPERATOR_REQUEST, one.id), what, about, one.operators, one.state, expires)
    _console.print(table)


@app.command("show")
def show(request: RequestText, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Show a request."""
    url = find_database(data_dir, database_url)
    print_request(with_database(url, lambda connection: _found(connection, request)))


@app.command("approve")
def approve_one(
    request: RequestText,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Approve what another operator has asked for; a worker carries it out at once."""
    url = find_database(data_dir, database_url)
    found = with_database(url, lambda connection: _found(connection, request))
    actor = acting("request.approve", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)

    async def work(connection: Connection) -> OperatorRequest:
        await approve(connection, found, actor.operator, now=utc_now())
        return await until_carried_out(connection, found)

    _print_end(with_database(url, work))


@app.command("withdraw")
def withdraw_one(
    request: RequestText,
    reason: Reason,
    operator: Operator = None,
    totp: Totp = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
    key_file: KeyFile = None,
) -> None:
    """Withdraw an open request, or refuse another operator's."""
    url = find_database(data_dir, database_url)
    said = require_reason(reason)
    found = with_database(url, lambda connection: _found(connection, request))
    actor = acting("request.withdraw", url, operator, totp=totp, data_dir=data_dir, key_file=key_file, database_url=database_url)
    with_database(url, lambda connection: withdraw(connection, found, actor.operator, said, now=utc_now()))
    _console.print(f"{request} is withdrawn; nothing was done")


def make(url: str, asked: Asked, actor: Acting) -> None:
    """Ask for something, wait for a worker if it needs nobody's approval, and print what comes next. Exits with 1 if it could not
    be carried out.
    """

    async def work(connection: Connection) -> OperatorRequest:
        made = await ask(connection, asked, actor.operator, now=utc_now())
        if made.state is RequestState.APPROVED:
            _console.print(f"{encode_id(OPERATOR_REQUEST, made.id)} is recorded; a worker carries it out, whatever happens here")
        return await until_carried_out(connection, made) if made.state is RequestState.APPROVED else made

    _print_end(with_database(url, work))


async def until_carried_out(connection: Connection, request: OperatorRequest) -> OperatorRequest:
    """Wait for a worker for a while, and return the request as it is then."""
    found = request
    with trio.move_on_after(WAIT_SECONDS):
        while found.state in (RequestState.REQUESTED, RequestState.APPROVED):
            found = await find_request(connection, request.id) or found
            await trio.sleep(0.1)
    return found


def _kind(request: OperatorRequest) -> str:
    if request.document is None:
        return "something of a newer version"
    return described(request.document)


def _print_end(request: OperatorRequest) -> None:
    name = encode_id(OPERATOR_REQUEST, request.id)
    match request.state:
        case RequestState.REQUESTED:
            _console.print(f"{name}: another operator approves it with `florin request approve {name}` within 7 days")
        case RequestState.APPROVED:
            _console.print(f"{name}: approved; a worker will carry it out: `florin request show {name}`")
        case RequestState.DONE:
            _console.print(f"{name}: done: {shown(request.result or '')}")
        case _:
            _console.print(f"{name}: {request.state}: {shown(request.result or '')}")
            raise typer.Exit(1)


def print_request(request: OperatorRequest) -> None:
    """Print a request, a line for each thing known."""
    lines = {
        "request": encode_id(OPERATOR_REQUEST, request.id),
        "merchant": encode_id(MERCHANT, request.merchant_id),
        "payment": encode_id(PAYMENT, request.payment_id) if request.payment_id else "",
        "what": _kind(request),
        "reason": request.reason,
        "requested by": f"{request.requested_by_name}, {request.created_at:%Y-%m-%d %H:%M} UTC",
        "approved by": request.approved_by_name or ("nobody yet" if request.needs_approval else "not needed"),
        "state": request.state,
        "result": request.result or "",
    }
    table = Rows()
    for name, value in lines.items():
        if value:
            table.add(name, value)
    _console.print(table)


async def _found(connection: Connection, text: str) -> OperatorRequest:
    found = await find_request(connection, decode_id(OPERATOR_REQUEST, text))
    if found is None:
        raise NotFound(f"there is no request {text}: `florin request list --all` shows them")
    return found

"""`florin finding`: what a person has to look at: who has taken it, what can be done about it, and what was."""

from typing import Annotated, Any

import msgspec
import typer

from core.errors import Conflict, NotFound, Unprocessable
from core.evidence import Finding
from core.findings import MENDS, FindingState
from core.ids import FINDING, MERCHANT, PAYMENT, decode_id, encode_id
from core.nearest import unknown
from core.operator_requests import require_reason
from server.cli.groups import group
from server.cli.operators.acting import Operator, acting
from server.cli.options import DatabaseUrl, DataDirectory, find_database, merchant_id_of, with_database
from server.cli.output import Output, Rows, json_shown, shown
from server.clock import utc_now
from server.db.connection import Connection
from server.db.merchants.audit import Act, Wanted, list_acts, record_act
from server.db.payments.findings import FindingRow, change_finding, find_finding, list_findings

app = group("List findings, take, explain and resolve them.")
_console = Output()
ACTS_MAX = 100

FindingText = Annotated[str, typer.Argument(help="The finding's id, fnd_…", metavar="FINDING")]
Reason = Annotated[str, typer.Option("--reason", help="What you know; it stays with the finding.")]


@app.command("list")
def show_all(
    every: Annotated[bool, typer.Option("--all", help="Those that are closed, too.")] = False,
    kind: Annotated[str | None, typer.Option("--kind", help="Only of this kind.")] = None,
    merchant: Annotated[str | None, typer.Option("--merchant", help="Only of this merchant.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000)] = 200,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """List open findings, oldest first."""
    wanted = _kind(kind)
    merchant_id = merchant_id_of(merchant) if merchant else None

    async def work(connection: Connection) -> list[FindingRow]:
        return await list_findings(connection, only_open=not every, kind=wanted, merchant_id=merchant_id, limit=limit)

    found = with_database(find_database(data_dir, database_url), work)
    if as_json:
        for one in found:
            _console.print(json_shown(msgspec.json.encode(_document(one)).decode()))
        return
    if not found:
        _console.print("There are no findings." if every else "There are no open findings: the books and the PSPs agree.")
        return
    table = Rows("finding", "kind", "payment", "at stake", "age", "state", "operator")
    for one in found:
        row = (encode_id(FINDING, one.id), one.kind, encode_id(PAYMENT, one.payment_id), str(one.at_stake or ""), _age(one))
        table.add(*row, one.state, one.operator or "")
    _console.print(table)


@app.command("show")
def show(finding: FindingText, database_url: DatabaseUrl = None, data_dir: DataDirectory = None) -> None:
    """Show a finding, what was done about it, and what can be done."""

    async def work(connection: Connection) -> tuple[FindingRow, list[Act]]:
        found = await _found(connection, finding)
        return found, await list_acts(connection, Wanted(merchant_id=found.merchant_id, subject=finding), limit=ACTS_MAX)

    found, acts = with_database(find_database(data_dir, database_url), work)
    payment = encode_id(PAYMENT, found.payment_id)
    table = Rows()
    for name, value in {
        "finding": finding,
        "kind": found.kind,
        "payment": f"{payment}  {found.payment_status or 'does not exist here'}",
        "merchant": encode_id(MERCHANT, found.merchant_id),
        "at stake": found.at_stake or "",
        "found": f"{found.created_at:%Y-%m-%d %H:%M} UTC, {_age(found)} ago: {found.detail}",
        "state": f"{found.state}{f' by {found.operator}' if found.operator else ''}",
        "note": found.note or "",
    }.items():
        if value:
            table.add(name, value)
    _console.print(table)
    for act in acts:
        _console.print(f"{act.at:%Y-%m-%d %H:%M:%S}  {act.actor}: {act.action}: {shown(act.detail)}")
    if found.state in (FindingState.OPEN, FindingState.TAKEN):
        _console.print(f"\nLook first: florin explain {payment}\nThen, if")
        for mend in MENDS[found.kind]:
            _console.print(f"  {mend.when}:\n    {mend.command.format(payment=payment, finding=finding)}")


@app.command("take")
def take(
    finding: FindingText, operator: Operator = None, database_url: DatabaseUrl = None, data_dir: DataDirectory = None
) -> None:
    """Say that you look at it, or take it over."""
    _change(finding, "finding.take", FindingState.TAKEN, "", operator, find_database(data_dir, database_url))


@app.command("explain")
def explain(
    finding: FindingText,
    reason: Reason,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Close it: nothing has to be done, and the reason says why."""
    note = require_reason(reason)
    _change(finding, "finding.explain", FindingState.EXPLAINED, note, operator, find_database(data_dir, database_url))


@app.command("resolve")
def resolve(
    finding: FindingText,
    reason: Reason,
    operator: Operator = None,
    database_url: DatabaseUrl = None,
    data_dir: DataDirectory = None,
) -> None:
    """Close it: what was wrong is mended, and the reason says how."""
    note = require_reason(reason)
    _change(finding, "finding.resolve", FindingState.FIXED, note, operator, find_database(data_dir, database_url))


def _change(finding: str, action: str, state: FindingState, note: str, operator: str | None, url: str) -> None:
    actor = acting(action, url, operator)

    async def work(connection: Connection) -> None:
        found = await _found(connection, finding)
        async with connection.atomic():
            if not await change_finding(connection, found, state, operator=actor.operator.name, note=note, now=utc_now()):
                raise Conflict(f"{finding} is closed: it is {found.state} by {found.operator}", code="finding_closed")
            act = actor.act(found.merchant_id, note or found.kind, payment_id=found.payment_id, subject=finding)
            await record_act(connection, act)

    with_database(url, work)
    _console.print(f"{finding} is {state} by {actor.operator.name}")


async def _found(connection: Connection, text: str) -> FindingRow:
    found = await find_finding(connection, decode_id(FINDING, text))
    if found is None:
        raise NotFound(f"there is no finding {text}: `florin finding list --all` shows them")
    return found


def _kind(text: str | None) -> Finding | None:
    try:
        return Finding(text) if text is not None else None
    except ValueError as error:
        raise Unprocessable(unknown("kind", str(text), [one.value for one in Finding])) from error


def _age(finding: FindingRow) -> str:
    seconds = int((utc_now() - finding.created_at).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return f"{max(seconds, 0)} s"


def _document(one: FindingRow) -> dict[str, Any]:
    return {
        "id": encode_id(FINDING, one.id),
        "kind": one.kind,
        "merchant_id": encode_id(MERCHANT, one.merchant_id),
        "payment_id": encode_id(PAYMENT, one.payment_id),
        "payment_status": one.payment_status,
        "amount": one.at_stake.amount_minor if one.at_stake else None,
        "currency": one.at_stake.currency if one.at_stake else None,
        "state": one.state,
        "operator": one.operator,
        "note": one.note,
        "created_at": one.created_at,
        "state_at": one.state_at,
        "mends": [
            mend.command.format(payment=encode_id(PAYMENT, one.payment_id), finding=encode_id(FINDING, one.id))
            for mend in MENDS[one.kind]
        ],
    }

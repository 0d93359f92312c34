"""Notices of the doctor besides the promises: work that is stuck, versions and settings that do not fit together.

A notice breaks no promise. It says what to do before one is broken, or before somebody has to wait.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib import metadata

from server.db.connection import Connection
from server.db.migrate import applied, migrations

CLOCK_SECONDS_MAX = 2.0
_STUCK = "10 minutes"


@dataclass(frozen=True, slots=True)
class Notice:
    """One thing to look at. `advice` says what to do."""

    title: str
    advice: str


@dataclass(frozen=True, slots=True)
class _Question:
    """A question to the database: each row is one case, in words."""

    sql: str
    title: str
    advice: str


_QUESTIONS = (
    _Question(
        f"""
        SELECT count(*) || ' of the payments' FROM payment_requests WHERE due_at < now() - interval '{_STUCK}' HAVING count(*) > 0
        UNION ALL
        SELECT count(*) || ' of the refunds' FROM refunds WHERE due_at < now() - interval '{_STUCK}' HAVING count(*) > 0
        UNION ALL
        SELECT count(*) || ' of the PSPs'' events' FROM psp_inbox WHERE due_at < now() - interval '{_STUCK}' HAVING count(*) > 0
        UNION ALL
        SELECT count(*) || ' of the alerts' FROM alerts WHERE due_at < now() - interval '{_STUCK}' HAVING count(*) > 0
        UNION ALL
        SELECT count(*) || ' of the running batches' FROM batches
         WHERE status = 'RUNNING' AND coalesce(lease_until, started_at) < now() - interval '{_STUCK}' HAVING count(*) > 0
        UNION ALL
        SELECT count(*) || ' of the operators'' requests' FROM operator_requests
         WHERE state = 'APPROVED' AND updated_at < now() - interval '{_STUCK}' HAVING count(*) > 0
        """,  # noqa: S608 - own constant
        "{} wait since more than ten minutes for a worker",
        "check that workers run and what their logs say: no lease is renewed by a dead one, so nothing else holds them",
    ),
    _Question(
        """
        SELECT string_agg(DISTINCT coalesce(version, 'unknown'), ' and ') FROM workers
         WHERE seen_at > now() - interval '10 seconds' HAVING count(DISTINCT coalesce(version, 'unknown')) > 1
        """,
        "workers of versions {} run at the same time",
        "finish the upgrade, or take it back",
    ),
    _Question(
        """
        SELECT m.name || ' is ' || m.mode || ' and its account ' || a.mode FROM merchants m
          JOIN psp_accounts a ON a.id = m.psp_account_id WHERE a.mode <> m.mode
        UNION ALL
        SELECT m.name || ' takes payments, and its account ' || coalesce(nullif(a.name, ''), a.psp) || ' does not'
          FROM merchants m JOIN psp_accounts a ON a.id = m.psp_account_id
         WHERE m.accepts_payments AND NOT a.enabled
           AND NOT EXISTS (SELECT FROM psp_routes r JOIN psp_accounts o ON o.id = r.psp_account_id
                            WHERE r.merchant_id = m.merchant_id AND o.enabled)
        UNION ALL
        SELECT m.name || ' has a route to an account of another mode' FROM merchants m
          JOIN psp_routes r ON r.merchant_id = m.merchant_id JOIN psp_accounts a ON a.id = r.psp_account_id
         WHERE a.mode <> m.mode
        """,
        "settings contradict each other: {}",
        "see `florin merchant show` and `florin psp list`",
    ),
    _Question(
        """
        SELECT 'only ' || count(*) || ' active' FROM operators
         WHERE role IN ('finance', 'admin') AND disabled_at IS NULL HAVING count(*) < 2 AND EXISTS (SELECT FROM operators)
        """,
        "{} operator may move money, which takes two",
        "add one with `florin operator add NAME --role finance`",
    ),
    _Question(
        """
        SELECT count(*) || ', the oldest of ' || min(created_at)::date FROM findings WHERE resolved_at IS NULL HAVING count(*) > 0
        """,
        "findings are open: {}",
        "`florin finding list` shows them, and what can be done",
    ),
    _Question(
        """
        SELECT count(*) || ' within a week' FROM api_keys
         WHERE revoked_at IS NULL AND replaced_by IS NULL AND expires_at BETWEEN now() AND now() + interval '7 days'
        HAVING count(*) > 0
        """,
        "API keys expire, {}",
        "their merchants were told; `florin merchant key rotate` replaces one",
    ),
)


async def notices(connection: Connection, *, now: datetime) -> Sequence[Notice]:
    """Everything to look at. `now` is this machine's time."""
    found = await _migrations(connection)
    if found:
        return found  # the questions are about the newest schema
    database_now: datetime = (await connection.query("SELECT clock_timestamp()"))[0][0]
    if abs(database_now - now) > timedelta(seconds=CLOCK_SECONDS_MAX):
        seconds = (now - database_now).total_seconds()
        title = f"this machine's clock differs from the database's by {seconds:+.1f} s"
        found.append(Notice(title, "check NTP on both; workers with too much of that end by themselves"))
    for question in _QUESTIONS:
        for (case,) in await connection.query(question.sql):
            found.append(Notice(question.title.format(case), question.advice))
    return found


async def _migrations(connection: Connection) -> list[Notice]:
    """The migrations that the database lacks, or that this version does not know."""
    known = {one.number: one.name for one in migrations()}
    have = await applied(connection)
    missing = [name for number, name in known.items() if number not in have]
    ahead = [f"migration {number}" for number in have if number not in known]
    found = []
    if missing:
        found.append(Notice(f"the database lacks {', '.join(missing)}", "run `florin migrate`"))
    if ahead:
        version = metadata.version("florin")
        found.append(Notice(f"the database is ahead of florin {version}: {', '.join(ahead)}", "use the newer version"))
    return found

"""The address of the database: a URL or libpq's keywords, checked before anything connects to it.

Messages never repeat the address, because it contains a password, and libpq's own messages do. No `PG…` variable of the
environment has an effect: what is not in the address has libpq's default. Source: PostgreSQL manual, 34.1.1 and 34.15.
"""

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

import psycopg
import trio
from psycopg import conninfo as libpq

from core.errors import DatabaseUnavailable

ADDRESSES_MAX = 32
_SCHEMES = ("postgresql", "postgres")
_FORM = "write it like postgresql://user:password@host:5432/database"
_ENCODED = "in a URL %, @, /, ? and # within a name or a password are written %25, %40, %2F, %3F and %23"

for _name in [name for name in os.environ if name.startswith("PG")]:
    os.environ.pop(_name)  # libpq reads them at every connection, and so do the server's programs


class BadAddress(DatabaseUnavailable):
    """The address of the database cannot be read; the text says why, without its secrets."""

    code = "database_address_invalid"


def parse(address: str) -> dict[str, Any]:
    """The parameters of an address by libpq's names. Raises `BadAddress`."""
    scheme, is_url, rest = address.strip().partition("://")
    if is_url and scheme not in _SCHEMES and "=" not in scheme:
        raise _bad(f"its scheme is {scheme[:40]!r} instead of postgresql")
    if is_url and scheme in _SCHEMES:
        _require_single(rest.partition("?")[2])
    try:
        params = libpq.conninfo_to_dict(address.strip())
    except psycopg.ProgrammingError as error:
        raise _bad(_reason(str(error), is_url=bool(is_url))) from None
    if not params:
        raise _bad("it is empty")
    hosts, ports = str(params.get("host") or "").split(","), str(params.get("port") or "").split(",")
    if any("@" in host or " " in host for host in hosts) or any(port and not _is_port(port) for port in ports):
        raise _bad(f"its host or port is not one: {_ENCODED}")
    if len(ports) not in (1, len(hosts)):
        raise _bad(f"it has {len(hosts)} hosts and {len(ports)} ports")
    return params


def without_password(address: str) -> str:
    """An address that may be shown."""
    given = parse(address)
    where, port, user = str(given.get("host") or ""), given.get("port"), given.get("user", "")
    if where.startswith("/"):
        return f"postgresql://{user}@/{given.get('dbname', '')}?host={where}&port={port or 5432}"
    ports = str(port or "").split(",")
    hosts = where.split(",")
    named = [f"{host}:{one}" if one else host for host, one in zip(hosts, ports * len(hosts), strict=False)]
    return f"postgresql://{user}@{','.join(named)}/{given.get('dbname', '')}"


def with_login(address: str, user: str, password: str) -> str:
    """A URL of the same database for another login. Raises `BadAddress`."""
    given = {name: value for name, value in parse(address).items() if name not in ("user", "password") and value}
    hosts, ports = str(given.pop("host", "") or "").split(","), str(given.pop("port", "") or "").split(",")
    database = quote(str(given.pop("dbname", "")), safe="")
    more = {name: str(value) for name, value in given.items()}
    if any(one.startswith("/") for one in hosts):
        more |= {"host": ",".join(hosts), **({"port": ",".join(ports)} if any(ports) else {})}
        where = ""
    else:
        named = [f"[{host}]" if ":" in host else host for host in hosts]
        where = ",".join(f"{host}:{port}" if port else host for host, port in zip(named, ports * len(hosts), strict=False))
    query = f"?{urlencode(more)}" if more else ""
    return f"postgresql://{quote(user, safe='')}:{quote(password, safe='')}@{where}/{database}{query}"


async def attempts(params: dict[str, Any]) -> Sequence[dict[str, Any]]:
    """The parameters of each connection to try, one after another: one for each address of each host, in order.

    Names are resolved by trio, because libpq would block the loop. A host that cannot be resolved is left out if there are
    others. Raises `DatabaseUnavailable` if none can.
    """
    hosts = str(params.get("host") or "").split(",")
    ports = str(params.get("port") or "").split(",")
    if params.get("hostaddr"):
        return [params]
    found: list[dict[str, Any]] = []
    failures: list[str] = []
    for number, host in enumerate(hosts):
        one = {**params, "host": host or None, "port": ports[number if len(ports) > 1 else 0] or None}
        if not host or host.startswith("/"):
            found.append(one)
            continue
        try:
            resolved = await trio.socket.getaddrinfo(host, one["port"] or 5432, type=trio.socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            failures.append(f"cannot resolve {host}: {error}")
            continue
        addresses = dict.fromkeys(str(entry[4][0]) for entry in resolved)
        found += [{**one, "hostaddr": address} for address in addresses]
    if not found:
        raise DatabaseUnavailable("; ".join(failures))
    return found[:ADDRESSES_MAX]


def _require_single(query: str) -> None:
    """Raise `BadAddress` if a parameter is given twice: two readers could take either value."""
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise _bad(f"it has the parameter {repeated[:40]} more than once")


def _reason(said: str, *, is_url: bool) -> str:
    """The reason in libpq's message, without what it repeats of the address."""
    if "invalid URI query parameter" in said or "invalid connection option" in said:
        return f"PostgreSQL has no parameter {said.strip().split(chr(34))[1][:40]}"
    if "percent-encoded" in said or "unexpected spaces" in said:
        return _ENCODED
    if "IPv6" in said:
        return "the ] after its host is missing"
    return "it is not a URL" if is_url else "it is neither a URL nor NAME=VALUE"


def _bad(reason: str) -> BadAddress:
    return BadAddress(f"the database's address cannot be read: {reason}; {_FORM}")


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5 and 0 < int(text) <= 65_535

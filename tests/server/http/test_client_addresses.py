"""Addresses that the client may call: the address that is checked is the address that is called."""

import ipaddress
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import trio

from server.http.client import dial
from server.http.client.client import ClientOptions, open_client
from server.http.client.errors import NotSent, Refused
from tests.support.http import in_vain, serving


@contextmanager
def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> Iterator[list[str]]:
    """Names with several or changing addresses; records the names that were looked up."""
    rest = list(answers)
    asked: list[str] = []

    def look_up(host: str, port: int) -> list[tuple[int, Any]]:
        asked.append(host)
        answer = rest.pop(0) if len(rest) > 1 else rest[0]
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, (one, port, 0, 0) if ":" in one else (one, port))
            for one in answer
        ]

    with monkeypatch.context() as patched:
        patched.setattr(dial, "look_up", look_up)
        yield asked


def no_second_loopback(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    if str(address) == "127.0.0.2":
        raise Refused(f"{address} may not be called")


async def test_the_address_that_is_checked_is_the_address_that_is_called(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as (_, port), open_client(ClientOptions(check=no_second_loopback)) as client:
        with resolving(monkeypatch, ["127.0.0.1"], ["127.0.0.2"]) as asked:
            assert (await client.request("GET", f"http://shop.example:{port}/")).status == 200
            assert asked == ["shop.example"], "a second look-up could be answered otherwise"
        with resolving(monkeypatch, ["127.0.0.1", "127.0.0.2"]), pytest.raises(Refused):
            await client.request("GET", f"http://mixed.example:{port}/")
        for spelling in ("127.0.0.2", "2130706434", "0x7f000002", "0177.0.0.2", "127.2", "[::ffff:127.0.0.2]", "[::ffff:7f00:2]"):
            with pytest.raises(Refused):
                await client.request("GET", f"http://{spelling}:{port}/")


async def test_addresses_are_tried_beside_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    connecting = dial.connect

    async def watched(address: Any) -> socket.socket:
        tried.append(address[1][0])
        if address[1][0] == "127.0.0.9":
            await trio.sleep_forever()  # a packet that nobody answers
        return await connecting(address)

    monkeypatch.setattr(dial, "connect", watched)
    monkeypatch.setattr(dial, "ATTEMPT_SECONDS", 0.05)
    async with serving() as (_, port), open_client() as client:
        with resolving(monkeypatch, ["127.0.0.9", "::1", "127.0.0.1"]):
            assert (await client.request("GET", f"http://many.example:{port}/")).status == 200
        assert tried == ["127.0.0.9", "::1", "127.0.0.1"]
        with resolving(monkeypatch, ["127.0.0.3", "127.0.0.4"]), pytest.raises(NotSent, match="refused"):
            await client.request("GET", "http://none.example:9/")
        with resolving(monkeypatch, []), pytest.raises(NotSent, match="no address"):
            await client.request("GET", "http://nowhere.example:9/")


async def test_hanging_lookups_delay_a_bounded_number_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()
    monkeypatch.setattr(dial, "look_up", lambda host, port: hanging.wait(10) and [])
    options = ClientOptions(connect_seconds=0.2)
    try:
        async with open_client(options) as merchants, trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(in_vain, merchants, f"http://slow-{number}.example/")
            await trio.sleep(0.3)
            nursery.cancel_scope.cancel()
        monkeypatch.undo()
        async with serving() as (_, port), open_client(options) as psps:
            assert (await psps.request("GET", f"http://localhost:{port}/")).status == 200
    finally:
        hanging.set()

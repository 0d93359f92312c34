"""Replies that the HTTP server makes by itself have the API's form."""

import msgspec
import pytest
import trio
from structlog.testing import capture_logs

from server import resources
from server.api.problems import wire_problem
from server.http.asgi import Receive, Scope, Send
from server.http.refusal import Refusal, plain
from tests.support.http import GET, talk
from tests.support.websocket import HANDSHAKE, serving


async def broken(scope: Scope, receive: Receive, send: Send) -> None:
    """An application that raises, or closes a websocket that it has not accepted."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close"})
        return
    raise RuntimeError("told to nobody")


@pytest.mark.parametrize(
    ("data", "status", "code"), [(GET, 500, "internal_error"), (HANDSHAKE, 403, "forbidden")], ids=["failed", "denied"]
)
async def test_where_the_application_does_not_answer(data: bytes, status: int, code: str) -> None:
    with capture_logs() as logs:
        async with serving(broken, render=wire_problem) as (_, port):
            head, _, body = (await talk(port, data)).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"content-type: application/problem+json" in head.lower()
    problem = msgspec.json.decode(body, type=resources.Problem)
    assert (problem.status, problem.code, problem.request_id[:4]) == (status, code, "req_")
    assert "told to nobody" not in body.decode()
    failures = [(one["event"], one["request_id"]) for one in logs if one["log_level"] == "error"]
    assert failures == ([("the application failed", problem.request_id)] if status == 500 else [])


async def test_without_room() -> None:
    entered, leave = trio.Event(), trio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        entered.set()
        await leave.wait()

    async with serving(slow, render=wire_problem, requests_in_flight_max=1) as (_, port), trio.open_nursery() as nursery:
        nursery.start_soon(talk, port, GET)
        await entered.wait()
        head, _, body = (await talk(port, GET)).partition(b"\r\n\r\n")
        leave.set()
    assert head.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after: 1" in head.lower()
    assert msgspec.json.decode(body, type=resources.Problem).code == "overloaded"


@pytest.mark.parametrize("refusal", Refusal)
def test_the_plain_form_and_the_problem_agree(refusal: Refusal) -> None:
    assert plain(refusal).status == wire_problem(refusal).status

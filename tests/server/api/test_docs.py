"""The examples and the table of problem codes at `/docs` agree with what is served."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import httpx2
import msgspec
import pytest
import trio

from florin_client import ApiError, Florin, Gap
from server.api.app import Api
from server.api.batches.bodies import AnyItem, CreateBatch
from server.api.docs.examples import EXAMPLES, RESUME_TOKEN, concrete, curl, node
from server.api.docs.problem_codes import PROBLEM_CODES
from server.api.docs.samples import reply_example
from server.api.openapi import document
from server.api.problems import status_of
from server.api.routing import Route
from tests.conftest import ROOT, program
from tests.support import florin as support

STREAMS = {"batches_resume"}
"""Calls that wait for the end of what they began."""

MISSING = ("(not_found,", "the last event is number", "shop.example does not resolve")
"""Problems of examples that name what a new Florin does not have."""

NOT_REPLIES = {
    *("four_eyes", "not_approvable", "alert_not_sent", "not_approved", "not_checked"),  # of the commands
    *("invalid_scope", "locked_out", "login_failed", "not_resolvable", "not_withdrawable"),
    *("role_lacks_right", "session_ended", "wrong_code"),
    *("illegal_transition", "unbalanced_transfer"),  # of defects, answered as internal_error
    "invalid_id",  # answered as not_found or invalid_field
    *("decline_unconfirmed", "deadline_passed", "no_such_payment"),  # of items of a batch
    *("refused_by_the_psp", "fraud_denied"),  # of payments and refunds
}


def operations(florin: support.Florin) -> Iterator[tuple[str, Route, dict[str, Any]]]:
    """The id, the route and the description of each operation that is documented."""
    routes = Api(florin.contexts).routes
    paths = document(routes)["paths"]
    for route in routes:
        if not route.is_hidden:
            described = paths[route.path][route.method.lower()]
            yield described["operationId"], route, described


async def test_every_operation_has_an_example(florin: support.Florin) -> None:
    served = (await florin.http.get(f"{florin.api_url}/openapi.json")).json()["paths"]
    found = {name: route for name, route, _ in operations(florin)}
    assert {one["operationId"] for methods in served.values() for one in methods.values()} == set(found)
    assert set(found) == set(EXAMPLES)
    for name, route in found.items():
        body = EXAMPLES[name].body
        assert (body is None) == (route.body is None), name
        if body is not None:
            msgspec.convert(body, route.body)
            if route.body is CreateBatch:
                assert all(type(msgspec.convert(item, AnyItem)) in get_args(AnyItem) for item in body["items"])


async def test_the_example_of_a_reply_has_its_type(florin: support.Florin) -> None:
    components = (await florin.http.get(f"{florin.api_url}/openapi.json")).json()["components"]["schemas"]
    for name, route, described in operations(florin):
        status, reply = next(iter(described["responses"].items()))
        sample = reply_example(name, reply, components)
        kind = route.replies[int(status)]
        if kind is None:
            assert sample is None, name
        elif isinstance(kind, tuple):
            assert isinstance(sample, str), name
        else:
            msgspec.convert(sample, kind, strict=False)


async def test_the_client_sends_what_the_examples_say(florin: support.Florin) -> None:
    await trio.to_thread.run_sync(call_everything, florin, list(operations(florin)))


def call_everything(florin: support.Florin, wanted: list[tuple[str, Route, Any]]) -> None:
    """Make each call. What it names may not exist, but the request must be the one of the route."""
    sent: list[httpx2.Request] = []
    hooks = {"request": [sent.append]}
    with httpx2.Client(event_hooks=hooks) as http, Florin(florin.api_url, florin.demo.api_key, http=http) as client:
        for name, route, _ in wanted:
            sent.clear()
            if name in STREAMS:
                assert ast.parse(EXAMPLES[name].python, mode="eval")
                continue
            refused: ApiError | None = None
            try:
                reply = eval(f"florin.{EXAMPLES[name].python}", {"florin": client})
                assert EXAMPLES[name].yields == hasattr(reply, "__next__"), name
                if EXAMPLES[name].yields:
                    next(reply, None)
            except Gap:
                pass  # there are no such events yet
            except ApiError as error:
                refused = error
            assert refused is None or any(said in str(refused) for said in MISSING), (name, refused)
            method, path = sent[0].method, sent[0].url.path
            assert (method, path) == (route.method, concrete(route.path, EXAMPLES[name]).partition("?")[0]), name
            body = EXAMPLES[name].body
            if body:
                assert msgspec.json.decode(sent[0].content).items() >= body.items(), name


async def test_the_requests_by_curl_and_node_do_what_they_say(florin: support.Florin, tmp_path: Path) -> None:
    shell: list[str] = []
    javascript: list[str] = []
    for name, route, _ in operations(florin):
        shell.append(curl(route.method, route.path, EXAMPLES[name], needs_key=route.needs_key))
        told = node(route.method, route.path, EXAMPLES[name], needs_key=route.needs_key)
        javascript.append(f"export async function f{len(javascript)}() {{\n{told}\n}}")
    (tmp_path / "all.sh").write_text("\n".join(shell))
    (tmp_path / "all.mjs").write_text("\n".join([*javascript, "await f0();"]))
    await trio.run_process(["bash", "-n", tmp_path / "all.sh"])
    where = {"FLORIN_API_URL": florin.api_url, "FLORIN_API_KEY": florin.demo.api_key, "PATH": "/usr/local/bin:/usr/bin:/bin"}
    program("curl")
    commands = (["bash", "-c", shell[0]], '"order_id":"1001"'), ([program("node"), str(tmp_path / "all.mjs")], "201 {")
    for command, said in commands:
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, env=where)
        assert said in done.stdout.decode()


def test_every_code_of_the_api_is_explained() -> None:
    known = {one.code: one for one in PROBLEM_CODES}
    assert len(known) == len(PROBLEM_CODES)
    source = "\n".join(
        file.read_text()
        for part in ("core", "server/api", "server/flows")
        for file in (ROOT / part).rglob("*.py")
        if "docs" not in file.parts
    )
    used = set(re.findall(r"\bcode(?:: str)? ?= ?\"([a-z_]+)\"", source))
    assert used - set(known) == NOT_REPLIES
    assert set(known) - used == set()


def test_the_status_of_a_code_is_its_error_s() -> None:
    from core import errors

    known = {one.code: one for one in PROBLEM_CODES}
    for kind in vars(errors).values():
        if isinstance(kind, type) and issubclass(kind, errors.FlorinError) and kind.code in known and "code" in vars(kind):
            assert status_of(kind.__new__(kind)) in known[kind.code].statuses, kind


@pytest.mark.any_postgres
async def test_the_page_explains_everything(florin: support.Florin) -> None:
    page = (await florin.http.get(f"{florin.api_url}/docs")).text
    assert all(f'id="problem-{one.code}"' in page for one in PROBLEM_CODES)
    assert all(f'id="{name}"' in page for name in EXAMPLES)
    text = re.sub(r"<(pre|style)>.*?</\1>", "", page, flags=re.DOTALL)
    assert "`" not in text
    assert RESUME_TOKEN in page

"""The OpenAPI document and the docs page agree with what is served."""

import re
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
import trio

from core.events import EVENT_TYPES
from server import resources
from server.api.app import Api
from server.api.batches.bodies import AnyItem, CreateBatch
from server.api.docs.samples import example
from tests.support.florin import Florin, order
from tests.support.payments import charge
from tests.support.webhooks import call

CHECKS = (
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
    "missing_required_header",
)
ST = str(Path(sys.executable).with_name("st"))


async def document(florin: Florin) -> dict[str, Any]:
    """The document as it is served."""
    response = await florin.http.get(f"{florin.api_url}/openapi.json")
    assert response.status_code == 200
    found: dict[str, Any] = response.json()
    return found


async def test_every_route_is_described_and_every_description_is_served(florin: Florin) -> None:
    found = await document(florin)
    assert found["openapi"] == "3.1.0"
    assert set(found["webhooks"]) == set(EVENT_TYPES)
    for path, methods in found["paths"].items():
        concrete = re.sub(r"\{\w+\}", "x", path)
        for method, operation in methods.items():
            answer = await florin.http.request(method.upper(), f"{florin.api_url}{concrete}")
            assert answer.status_code == (200 if operation.get("security") == [] else 401), (method, path)
        other = await florin.http.request("PATCH" if "patch" not in methods else "PUT", f"{florin.api_url}{concrete}")
        assert other.status_code == 405
        assert {one.lower() for one in other.headers["allow"].split(", ")} - {"head", "options"} == set(methods)
    text = msgspec.json.encode(found).decode()
    for reference in re.findall(r"#/components/schemas/(\w+)", text):
        assert reference in found["components"]["schemas"]


async def test_replies_have_the_fields_of_their_types(florin: Florin) -> None:
    payment = await charge(florin)
    refund = (await call(florin, "POST", f"payments/{payment['id']}/refunds", {})).json()
    assert set(payment) == set(resources.Payment.__struct_fields__)
    assert set(refund) == set(resources.Refund.__struct_fields__)
    assert msgspec.convert(payment, resources.Payment, strict=False).id == payment["id"]
    for name in EVENT_TYPES:
        event = example(name)
        types: dict[str, type[msgspec.Struct]] = {
            "payment": resources.Payment,
            "refund": resources.Refund,
            "webhook_endpoint": resources.EndpointState,
            "adjustment": resources.Adjustment,
            "payout": resources.Payout,
            "batch": resources.BatchState,
            "api_key": resources.ApiKey,
        }
        kind = types[name.partition(".")[0]]
        assert set(event.data) == set(kind.__struct_fields__) - {"secret"}
        msgspec.convert(event.data, kind, strict=False)


async def test_a_new_optional_field_changes_no_fingerprint(florin: Florin) -> None:
    """Else a retry over an upgrade would be taken for a different request, and told to use a new key."""
    bodies = [route.body for route in Api(florin.contexts).routes if route.needs_key and route.body is not None]
    assert len(bodies) > 5
    for body in bodies:
        items = body is CreateBatch  # whose items are hashed, and its two settings
        assert body.__struct_config__.omit_defaults or items, body
    assert all(one.__struct_config__.omit_defaults for one in get_args(AnyItem))
    replies = [await florin.post(order(**more), key="same") for more in ({}, {"description": None, "capture": "automatic"})]
    assert [(one.status_code, one.json()["id"]) for one in replies] == [(201, replies[0].json()["id"])] * 2


async def test_the_docs_page_loads_nothing(florin: Florin) -> None:
    response = await florin.http.get(f"{florin.api_url}/docs")
    assert response.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = response.text
    assert not re.search(r"<(script|img|link|iframe|object)|@import|url\(|src=", page)
    for name in EVENT_TYPES:
        assert f"<code>{name}</code>" in page
    assert 'id="stream"' in page


@pytest.mark.timeout(240)
@pytest.mark.slow
async def test_schemathesis_finds_no_disagreement(florin: Florin, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Every request gets an answer that the document describes: its status, its media type, its fields."""
    await charge(florin)
    examples = "200" if request.config.getoption("--long") else "12"
    command = [
        ST,
        "run",
        f"{florin.api_url}/openapi.json",
        "--header",
        f"Authorization: Bearer {florin.demo.api_key}",
        "--checks",
        ",".join(CHECKS),
        "--phases",
        "examples,coverage,fuzzing",
        "--max-examples",
        examples,
        "--seed",
        "7",
        "--request-timeout",
        "10",
        "--no-color",
    ]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, (done.stdout + done.stderr).decode()[-6_000:]

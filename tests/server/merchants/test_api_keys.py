"""API keys: what a restricted one may do, from where, how long; rotation with an overlap; and what is noted of their use."""

from datetime import datetime, timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx2
import pytest

from core.api_keys import KeyScope, parse_key_networks, parse_scopes, require_usable
from core.errors import Forbidden, Unprocessable
from core.ids import API_KEY, MerchantId, decode_id, encode_id
from server.api.app import Api
from server.api.routing import Route
from server.clock import utc_now
from server.credentials import api_key, key_hash
from server.db.events.consumers import use_ticket
from server.db.merchants.api_keys import add_api_key, list_api_keys
from server.jobs.key_usage import note
from server.uuid7 import uuid7
from tests.support.florin import Florin, open_florin, order
from tests.support.payments import charge

WRITES = {"POST /v1/payments": KeyScope.PAYMENTS_WRITE, "POST /v1/payments/{payment_id}/refunds": KeyScope.REFUNDS_WRITE}
READERS = {
    "POST /v1/stream/tickets",
    "PUT /v1/consumers/{name}",
    "DELETE /v1/consumers/{name}",
    "POST /v1/api-keys/{key_id}/rotate",
}


async def new_key(florin: Florin, **options: Any) -> tuple[UUID, dict[str, str]]:
    """A key of the demo merchant, and the headers of requests with it."""
    merchant_id, key_id = MerchantId(florin.demo.merchant_id), uuid7()
    secret = api_key("test", merchant_id)
    given = {"now": utc_now(), "hint": secret[-4:], **options}
    await add_api_key(florin.connection, merchant_id, key_id, secret_sha256=key_hash(secret), **given)
    return key_id, {"authorization": f"Bearer {secret}"}


async def ask(florin: Florin, method: str, path: str, headers: dict[str, str], body: Any = None) -> httpx2.Response:
    return await florin.http.request(
        method, f"{florin.api_url}{path}", json=body, headers={**headers, "idempotency-key": uuid4().hex}
    )


def routes(florin: Florin) -> list[Route]:
    return [one for one in Api(florin.contexts).routes if not one.is_public]


async def test_every_route_has_its_scope_and_a_key_without_it_is_refused(florin: Florin) -> None:
    _, reader = await new_key(florin, scopes=[KeyScope.READ])
    _, writer = await new_key(florin, scopes=[KeyScope.PAYMENTS_WRITE])
    document = (await florin.http.get(f"{florin.api_url}/openapi.json")).json()["paths"]
    for route in routes(florin):
        name = f"{route.method} {route.path}"
        is_reading = route.method == "GET" or name in READERS
        assert (route.scope is KeyScope.READ) == is_reading, name
        assert route.scope is WRITES.get(name, route.scope), name
        assert document[route.path][route.method.lower()]["security"] == [{"key": [route.scope]}]
        path = "/".join("x" if one.startswith("{") else one for one in route.path.split("/"))
        for headers, allowed in ((reader, KeyScope.READ), (writer, KeyScope.PAYMENTS_WRITE)):
            reply = await ask(florin, route.method, path, headers)
            refused = (reply.status_code, reply.json()["code"] if reply.status_code == 403 else None)
            assert (refused == (403, "scope_missing")) == (route.scope is not allowed), (name, reply.text)
            if refused[0] == 403:
                assert reply.json()["detail"] == f"this API key lacks the scope {route.scope}"


async def test_a_batch_is_no_way_around_a_scope(florin: Florin) -> None:
    paid = await charge(florin)
    _, headers = await new_key(florin, scopes=[KeyScope.BATCHES_WRITE, KeyScope.PAYMENTS_WRITE])
    body = {"items": [{"type": "refund", "payment_id": paid["id"]}]}
    refused = await ask(florin, "POST", "/v1/batches", headers, body)
    assert (refused.status_code, refused.json()["detail"]) == (403, "this API key lacks the scope refunds:write")
    body = {"items": [{"type": "charge", **order(token="tok_paid")}]}
    assert (await ask(florin, "POST", "/v1/batches", headers, body)).status_code == 200


async def test_a_key_counts_only_in_its_time_and_from_its_networks(florin: Florin) -> None:
    _, ended = await new_key(florin, expires_at=utc_now() - timedelta(seconds=1))
    _, elsewhere = await new_key(florin, networks=["203.0.113.0/24"])
    _, here = await new_key(florin, networks=["203.0.113.0/24", "127.0.0.0/8"], expires_at=utc_now() + timedelta(hours=1))
    said = [(await ask(florin, "GET", "/v1/wallets", headers)) for headers in (ended, elsewhere, here)]
    assert [one.status_code for one in said] == [401, 403, 200]
    assert [one.json()["code"] for one in said[:2]] == ["api_key_expired", "network_not_allowed"]


async def test_a_key_ends_while_it_is_cached(database_url: str, directory: Path) -> None:
    shift = timedelta()

    def now() -> datetime:
        return utc_now() + shift

    async with open_florin(database_url, directory, now=now) as florin:
        _, headers = await new_key(florin, expires_at=utc_now() + timedelta(hours=1))
        assert (await ask(florin, "GET", "/v1/wallets", headers)).status_code == 200
        shift = timedelta(hours=2)
        assert (await ask(florin, "GET", "/v1/wallets", headers)).json()["code"] == "api_key_expired"


async def test_a_rotation_makes_one_key_and_both_are_valid_for_a_while(florin: Florin) -> None:
    options = {"name": "checkout", "scopes": [KeyScope.READ], "networks": ["127.0.0.0/8"], "requests_per_second_max": 90}
    key_id, headers = await new_key(florin, **options)
    path = f"/v1/api-keys/{encode_id(API_KEY, key_id)}/rotate"
    url, with_key = f"{florin.api_url}{path}", {**headers, "idempotency-key": "rotation"}
    first, again = [await florin.http.post(url, json={"overlap_seconds": 60}, headers=with_key) for _ in range(2)]
    assert (first.status_code, again.status_code) == (201, 201)
    made = first.json()
    assert made == again.json()
    assert [made[name] for name in ("name", "scopes", "networks", "expires_at")] == ["checkout", ["read"], ["127.0.0.0/8"], None]
    new = {"authorization": f"Bearer {made['secret']}"}
    assert [(await ask(florin, "GET", "/v1/wallets", one)).status_code for one in (headers, new)] == [200, 200]
    listed = {one["id"]: one for one in (await ask(florin, "GET", "/v1/api-keys", new)).json()["data"]}
    old = listed[encode_id(API_KEY, key_id)]
    assert old["replaced_by"] == made["id"]
    assert utc_now() < datetime.fromisoformat(old["expires_at"]) < utc_now() + timedelta(seconds=61)
    assert "secret" not in listed[made["id"]]
    assert (await ask(florin, "POST", path, headers)).json()["code"] == "key_rotated"
    stranger = f"/v1/api-keys/{encode_id(API_KEY, florin.demo.api_key_id)}/rotate"
    assert (await ask(florin, "POST", stranger, new)).json()["code"] == "scope_missing", "only itself"
    assert (await ask(florin, "POST", f"/v1/api-keys/key_{'0' * 32}/rotate", florin.headers)).status_code == 404


async def test_a_restricted_key_cannot_outlive_its_end_by_rotating_itself(florin: Florin) -> None:
    ends_at = (utc_now() + timedelta(days=1)).replace(microsecond=0)
    for scopes, renews in (([KeyScope.READ], False), ([KeyScope.ALL], True)):
        key_id, headers = await new_key(florin, scopes=scopes, expires_at=ends_at)
        made = (await ask(florin, "POST", f"/v1/api-keys/{encode_id(API_KEY, key_id)}/rotate", headers, {})).json()
        assert (datetime.fromisoformat(made["expires_at"]) > ends_at) is renews


async def test_a_batch_of_others_is_not_resumed_without_their_scopes(florin: Florin) -> None:
    _, headers = await new_key(florin, scopes=[KeyScope.BATCHES_WRITE, KeyScope.READ])
    reply = await ask(florin, "POST", f"/v1/batches/bat_{'0' * 32}/resume", headers, {"resume_token": "x"})
    assert (reply.status_code, reply.json()["code"]) == (403, "scope_missing")


async def test_a_ticket_of_a_key_that_has_ended_opens_nothing(florin: Florin) -> None:
    key_id, headers = await new_key(florin)
    made = (await ask(florin, "POST", "/v1/stream/tickets", headers, {"origin": "https://shop.example"})).json()
    await florin.connection.execute("UPDATE api_keys SET expires_at = now() WHERE id = $1", (key_id,))
    merchant_id, digest = MerchantId(florin.demo.merchant_id), key_hash(made["ticket"])
    assert await use_ticket(florin.connection, merchant_id, ticket_sha256=digest, now=utc_now()) is None


async def test_uses_are_noted_in_groups_and_the_end_of_a_key_is_told_once(florin: Florin) -> None:
    used, headers = await new_key(florin)
    unused, _ = await new_key(florin, expires_at=utc_now() + timedelta(days=6))
    await new_key(florin, expires_at=utc_now() + timedelta(days=8))
    await ask(florin, "GET", "/v1/wallets", headers)
    merchant_id = MerchantId(florin.demo.merchant_id)
    for _ in range(2):
        await note(florin.payments, [(merchant_id, used)])
    found = {one.id: one for one in await list_api_keys(florin.connection, merchant_id)}
    last = found[used].last_used_at
    assert last is not None
    assert last.second == 0
    assert found[unused].last_used_at is None
    events = await florin.rows("SELECT data FROM events WHERE type = 'api_key.expiring'")
    assert len(events) == 1
    assert encode_id(API_KEY, unused) in events[0]["data"]
    await florin.require_promises()


def test_scopes_and_networks_are_read_with_care() -> None:
    assert parse_scopes(["read", "refunds:write", "read"], path="x") == (KeyScope.READ, KeyScope.REFUNDS_WRITE)
    assert parse_scopes(["read", "all"], path="x") == (KeyScope.ALL,)
    for wrong, said in ((["refund:write"], "did you mean refunds:write"), ([], "at least one")):
        with pytest.raises(Unprocessable, match=said):
            parse_scopes(wrong, path="x")
    assert parse_key_networks([" 10.0.0.0/8", "::1"], path="x") == ("10.0.0.0/8", "::1/128")
    with pytest.raises(Unprocessable, match=r"203\.0\.113\.0/24"):
        parse_key_networks(["10.0.0.1/8"], path="x")
    assert parse_key_networks(["::ffff:10.0.0.0/104"], path="x") == ("10.0.0.0/8",)
    with pytest.raises(Forbidden):
        require_usable((ip_network("10.0.0.0/8"),), None, client="unix", now=utc_now())
    require_usable((ip_network("10.0.0.0/8"),), None, client="::ffff:10.1.2.3", now=utc_now())
    assert decode_id(API_KEY, encode_id(API_KEY, UUID(int=1))) == UUID(int=1)

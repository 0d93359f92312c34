"""The pure parts of notifications: allowed addresses, redaction, filters, schedules."""

import time
from datetime import UTC, datetime
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.addresses import is_public, is_within
from core.breaker import Admission
from core.errors import Unprocessable
from core.events import EVENT_TYPES, is_wanted, parse_types
from core.ids import EndpointId, MerchantId
from core.redaction import EXCERPT_LENGTH_MAX, excerpt, redacted_data, redacted_url
from core.retry import retry_after_seconds
from server.concurrency.worker_count import WorkerCount
from server.db.webhooks.endpoints import Endpoint
from server.jobs.webhooks.endpoint_queue import CONCURRENCY_AT_FIRST, EndpointQueue
from server.uuid7 import uuid7

NOW = datetime(2026, 11, 22, 8, tzinfo=UTC)
PRIVATE = [
    "127.0.0.1",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "203.0.113.5",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "168.63.129.16",
    "192.88.99.1",
    "::",
    "::1",
    "::7f00:1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "fe80::1",
    "fc00::1",
    "fec0::1",
    "ff02::1",
    "100::1",
    "2001:db8::1",
    "3fff::1",
    "5f00::1",
    "2002:7f00:1::",
    "2002:a9fe:a9fe::",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::808:808",
    "64:ff9b:1:a9fe:a9:fe00:808:808",
    "2001:0:7f00:1::",
    "2607:f8b0::5efe:7f00:1",
    "100.127.255.255",
    "198.19.255.255",
    "172.31.255.255",
    "192.0.0.9",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:1ff:ffff::1",
    "2002:c0a8:1::1",
    "4000::1",
]
PUBLIC = [
    "8.8.8.8",
    "1.1.1.1",
    "100.128.0.1",
    "198.20.0.1",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2001:4860:4860::8888",
    "2001:200::1",
    "2620:4f:8000::1",
    "::ffff:8.8.8.8",
    "64:ff9b::808:808",
    "2002:808:808::1",
]


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_are_not_called(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_are_called(text: str) -> None:
    assert is_public(ip_address(text))


@given(st.integers(0, 2**32 - 1))
def test_a_disguise_makes_no_address_public(number: int) -> None:
    plain = ip_address(number)
    for disguise in (f"::ffff:{plain}", f"64:ff9b::{plain}"):
        assert not is_public(ip_address(disguise)) or is_public(plain)
    assert not is_public(ip_address((0x2002 << 112) | (number << 80) | 1)) or is_public(plain)


def test_networks_of_development_hold_mapped_addresses_too() -> None:
    networks = [ip_network("127.0.0.0/8"), ip_network("::1")]
    assert is_within(ip_address("::ffff:127.0.0.1"), networks)
    assert is_within(ip_address("::1"), networks)
    assert not is_within(ip_address("10.0.0.1"), networks)


SECRETS = [
    ("Authorization: Bearer s3cr3t-Tok-123", "s3cr3t"),
    ("Authorization: Basic dXNlcjpwYXNz", "dXNl"),
    ('{"password": "correct horse battery"}', "horse"),
    ("Set-Cookie: sid=abc; sess2=zzz9", "zzz9"),
    ("4242  4242  4242  4242", "4242"),
    ("4242_4242-4242 4242", "4242"),
    ('{"access_token":"AbCdef"}', "AbCdef"),
    ("client_secret=abc123", "abc123"),
    ("accessToken=x1y2", "x1y2"),
    ("pwd=foo", "foo"),
    ("AKIAIOSFODNN7EXAMPLE", "IOSF"),
    ("user%40example.com wrote", "user"),
    ("root@localhost", "root"),
    ("call +49 (30) 1234-5678", "1234"),
    ("fl_test_0123456789abcdef", "0123"),
    ("eyJhbGciOi.eyJzdWIi.c2ln", "eyJ"),
]


@pytest.mark.parametrize(("text", "secret"), SECRETS)
def test_an_excerpt_holds_no_secret(text: str, secret: str) -> None:
    assert secret not in excerpt(text)


def test_an_excerpt_keeps_the_error() -> None:
    said = '{"error": "unknown event type payment.succeeded", "shop": 17}'
    assert excerpt(said) == said


@pytest.mark.parametrize(
    "part", ["token ", "é", "é.+-", "a.b-", "token:", "1 ", "sk_", 'password"', "@a.", "x-", "1-._() ", "eyJ", "Cookie: "]
)
def test_no_answer_holds_up_the_worker(part: str) -> None:
    text = part * (2_000 // len(part))
    began = time.process_time()
    for _ in range(10):
        assert len(excerpt(text)) <= EXCERPT_LENGTH_MAX
    assert (time.process_time() - began) / 10 < 0.02


def test_urls_and_data_lose_private_parts() -> None:
    assert redacted_url("https://hooks.example/services/T0/B0?x=1") == "https://hooks.example/services/[redacted]?[redacted]"
    assert redacted_url("https://shop.example/hook") == "https://shop.example/hook"
    assert redacted_data({"id": "pay_1", "metadata": {"a": "b"}, "description": None}) == {
        "id": "pay_1",
        "metadata": "[redacted]",
        "description": None,
    }


def test_filters() -> None:
    assert parse_types([], path="") is None
    assert parse_types(["payment.*", "*"], path="") is None
    assert parse_types(["refund.*", "refund.*", "payment.expired"], path="") == ("refund.*", "payment.expired")
    for wrong in ("payment", "payment.paid", "pay*", "**", ""):
        with pytest.raises(Unprocessable):
            parse_types([wrong], path="$.event_types")
    for name in EVENT_TYPES:
        assert is_wanted(name, None)
        assert is_wanted(name, (name,))
        assert is_wanted(name, (name.partition(".")[0] + ".*",))
        assert not is_wanted(name, ("other.*",))


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("120", 120),
        ("99999999999999999999", 86_400),
        ("Sun, 22 Nov 2026 08:01:00 GMT", 60),
        ("Sun, 22 Nov 2026 07:00:00 GMT", 0),
        ("-1", None),
        ("soon", None),
        ("", None),
        ("١٢", None),
    ],
)
def test_retry_after(header: str, seconds: float | None) -> None:
    assert retry_after_seconds(header, now=NOW) == seconds


def a_queue(**settings: object) -> EndpointQueue:
    """A queue of an endpoint with these settings."""
    queue = EndpointQueue(MerchantId(uuid7()), EndpointId(uuid7()))
    queue.configure(an_endpoint(queue, **settings), workers=WorkerCount(2))
    return queue


def an_endpoint(queue: EndpointQueue, **settings: object) -> Endpoint:
    """The queue's endpoint."""
    fields = {"url": "https://a", "sealed_secret": b"", "created_at": NOW, "updated_at": NOW, **settings}
    return Endpoint(id=queue.endpoint_id, merchant_id=queue.merchant_id, **fields)  # type: ignore[arg-type]  # as given


def run(queue: EndpointQueue, now: float, *, delivered: bool, took_seconds: float = 0.1) -> Admission:
    """One attempt."""
    admission = queue.start(now=now)
    queue.end(admission, delivered=delivered, was_slow=not delivered, took_seconds=took_seconds, wait_seconds=0.0, now=now)
    return admission


def test_a_queue_without_settings_is_careful() -> None:
    queue = EndpointQueue(MerchantId(uuid7()), EndpointId(uuid7()))
    assert queue.room(now=0.0) == 1
    queue.configure(an_endpoint(queue, concurrency_max=4), workers=WorkerCount(1))
    assert queue.room(now=0.0) == 4
    assert a_queue(concurrency_max=200).room(now=0.0) == CONCURRENCY_AT_FIRST


def test_a_queue_keeps_its_share_of_the_rate() -> None:
    queue = a_queue(requests_per_second_max=10)
    starts = 0
    for tick in range(1_000):
        now = tick / 100
        while queue.may_start(now=now):
            run(queue, now, delivered=True)
            starts += 1
    assert 49 <= starts <= 52, "two workers: half of ten a second, for ten seconds"


def test_a_failing_endpoint_is_left_alone_for_longer_each_time_and_asked_by_one() -> None:
    queue = a_queue()
    now, holds = 0.0, []
    for _ in range(8):
        while not (held := queue.held_seconds(now=now)):
            assert queue.room(now=now) >= 1
            run(queue, now, delivered=False)
        holds.append(held)
        now += held
        assert queue.room(now=now) == 1
    assert holds == [10, 20, 40, 80, 160, 300, 300, 300]
    assert run(queue, now, delivered=True) is Admission.PROBE
    assert queue.room(now=now) > 0
    assert queue.is_sound


def test_results_of_before_the_breaker_opened_do_not_close_it() -> None:
    queue = a_queue()
    early = queue.start(now=0.0)
    while not queue.held_seconds(now=0.0):
        run(queue, 0.0, delivered=False)
    queue.end(early, delivered=True, was_slow=False, took_seconds=0.1, wait_seconds=0.0, now=1.0)
    assert not queue.is_sound
    assert queue.room(now=1.0) == 0


def test_a_new_address_resets_the_queue() -> None:
    queue = a_queue()
    while not queue.held_seconds(now=0.0):
        run(queue, 0.0, delivered=False)
    queue.configure(an_endpoint(queue, url="https://b"), workers=WorkerCount(1))
    assert queue.room(now=0.0) == CONCURRENCY_AT_FIRST


def test_slow_is_suspect_but_not_wrong() -> None:
    queue = a_queue()
    run(queue, 0.0, delivered=True, took_seconds=3.0)
    assert queue.is_suspect
    assert queue.room(now=0.0) == CONCURRENCY_AT_FIRST
    run(queue, 0.0, delivered=True)
    assert not queue.is_suspect


@pytest.mark.parametrize(("text", "secret"), [('"cvc": "123"', "123"), ("password:\n hunter2", "hunter2")])
def test_nothing_of_these_is_kept(text: str, secret: str) -> None:
    assert secret not in excerpt(text)


def test_an_invalid_url_is_not_shown() -> None:
    assert redacted_url("https://[bad?token=abc") == "[redacted]"

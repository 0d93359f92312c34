"""Idempotency keys, retry schedules and signatures; signatures also against the reference implementation."""

import json
from datetime import UTC, datetime
from uuid import UUID

import pytest
import standardwebhooks
from hypothesis import given
from hypothesis import strategies as st

from core.errors import InvalidSignature, Malformed
from core.idempotency import (
    InFlight,
    KeyedOperation,
    Mismatch,
    Replay,
    Reply,
    Resume,
    StoredKey,
    decide,
    fingerprint,
    parse_key,
)
from core.ids import ResourceId
from core.retry import DELIVERY_DELAYS_SECONDS, next_attempt_at
from core.signing import StandardKey, sign_standard, sign_timestamped, standard_secret, verify_standard, verify_timestamped

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
PRINT = fingerprint("POST", "/v1/payments", b"{}")
SECRET = standard_secret(b"x" * 32)


def stored(**fields: object) -> StoredKey:
    values: dict[str, object] = {
        "operation": KeyedOperation.CREATE,
        "fingerprint": PRINT,
        "resource_id": ResourceId(UUID(int=1)),
        "in_flight_until": NOW,
        "is_in_flight": False,
        "reply": None,
        **fields,
    }
    return StoredKey(**values)  # type: ignore[arg-type]


def test_a_key_is_replayed_refused_awaited_or_taken_up() -> None:
    assert decide(stored(reply=Reply(201, b"{}")), PRINT) == Replay(Reply(201, b"{}"))
    assert decide(stored(), b"other") == Mismatch()
    assert decide(stored(reply=Reply(201, b"{}")), b"other") == Mismatch()
    assert decide(stored(is_in_flight=True), PRINT) == InFlight()
    assert decide(stored(), PRINT) == Resume(stored())


def test_fingerprints_tell_where_one_part_ends() -> None:
    assert fingerprint("POST", "/a", b"b") != fingerprint("POST", "/", b"ab")


@pytest.mark.parametrize(("header", "key"), [("abc", "abc"), ('"abc"', "abc"), (' "a\\"b" ', 'a"b'), ("x" * 255, "x" * 255)])
def test_a_key_is_bare_or_quoted(header: str, key: str) -> None:
    assert parse_key(header) == key


@pytest.mark.parametrize("header", [None, "", '""', "x" * 256, "käse", "a\tb"])
def test_other_keys_are_refused(header: str | None) -> None:
    with pytest.raises(Malformed):
        parse_key(header)


def test_deliveries_are_attempted_for_about_75_hours() -> None:
    waits = [next_attempt_at(DELIVERY_DELAYS_SECONDS, attempts=n, now=NOW) for n in range(1, len(DELIVERY_DELAYS_SECONDS))]
    hours = sum((wait - NOW).total_seconds() for wait in waits if wait) / 3_600
    assert 70 < hours < 80
    assert next_attempt_at(DELIVERY_DELAYS_SECONDS, attempts=len(DELIVERY_DELAYS_SECONDS), now=NOW) is None


@given(st.integers(0, len(DELIVERY_DELAYS_SECONDS) - 1), st.floats(0, 1, exclude_max=True))
def test_jitter_stays_within_a_fifth(attempts: int, jitter: float) -> None:
    at = next_attempt_at(DELIVERY_DELAYS_SECONDS, attempts=attempts, now=NOW, jitter=jitter)
    assert at is not None
    exact = DELIVERY_DELAYS_SECONDS[attempts]
    assert 0.8 * exact - 0.001 <= (at - NOW).total_seconds() <= 1.2 * exact + 0.001


@given(st.text(max_size=200))
def test_the_reference_implementation_verifies_our_signatures(text: str) -> None:
    body = json.dumps({"text": text})
    now = int(datetime.now(UTC).timestamp())
    secrets = [standard_secret(b"old" * 10), SECRET]
    signature = sign_standard([StandardKey(one) for one in secrets], message_id="evt_1", timestamp=now, body=body.encode())
    headers = {"webhook-id": "evt_1", "webhook-timestamp": str(now), "webhook-signature": signature}
    assert standardwebhooks.Webhook(SECRET).verify(body, headers) == {"text": text}


def test_we_verify_the_reference_implementation() -> None:
    moment = datetime.now(UTC)
    signature = standardwebhooks.Webhook(SECRET).sign("evt_1", moment, "{}")
    timestamp = str(int(moment.timestamp()))
    verify_standard([SECRET], message_id="evt_1", timestamp=timestamp, signature=signature, body=b"{}", now=moment.timestamp())
    for wrong in (
        {"body": b"{ }"},
        {"message_id": "evt_2"},
        {"secrets": [standard_secret(b"y" * 32)]},
        {"now": moment.timestamp() + 301},
    ):
        values: dict[str, object] = {
            "secrets": [SECRET],
            "message_id": "evt_1",
            "timestamp": timestamp,
            "signature": signature,
            "body": b"{}",
            "now": moment.timestamp(),
            **wrong,
        }
        with pytest.raises(InvalidSignature):
            verify_standard(values.pop("secrets"), **values)  # type: ignore[arg-type]


def test_timestamped_signatures_hold_while_a_secret_rotates() -> None:
    header = sign_timestamped("new", timestamp=1_000, body=b"{}")
    verify_timestamped(["old", "new"], header=header, body=b"{}", now=1_100)
    for secrets, body, now in ((["old"], b"{}", 1_000), (["new"], b"{ }", 1_000), (["new"], b"{}", 1_301), (["new"], b"{}", 699)):
        with pytest.raises(InvalidSignature):
            verify_timestamped(secrets, header=header, body=body, now=now)


@pytest.mark.parametrize("header", ["", "t=1000", "v1=00", "t=x,v1=00", "t=1000,v1=", "t=" + "9" * 99 + ",v1=00", "t=1000,v1=é"])
def test_odd_headers_are_refused(header: str) -> None:
    with pytest.raises(InvalidSignature):
        verify_timestamped(["new"], header=header, body=b"{}", now=1_000)

"""The sync flow of the Python peers without its I/O: statements, ids, signatures and replies.

Two transactions with the PSP's call between them, on Florin's schema: they write the rows that Florin writes for a payment, one
payment at a time. Idempotency keys, compare-and-set, sequence, ledger, wallet, outbox and the delivery's result are included;
fees, fraud, routing, breakers, rechecks, retries and everything else of a payment server are not, which is the peers' advantage.
"""

import base64
import hashlib
import hmac
import os
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec

IN_FLIGHT_SECONDS = 30
PSP_SECONDS = 20.0


class Configuration(msgspec.Struct, frozen=True):
    """The configuration of a peer."""

    database_url: str
    psp_url: str
    psp_account_id: UUID
    webhook_secret: str
    connections_max: int
    descriptor: int


def read_configuration(path: str) -> Configuration:
    """Read the file that `bench.lab.subjects` wrote."""
    return msgspec.json.decode(Path(path).read_bytes(), type=Configuration)


MERCHANT_OF_KEY = "SELECT merchant_id FROM api_keys WHERE secret_sha256 = $1 AND revoked_at IS NULL"
ENDPOINTS = "SELECT id, url FROM webhook_endpoints WHERE merchant_id = $1 AND enabled"

INSERT_KEY = """
INSERT INTO idempotency_keys (merchant_id, key, fingerprint, payment_id, in_flight_until, created_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (merchant_id, key) DO NOTHING
"""
FIND_KEY = "SELECT fingerprint, reply_status, reply_body FROM idempotency_keys WHERE merchant_id = $1 AND key = $2"
INSERT_PAYMENT = """
INSERT INTO payment_requests (
    merchant_id, id, psp_account_id, operation_id, order_id, amount_minor, currency, status, version, idempotency_key,
    expires_at, due_at, created_at, updated_at, is_sync)
VALUES ($1, $2, $3, $4, $5, $6, $7, 'PENDING', 1, $8, $9, $9, $10, $10, true)
"""
INSERT_OPERATION = """
INSERT INTO psp_operations (merchant_id, id, payment_id, psp_account_id, kind, amount_minor, currency, state, first_sent_at)
VALUES ($1, $2, $3, $4, 'charge', $5, $6, 'SENT', $7)
"""
INSERT_LOG = """
INSERT INTO payment_logs (merchant_id, id, payment_id, version, source, kind, from_status, to_status, reference, created_at)
VALUES ($1, $2, $3, $4, 'create', $5, $6, $7, $8, $9)
"""
CAPTURE_PAYMENT = """
UPDATE payment_requests
   SET status = 'SUCCEEDED', version = 2, reference = $3, captured_minor = amount_minor, due_at = NULL, updated_at = $4
 WHERE merchant_id = $1 AND id = $2 AND version = 1
"""
END_OPERATION = "UPDATE psp_operations SET state = 'DONE' WHERE merchant_id = $1 AND payment_id = $2 AND id = $3"
NEXT_NUMBERS = """
INSERT INTO merchant_sequences AS s (merchant_id, last_seq, last_ledger_seq) VALUES ($1, 1, 2)
ON CONFLICT (merchant_id) DO UPDATE SET last_seq = s.last_seq + 1, last_ledger_seq = s.last_ledger_seq + 2
RETURNING last_seq, last_ledger_seq
"""
INSERT_EVENT = """
INSERT INTO events (merchant_id, seq, id, type, payment_id, data, created_at)
VALUES ($1, $2, $3, 'payment.succeeded', $4, $5, $6)
"""
STORE_REPLY = """
UPDATE idempotency_keys SET reply_status = 201, reply_body = $3, in_flight_until = $4 WHERE merchant_id = $1 AND key = $2
"""
INSERT_ENTRY = """
INSERT INTO ledger_entries (merchant_id, seq, transfer_id, kind, account, payment_id, currency, amount_minor, created_at)
VALUES ($1, $2, $3, 'charge', $4, $3, $5, $6, $7)
"""
CREDIT_WALLET = """
INSERT INTO wallets AS w (merchant_id, currency, kind, balance_minor, updated_at)
VALUES ($1, $2, 'merchant_available', $3, $4)
ON CONFLICT (merchant_id, currency, kind)
DO UPDATE SET balance_minor = w.balance_minor + excluded.balance_minor, updated_at = excluded.updated_at
"""
INSERT_DELIVERY = """
INSERT INTO deliveries (merchant_id, endpoint_id, event_seq, state, is_ordered, attempts, due_at, created_at, updated_at)
VALUES ($1, $2, $3, 'PENDING', false, 1, $4, $5, $5)
"""
END_DELIVERY = """
UPDATE deliveries SET state = 'DELIVERED', due_at = NULL, last_status = $4, updated_at = $5
 WHERE merchant_id = $1 AND endpoint_id = $2 AND event_seq = $3 AND state = 'PENDING'
"""
Statement = tuple[str, tuple[Any, ...]]


class NewPayment(msgspec.Struct, frozen=True):
    """A merchant's request."""

    amount: int
    currency: str
    order_id: str
    token: str
    confirm: bool = True


@dataclass(frozen=True, slots=True)
class Payment:
    """A payment on its way."""

    merchant_id: UUID
    id: UUID
    operation_id: UUID
    key: str
    fingerprint: bytes
    wanted: NewPayment
    now: datetime

    def accepted(self, account_id: UUID) -> list[Statement]:
        """The parameters of transaction 1 after its key."""
        wanted, now = self.wanted, self.now
        return [
            (
                INSERT_PAYMENT,
                (
                    self.merchant_id,
                    self.id,
                    account_id,
                    self.operation_id,
                    wanted.order_id,
                    wanted.amount,
                    wanted.currency,
                    self.key,
                    now + timedelta(seconds=60),
                    now,
                ),
            ),
            (
                INSERT_OPERATION,
                (self.merchant_id, self.operation_id, self.id, account_id, wanted.amount, wanted.currency, now),
            ),
            (INSERT_LOG, (self.merchant_id, uuid7(), self.id, 1, "accepted", None, "PENDING", None, now)),
        ]

    def own_key(self) -> Statement:
        """The key's own row, which shows whether it is new."""
        until = self.now + timedelta(seconds=IN_FLIGHT_SECONDS)
        return INSERT_KEY, (self.merchant_id, self.key, self.fingerprint, self.id, until, self.now)

    def psp_body(self) -> bytes:
        """The body of the PSP call."""
        return msgspec.json.encode(
            {
                "amount_minor": self.wanted.amount,
                "currency": self.wanted.currency,
                "capture": "automatic",
                "merchant_id": self.merchant_id,
                "payment_id": self.id,
                "operation_id": self.operation_id,
                "token": self.wanted.token,
            }
        )

    def rendered(self, reference: str) -> bytes:
        """The payment as merchants see it."""
        return msgspec.json.encode(
            {
                "id": f"pay_{self.id.hex}",
                "order_id": self.wanted.order_id,
                "amount": self.wanted.amount,
                "currency": self.wanted.currency,
                "status": "SUCCEEDED",
                "success": 1,
                "captured_amount": self.wanted.amount,
                "refunded_amount": 0,
                "psp_reference": reference,
                "created_at": self.now,
            }
        )

    def captured(self, reference: str, body: bytes, now: datetime) -> list[Statement]:
        """The parameters of transaction 2 between the compare-and-set and the numbers."""
        return [
            (END_OPERATION, (self.merchant_id, self.id, self.operation_id)),
            (INSERT_LOG, (self.merchant_id, uuid7(), self.id, 2, "captured", "PENDING", "SUCCEEDED", reference, now)),
            (STORE_REPLY, (self.merchant_id, self.key, body.decode(), now)),
        ]

    def posted(self, account_id: UUID, event_id: UUID, seq: int, last_entry: int, body: bytes, now: datetime) -> list[Statement]:
        """The rest of transaction 2, except the deliveries."""
        wanted, merchant_id = self.wanted, self.merchant_id
        return [
            (INSERT_EVENT, (merchant_id, seq, event_id, self.id, body.decode(), now)),
            (
                INSERT_ENTRY,
                (merchant_id, last_entry - 1, self.id, f"psp_receivable:{account_id.hex}", wanted.currency, -wanted.amount, now),
            ),
            (INSERT_ENTRY, (merchant_id, last_entry, self.id, "merchant_available", wanted.currency, wanted.amount, now)),
            (CREDIT_WALLET, (merchant_id, wanted.currency, wanted.amount, now)),
        ]


def new_payment(merchant_id: UUID, key: str, body: bytes) -> Payment:
    """Validate a request. Raises `msgspec.ValidationError`."""
    wanted = msgspec.json.decode(body, type=NewPayment)
    digest = hashlib.sha256(b"POST /v1/payments\n" + body).digest()
    return Payment(merchant_id, uuid7(), uuid7(), key, digest, wanted, datetime.now(UTC))


def read_reference(body: bytes, payment: Payment) -> str:
    """The PSP's reference, if its answer is about this operation."""
    intent = msgspec.json.decode(body)
    assert intent["status"] == "captured"
    assert intent["operation_id"] == str(payment.operation_id)
    assert intent["captured_minor"] == payment.wanted.amount
    reference: str = intent["id"]
    return reference


def envelope(event_id: UUID, seq: int, body: bytes, now: datetime) -> bytes:
    """The event as it is sent."""
    head = {"id": f"evt_{event_id.hex}", "type": "payment.succeeded", "seq": seq, "timestamp": now, "data": msgspec.Raw(body)}
    return msgspec.json.encode(head)


def signed_headers(secret: str, event_id: UUID, body: bytes) -> dict[str, str]:
    """The headers of Standard Webhooks."""
    timestamp = str(int(time.time()))
    message_id = f"evt_{event_id.hex}"
    signed = f"{message_id}.{timestamp}.".encode() + body
    digest = hmac.digest(base64.b64decode(secret.removeprefix("whsec_")), signed, "sha256")
    return {
        "content-type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
    }


def key_hash(key: str) -> bytes:
    """The stored hash of a key."""
    return hashlib.sha256(key.encode()).digest()


def uuid7() -> UUID:
    """RFC 9562, 5.7."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | (0x7 << 76) | (int.from_bytes(os.urandom(10), "big") & ((1 << 76) - 1))
    return UUID(int=(value & ~(0x3 << 62)) | (0x2 << 62))

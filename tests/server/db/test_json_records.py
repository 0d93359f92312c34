"""Rows as one JSON document: the fields of a struct come out of PostgreSQL by name, whatever they contain."""

from datetime import UTC, datetime
from uuid import UUID, uuid4

import msgspec
import pytest

from core.ids import PaymentId
from core.payment import Status
from server.db import json_records
from server.db.connection import Connection


class Part(msgspec.Struct, frozen=True):
    """A nested row."""

    name: str
    amount: int


class Everything(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A field of each type."""

    number: int
    id: PaymentId
    status: Status
    text: str | None
    blob: bytes
    at: datetime
    share: float
    is_so: bool
    raw: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    parts: list[Part] = []
    rare: int = 0


TEXTS = ["", "NULL", "a,b", '"', "\\", "{}", "日本", "😀", " ", "line\nbreak", "\x1f\x7f\u2028", "it's", "$1", "\\u0041", None]


async def test_fields_come_back_by_name(connection: Connection) -> None:
    now = datetime(2026, 11, 26, 13, 37, 5, 123_456, tzinfo=UTC)
    ids = [PaymentId(uuid4()) for _ in TEXTS]
    rows = [
        Everything(
            number=2**62 - number, id=ids[number], status=Status.UNKNOWN, text=text, blob=b"\x00\xff" * number, at=now,
            share=0.1, is_so=number % 2 == 0,
        )
        for number, text in enumerate(TEXTS)
    ]  # fmt: skip
    found = await connection.query(
        f"""
        SELECT number, id, status, text, decode(blob, 'base64'), at, share, is_so, raw, rare
          FROM json_to_recordset($1::json) AS i ({json_records.columns(Everything)})
        """,
        json_records.encode(rows),
    )
    assert [(row[0], row[1], row[2], row[3], bytes(row[4]), *row[5:8]) for row in found] == [
        (one.number, one.id, one.status.value, one.text, one.blob, one.at, one.share, one.is_so) for one in rows
    ]
    assert all(row[8:] == (None, None) for row in found), "what is left out is NULL"


async def test_raw_json_keeps_its_text_and_nested_rows_their_order(connection: Connection) -> None:
    text = b'{"b": 1,  "a":"\\u00e4\\"" , "b":2}'
    row = Everything(
        number=1, id=PaymentId(UUID(int=1)), status=Status.PENDING, text=None, blob=b"", at=datetime.now(UTC), share=1.0,
        is_so=True, raw=msgspec.Raw(text), parts=[Part("z", 1), Part("a", -2)], rare=7,
    )  # fmt: skip
    found = await connection.query(
        f"""
        SELECT i.raw::text, i.rare, p.name, p.amount
          FROM json_to_recordset($1::json) AS i ({json_records.columns(Everything)})
         CROSS JOIN LATERAL ROWS FROM (json_to_recordset(i.parts) AS ({json_records.columns(Part)}))
               WITH ORDINALITY AS p (name, amount, number)
         ORDER BY p.number
        """,
        json_records.encode([row]),
    )
    assert found == [(text.decode(), 7, "z", 1), (text.decode(), 7, "a", -2)]


@pytest.mark.parametrize("annotation", [object, set[int], int | str, tuple[int, str]])
def test_a_type_without_a_column_is_refused_at_import(annotation: object) -> None:
    with pytest.raises(TypeError, match="has no SQL type"):
        json_records.sql_type(annotation)

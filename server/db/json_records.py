"""Rows as one JSON document: a struct's fields are a statement's columns, by name.

A group of rows is one parameter, the JSON array of its structs, and the statement begins with `FROM json_to_recordset($1::json)
AS i (merchant_id uuid, ...)`, whose column list is generated from the fields. msgspec encodes UUIDs, times and enums, and a field
cannot be bound to the wrong position. A field that is omitted from the document is NULL. bytes come as base64 text, for
`decode(x, 'base64')`; a list, a struct or `msgspec.Raw` is a column of type json, which keeps its text.

Source: PostgreSQL manual, 9.16 JSON functions.
"""

from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec import inspect

_encoder = msgspec.json.Encoder()
_SQL_TYPES: dict[type[inspect.Type], str] = {
    inspect.UUIDType: "uuid",
    inspect.StrType: "text",
    inspect.EnumType: "text",
    inspect.BytesType: "text",
    inspect.IntType: "bigint",
    inspect.FloatType: "double precision",
    inspect.BoolType: "boolean",
    inspect.DateTimeType: "timestamptz",
    inspect.RawType: "json",
    inspect.ListType: "json",
    inspect.DictType: "json",
    inspect.StructType: "json",
}


def encode(records: Sequence[msgspec.Struct]) -> str:
    """The document of these rows, as a parameter."""
    return _encoder.encode(records).decode()


def columns(record: type[msgspec.Struct]) -> str:
    """The column list of `json_to_recordset` for a struct: its fields with their SQL types, in order.

    Raises `TypeError`, at import, for a field whose type has no SQL type.
    """
    return ", ".join(f"{field.name} {sql_type(field.type)}" for field in msgspec.structs.fields(record))


def sql_type(annotation: Any) -> str:
    """The SQL type of a field. Raises `TypeError` if it has none."""
    described = inspect.type_info(annotation)
    found = described.types if isinstance(described, inspect.UnionType) else (described,)
    names = {_SQL_TYPES.get(type(one)) for one in found if not isinstance(one, inspect.NoneType)}
    name = names.pop() if len(names) == 1 else None
    if name is None:
        raise TypeError(f"{annotation} has no SQL type")
    return name


def select_list(record: type[msgspec.Struct], alias: str) -> str:
    """The select list from which a struct is made as `Record(*row)`: its fields, in order, of a table's alias."""
    return ", ".join(f"{alias}.{field.name}" for field in msgspec.structs.fields(record) if sql_type(field.type))

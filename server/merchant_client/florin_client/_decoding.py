"""Reads JSON documents into the dataclasses of `florin_client.resources`.

The API adds fields and values without a new version, so unknown fields are ignored, unknown values of a `Literal` are kept, and a
missing field that may be None is None.
"""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from florin_client.errors import Unreadable

T = TypeVar("T")
_PLAIN = (bool, int, str)


def decode_json(kind: type[T], content: bytes | str) -> T:
    """Read a JSON text as `kind`. Raises `Unreadable`."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from error
    return decode(kind, document)


def decode(kind: type[T], value: Any) -> T:
    """Read a JSON value as `kind`: a dataclass, a list or dict of them, a datetime or a plain value. Raises `Unreadable`."""
    try:
        return cast("T", _decode(kind, value))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Unreadable(f"not a {getattr(kind, '__name__', kind)}: {error}") from error


def _decode(kind: Any, value: Any) -> Any:
    origin = get_origin(kind)
    if origin in (Union, UnionType):
        if value is None:
            return None
        (kind,) = (one for one in get_args(kind) if one is not NoneType)
        return _decode(kind, value)
    if origin is list:
        (item,) = get_args(kind)
        return [_decode(item, one) for one in _checked(list, value)]
    if origin in (dict, Mapping):
        _, item = get_args(kind)
        return {name: _decode(item, one) for name, one in _checked(dict, value).items()}
    if kind is datetime:
        return datetime.fromisoformat(value)
    if is_dataclass(kind):
        return _decode_fields(kind, _checked(dict, value))
    return _checked(kind, value) if kind in _PLAIN else value


def _decode_fields(kind: Any, value: dict[str, Any]) -> Any:
    given = {}
    for name, hint in _hints(kind).items():
        if name in value:
            given[name] = _decode(hint, value[name])
        elif NoneType in get_args(hint):
            given[name] = None
        else:
            raise ValueError(f"{name} is missing")
    return kind(**given)


def _checked(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"{type(value).__name__} instead of {kind.__name__}")
    return value


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in fields(kind)}

"""Encodes nested fields as a form in the way of Stripe's API: `a[b][0][c]=v`."""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import urlencode

Field = str | int | bool | None | Mapping[str, "Field"] | Sequence["Field"]


def encode(fields: Mapping[str, Field]) -> bytes:
    """The form, without fields that are None."""
    return urlencode(list(_flat("", fields))).encode("ascii")


def _flat(prefix: str, value: Field) -> Iterator[tuple[str, str]]:
    match value:
        case None:
            return
        case bool():
            yield prefix, "true" if value else "false"
        case str() | int():
            yield prefix, str(value)
        case Mapping():
            for name, inner in value.items():
                yield from _flat(f"{prefix}[{name}]" if prefix else name, inner)
        case _:
            for position, inner in enumerate(value):
                yield from _flat(f"{prefix}[{position}]", inner)

"""Lists, whole and in pages."""

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """The number of deliveries that will be made."""

    deliveries: int


class Page(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A page of a list. `next_cursor` asks for the next one."""

    data: list[T]
    has_more: bool
    next_cursor: str | None


class Whole(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """A whole list."""

    data: list[T]

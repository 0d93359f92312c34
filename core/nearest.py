"""The known name that is nearest to a mistyped one, for messages about unknown names."""

import difflib
from collections.abc import Iterable

SHOWN_LENGTH_MAX = 60
LISTED_MAX = 32
LISTED_WITH_NEAREST_MAX = 16


def unknown(what: str, given: str, known: Iterable[str]) -> str:
    """A message about an unknown name: the nearest one, if one is near, and all that are known, unless they are many."""
    names = list(known)
    by_folded = {_folded(name): name for name in reversed(names)}
    near = difflib.get_close_matches(_folded(given[:SHOWN_LENGTH_MAX]), by_folded, n=1)
    hint = f": did you mean {by_folded[near[0]]}?" if near else ""
    return f"unknown {what} {given[:SHOWN_LENGTH_MAX]!r}{hint}{_listed(names, is_near=bool(near))}"


def _listed(names: list[str], *, is_near: bool) -> str:
    if len(names) > (LISTED_WITH_NEAREST_MAX if is_near else LISTED_MAX):
        return "" if is_near else f": none of {len(names)} has a name like it"
    return f"{'' if is_near else ':'} known are {', '.join(names) or 'none'}"


def _folded(name: str) -> str:
    return name.lower().replace("-", "_")

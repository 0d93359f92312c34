"""What may be kept of a text that somebody else wrote: no address of a person, no number of a card, nothing that opens a door.

Used for what merchants' endpoints answer, of which an excerpt goes into the log of deliveries. It takes away rather too much.
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

EXCERPT_LENGTH_MAX = 500
REDACTED = "[redacted]"

_NAMES = "bearer|basic|token|secret|password|passwd|api[_-]?key|authorization|cookie|session"
_SECRETS = (
    r"[\w.+-]+@[\w-]+(?:\.[\w-]+)+",  # an e-mail address
    rf"(?i:\b(?:{_NAMES})\b[\"']?\s*[:=]?\s*[\"']?)[^\s\"',;<>&]+",  # what follows such a name
    r"\b(?:fl_(?:test|live)|whsec|sk|pk|rk|ghp|xox[a-z])_?[\w+/=-]{8,}",  # a key, by its prefix
    r"\beyJ[\w-]+\.[\w-]+\.[\w-]*",  # a JSON web token
    r"\b[0-9A-Fa-f]{32,}\b",
    r"[A-Za-z0-9+/_-]{40,}={0,2}",  # long random digits
    r"\+?\d(?:[ ()./-]?\d){7,}",  # a number of a card, an account or a telephone
)
_SECRET = re.compile("|".join(_SECRETS))
_UNPRINTABLE = re.compile(r"[^\x09\x0a\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]")

PERSONAL = frozenset({"description", "metadata", "return_url", "payment_url", "statement_descriptor", "order_id", "reason"})
"""Fields of what events tell that may hold what merchants know of their customers, or lead to a page of theirs."""


def excerpt(text: str) -> str:
    """The beginning of a text, without what is somebody's secret."""
    return _SECRET.sub(REDACTED, _UNPRINTABLE.sub("�", text[: 4 * EXCERPT_LENGTH_MAX]))[:EXCERPT_LENGTH_MAX]


def redacted_url(url: str) -> str:
    """A URL without its query, where tokens are."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}" + ("?" + REDACTED if parts.query else "")


def redacted_data(data: Mapping[str, object]) -> dict[str, object]:
    """What an event tells, without what is personal."""
    return {name: REDACTED if name in PERSONAL and value not in (None, {}, "") else value for name, value in data.items()}

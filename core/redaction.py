"""Removes secrets and personal data from texts that somebody else wrote, before they are stored.

It is used for excerpts of merchants' replies in the delivery log. It removes too much rather than too little: numbers, tokens,
addresses and everything after a word like "password".
"""

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

EXCERPT_LENGTH_MAX = 500
REDACTED = "[redacted]"

_NAMES = "bearer|basic|token|secret|passwor[dt]|passwd|pwd|api[_-]?key|authori[sz]ation|cookie|sess|signature|credential|cvc|cvv"
_VALUE = r"(?:\"[^\"]{0,500}+(?:\"|\Z)|'[^']{0,500}+(?:'|\Z)|[^\s\"',;<>&]{1,500}+)"
_NAMED = (
    rf"(?i:(?<![A-Za-z0-9])[\w-]{{0,20}}(?:{_NAMES})[\w-]{{0,20}})[\"']?[ \t]{{0,3}}(?:[:=]\s{{0,3}})?"
    rf"(?:(?i:bearer|basic)[ \t]{{1,3}})?{_VALUE}"
)
"""A name that announces a secret, and the value that follows it."""

_SECRETS = (
    r"(?i:set-cookie|cookie)\s{0,3}:[^\n]{0,1000}+",
    _NAMED,
    r"(?<![\w.+%-])[\w.+-]{1,64}+(?:@|%40)[\w-]{1,63}+(?:\.[\w-]{1,63}+){0,8}",  # an e-mail address
    r"\b(?:fl_(?:test|live)|whsec|sk|pk|rk|ghp|xox[a-z]|AKIA)_?[\w+/=-]{8,200}+",  # a key, by its prefix
    r"\beyJ[\w-]{1,500}+\.[\w-]{1,500}+\.?[\w-]{0,500}+",  # a JSON web token
    r"(?<![0-9A-Za-z])[0-9A-Fa-f]{32,500}+",
    r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{40,500}+={0,2}",  # long random digits
    r"(?<!\d)\d(?:[ ()./_\u2010-\u2015-]{0,3}\d){7,40}+",  # a card, account or telephone number
)
_SECRET = re.compile("|".join(_SECRETS), re.ASCII)
_UNPRINTABLE = re.compile(r"[^\x09\x0a\x20-\x7e\u00a0-\ud7ff\ue000-\ufffd]")

PERSONAL = frozenset({"description", "metadata", "return_url", "payment_url", "statement_descriptor", "reason"})
"""Fields of event data that may contain details of a customer, or lead to a page of theirs."""


def excerpt(text: str) -> str:
    """The beginning of a text, without secrets."""
    return _SECRET.sub(REDACTED, _UNPRINTABLE.sub("�", text[: 2 * EXCERPT_LENGTH_MAX]))[:EXCERPT_LENGTH_MAX]


def redacted_url(url: str) -> str:
    """A URL without the parts that carry tokens: its query, and its path except for the first segment."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return REDACTED
    first, _, rest = parts.path.lstrip("/").partition("/")
    path = f"/{first}" + (f"/{REDACTED}" if rest else "")
    return f"{parts.scheme}://{parts.netloc}{path}" + ("?" + REDACTED if parts.query else "")


def redacted_data(data: Mapping[str, object]) -> dict[str, object]:
    """The data of an event, without personal details."""
    return {name: REDACTED if name in PERSONAL and value not in (None, {}, "") else value for name, value in data.items()}

"""Finds card numbers in free text, so that the text can be refused: card data must never enter Florin (promise:no-card-data).

A card number is a run of digits, possibly grouped by single spaces or hyphens, with a leading digit, a length and a Luhn check
digit that an issuer uses (ISO/IEC 7812-1). Order numbers of other lengths or with another check digit pass. So do hexadecimal
identifiers: one UUID in a few thousand contains such digits by chance, and shops use UUIDs as keys of real payments.
"""

import re

_RUN = re.compile(r"(?<!\d)[2-6](?:[ -]?\d){11,18}(?!\d)", re.ASCII)
_HEX_IDENTIFIER = re.compile(
    r"(?<![0-9A-Za-z])(?=[0-9-]*[A-Fa-f])"
    r"(?:[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{20,})"
    r"(?![0-9A-Za-z])"
)
_LENGTHS_BY_LEADING_DIGIT = {
    "2": frozenset({16}),
    "3": frozenset({14, 15, 16}),
    "4": frozenset({13, 16, 19}),
    "5": frozenset({16}),
    "6": frozenset({16, 17, 18, 19}),
}


def contains_card_number(text: str) -> bool:
    """Return whether the text contains what looks like a card number."""
    runs = _RUN.finditer(_HEX_IDENTIFIER.sub("", text))
    return any(_is_card_number(re.sub(r"[ -]", "", run.group())) for run in runs)


def _is_card_number(digits: str) -> bool:
    return len(digits) in _LENGTHS_BY_LEADING_DIGIT[digits[0]] and _luhn_sum(digits) % 10 == 0


def _luhn_sum(digits: str) -> int:
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return sum(int(digit) for digit in digits[-1::-2]) + sum(value - 9 if value > 9 else value for value in doubled)

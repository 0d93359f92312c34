"""Card numbers must never enter: finds them in free text so that the text can be refused.

A card number is a run of digits, possibly grouped by single spaces or hyphens, with a leading digit, a length and a Luhn
check digit that an issuer uses (ISO/IEC 7812-1). Order numbers of other lengths or with another check digit pass.
"""

import re

_RUN = re.compile(r"(?<!\d)[2-6](?:[ -]?\d){11,18}(?!\d)", re.ASCII)
_LENGTHS_BY_LEADING_DIGIT = {
    "2": frozenset({16}),
    "3": frozenset({14, 15, 16}),
    "4": frozenset({13, 16, 19}),
    "5": frozenset({16}),
    "6": frozenset({16, 17, 18, 19}),
}


def contains_card_number(text: str) -> bool:
    """Whether the text holds what looks like a card number."""
    return any(_is_card_number(re.sub(r"[ -]", "", match.group())) for match in _RUN.finditer(text))


def _is_card_number(digits: str) -> bool:
    return len(digits) in _LENGTHS_BY_LEADING_DIGIT[digits[0]] and _luhn_sum(digits) % 10 == 0


def _luhn_sum(digits: str) -> int:
    doubled = (int(digit) * 2 for digit in digits[-2::-2])
    return sum(int(digit) for digit in digits[-1::-2]) + sum(value - 9 if value > 9 else value for value in doubled)

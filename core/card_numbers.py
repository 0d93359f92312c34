"""Finds card numbers in free text, so that the text can be refused: card data must never enter Florin (promise:no-card-data).

A card number is digits of any script with the leading digits, the length and the Luhn check digit of an issuer (ISO/IEC 7812-1).
They may stand in groups with short separators between them, beside other groups: each window of whole groups is tried. Some
identifiers are taken out first, because they hold such digits by chance and are used as keys of real payments: hexadecimal ones
(UUIDs), times (ISO 8601), and IBANs and parcel numbers (USPS, SSCC) with their own check digits. Order numbers of other lengths
or with another check digit pass. The guard of the API and the doctor use this one definition.
"""

import re
from itertools import accumulate
from unicodedata import digit

SEPARATOR_LENGTH_MAX = 3
DIGITS_MIN, DIGITS_MAX = 13, 19

_RUN = re.compile(rf"[0-9](?:[^0-9A-Za-z]{{0,{SEPARATOR_LENGTH_MAX}}}[0-9]){{{DIGITS_MIN - 1},}}")
_GROUP = re.compile(r"[0-9]+")
_HEX_IDENTIFIER = re.compile(
    r"(?<![0-9A-Za-z])"
    r"(?:[0-9A-Fa-f]{8}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{4}-[0-9A-Fa-f]{12}|[0-9A-Fa-f]{20,})"
    r"(?![0-9A-Za-z])"
)
_TIME = re.compile(
    r"(?<![0-9])(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])"
    r"(?:[T ][0-2][0-9]:[0-5][0-9](?::[0-6][0-9](?:[.,][0-9]{1,9})?)?(?: ?(?:Z|[+-][0-2][0-9]:?[0-5][0-9]))?)?(?![0-9])"
)
_IBAN = re.compile(r"(?<![0-9A-Za-z])[A-Z]{2}[0-9]{2}(?: ?[0-9A-Z]{4}){2,7}(?: ?[0-9A-Z]{1,3})?(?![0-9A-Za-z])")
_ISSUERS = (
    (re.compile(r"4"), frozenset({13, 16, 19})),  # Visa
    (re.compile(r"5[0-9]|2(?:22[1-9]|2[3-9]|[3-6]|7[01]|720)"), frozenset({16})),  # Mastercard, Maestro
    (re.compile(r"3[47]"), frozenset({15})),  # American Express
    (re.compile(r"3(?:0[0-5]|[689])"), frozenset({14, 16})),  # Diners Club
    (re.compile(r"35(?:2[89]|[3-8])"), frozenset({16})),  # JCB
    (re.compile(r"6(?:011|4[4-9]|5)"), frozenset({16, 19})),  # Discover
    (re.compile(r"62"), frozenset({16, 17, 18, 19})),  # UnionPay
    (re.compile(r"81"), frozenset({16})),  # UnionPay
    (re.compile(r"6[0-9]"), frozenset({16})),  # Maestro, RuPay and others
    (re.compile(r"220[0-4]|9792"), frozenset({16})),  # Mir, Troy
)
_GROUPED_LENGTHS_OF_SHORT = {(4, 6, 4), (4, 4, 4, 2), (4, 3, 3, 3), (4, 4, 4, 1)}
"""The ways of writing a number of 13 or 14 digits. In others, such lengths come together by chance too often."""


def contains_card_number(text: str) -> bool:
    """Return whether the text contains what looks like a card number."""
    if not text.isascii():
        text = "".join(_plain(character) for character in text)
    if _RUN.search(text) is None:
        return False
    text = _IBAN.sub(_unless_valid, _TIME.sub("x", _HEX_IDENTIFIER.sub(_unless_decimal, text)))
    return any(_contains_card_number(_GROUP.findall(run.group())) for run in _RUN.finditer(text))


def _plain(character: str) -> str:
    """A character with digits of other scripts as ASCII."""
    value = digit(character, None)
    return str(value) if value is not None else character


def _unless_decimal(identifier: re.Match[str]) -> str:
    """The replacement of a text that looks hexadecimal: itself if it has only decimal digits, else an x."""
    text = identifier.group()
    return "x" if any(character.isalpha() for character in text) else text


def _unless_valid(iban: re.Match[str]) -> str:
    """The replacement of a text that looks like an IBAN (ISO 13616): itself, or an x if its check digits are right."""
    text = iban.group().replace(" ", "")
    number = int("".join(str(int(character, 36)) for character in text[4:] + text[:4]))
    return "x" if number % 97 == 1 else iban.group()


def _contains_card_number(groups: list[str]) -> bool:
    if _is_parcel_number(groups):
        return False
    for first, group in enumerate(groups):
        if len(group) > DIGITS_MAX:
            continue
        near = groups[first : first + DIGITS_MAX]
        for count, length in enumerate(accumulate(map(len, near)), start=1):
            if length > DIGITS_MAX:
                break
            window = near[:count]
            if length >= DIGITS_MIN and _is_written_so(window, length) and is_card_number("".join(window)):
                return True
    return False


def _is_written_so(groups: list[str], length: int) -> bool:
    return length > 14 or len(groups) in (1, length) or tuple(map(len, groups)) in _GROUPED_LENGTHS_OF_SHORT


def is_card_number(digits: str) -> bool:
    """Return whether these digits are a card number's."""
    of_an_issuer = any(len(digits) in lengths and leading.match(digits) for leading, lengths in _ISSUERS)
    return of_an_issuer and _luhn_sum(digits) % 10 == 0


def _luhn_sum(digits: str) -> int:
    doubled = (int(one) * 2 for one in digits[-2::-2])
    return sum(int(one) for one in digits[-1::-2]) + sum(value - 9 if value > 9 else value for value in doubled)


_USPS = {(22,), (4, 4, 4, 4, 4, 2)}
_SSCC = {(18,), (20,), (2, 18)}


def _is_parcel_number(groups: list[str]) -> bool:
    """Return whether the digits are a parcel number of USPS or an SSCC (GS1), by their grouping and their own check digit."""
    if len(groups) > 6:
        return False
    lengths, digits = tuple(map(len, groups)), "".join(groups)
    is_usps = lengths in _USPS and "91" <= digits[:2] <= "95"
    is_sscc = lengths in _SSCC and (len(digits) == 18 or digits[:2] == "00")
    if not (is_usps or is_sscc):
        return False
    tripled = sum(int(one) for one in digits[-2::-2])
    return (3 * tripled + sum(int(one) for one in digits[-1::-2])) % 10 == 0

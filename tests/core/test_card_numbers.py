"""Card numbers in texts: none gets through, however it is written, and identifiers that shops use do."""

import random
import string
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.card_numbers import contains_card_number, is_card_number

NUMBERS = (
    "4242424242424242",
    "4000056655665556",
    "4222222222222",
    "5555555555554444",
    "2223003122003222",
    "378282246310005",
    "6011111111111117",
    "3056930009020004",
    "30569309025904",
    "3566002020360505",
    "6200000000000005",
    "6205500000000000004",
    "5018000000000009",
    "6304000000000000",
)
SEPARATORS = (" ", "  ", "-", ".", "\t", "\u00a0", "\n", "\u2013", " - ", "/", "\u200b", "_", ",", ":")
SAMPLES = 20_000
Draw = Callable[[random.Random], str]


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_is_found_as_it_is(number: str) -> None:
    assert contains_card_number(number)
    assert contains_card_number(f"my card is {number}.")
    assert not contains_card_number(number[:-1] + str((int(number[-1]) + 1) % 10))


@pytest.mark.parametrize("separator", SEPARATORS, ids=ascii)
@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_in_groups_is_found(number: str, separator: str) -> None:
    assert contains_card_number(separator.join(number[at : at + 4] for at in range(0, len(number), 4)))
    assert contains_card_number(separator.join(number))


@pytest.mark.parametrize(
    "text",
    [
        "4242424242424242 123",
        "4242 4242 4242 4242 12/29 123",
        "123 4242424242424242",
        "order 10023 4242 4242 4242 4242",
        "20291231 4242-4242-4242-4242 999",
        "card2 4242424242424242",
        "2 4242424242424242",
        "\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12",
        "\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662\u0664\u0662",
        "\u2074\u00b2" * 8,
        "cart4242424242424242",
        "2026-11-26T19:08:28Z 4242424242424242",
    ],
    ids=ascii,
)
def test_a_number_is_found_beside_other_digits_and_in_other_scripts(text: str) -> None:
    assert contains_card_number(text)


@given(
    number=st.sampled_from(NUMBERS),
    before=st.text("0123456789", max_size=8),
    after=st.text("0123456789", max_size=8),
    gap=st.sampled_from(SEPARATORS),
)
def test_a_neighbor_hides_nothing(number: str, before: str, after: str, gap: str) -> None:
    text = gap.join(part for part in (before, number, after) if part)
    digits = before + number + after
    is_a_parcels = (len(digits) in (20, 22) and digits[0] == "9") or (len(digits) == 20 and digits[:2] == "00")
    assert contains_card_number(text) or is_a_parcels


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice(string.digits) for _ in range(count))


def _checked(body: str) -> str:
    """With the check digit of GS1."""
    tripled = sum(int(one) for one in body[-1::-2])
    return body + str(-(3 * tripled + sum(int(one) for one in body[-2::-2])) % 10)


def _time(rng: random.Random) -> datetime:
    return datetime.fromtimestamp(rng.uniform(1.4e9, 2.0e9), UTC)


def _in_fours(text: str) -> str:
    return " ".join(text[at : at + 4] for at in range(0, len(text), 4))


def _usps(rng: random.Random) -> str:
    return _checked(rng.choice(["9400", "9205", "9361", "9407", "9303", "9270"]) + _digits(rng, 17))


def _iban(rng: random.Random) -> str:
    account = _digits(rng, 18)
    return _in_fours(f"DE{98 - int(account + '131400') % 97:02}{account}")


FORMATS: dict[str, Draw] = {
    "uuid4": lambda rng: str(UUID(int=rng.getrandbits(128), version=4)),
    "uuid4, hex": lambda rng: UUID(int=rng.getrandbits(128), version=4).hex,
    "uuid7": lambda rng: str(UUID(int=(int(_time(rng).timestamp() * 1e3) << 80) | (7 << 76) | rng.getrandbits(76))),
    "ulid": lambda rng: "".join(rng.choice("0123456789ABCDEFGHJKMNPQRSTVWXYZ") for _ in range(26)),
    "snowflake": lambda rng: str((int((_time(rng).timestamp() - 1_288_834_974) * 1e3) << 22) | rng.getrandbits(22)),
    "ISO 8601": lambda rng: _time(rng).isoformat(),
    "ISO 8601, zone": lambda rng: _time(rng).astimezone(timezone(timedelta(hours=rng.randint(-11, 13)))).isoformat(" "),
    "time, compact": lambda rng: _time(rng).strftime("%Y%m%d%H%M%S%f"),
    "time, dotted": lambda rng: _time(rng).strftime("%d.%m.%Y %H:%M:%S"),
    "unix, ms": lambda rng: str(int(_time(rng).timestamp() * 1e3)),
    "unix, µs": lambda rng: str(int(_time(rng).timestamp() * 1e6)),
    "unix, ns": lambda rng: str(int(_time(rng).timestamp() * 1e9)),
    "USPS": _usps,
    "USPS, in groups": lambda rng: _in_fours(_usps(rng)),
    "UPS": lambda rng: "1Z" + "".join(rng.choice(string.digits + string.ascii_uppercase) for _ in range(6)) + _digits(rng, 10),
    "FedEx, 12": lambda rng: _digits(rng, 12),
    "FedEx, 12, in groups": lambda rng: _in_fours(_digits(rng, 12)),
    "FedEx, 20": lambda rng: "61" + _digits(rng, 18),
    "FedEx, 22": lambda rng: "96" + _digits(rng, 20),
    "DHL, 10": lambda rng: _digits(rng, 10),
    "DHL, JJD": lambda rng: "JJD000" + _digits(rng, 15),
    "DHL Paket": lambda rng: "00340434" + _digits(rng, 12),
    "SSCC": lambda rng: _checked(_digits(rng, 17)),
    "UPU S10": lambda rng: rng.choice(["RR", "EA", "LX"]) + _digits(rng, 9) + rng.choice(["US", "GB", "DE"]),
    "DPD": lambda rng: "0" + _digits(rng, 13),
    "Amazon's orders": lambda rng: f"{rng.choice(['302', '305', '114', '028'])}-{_digits(rng, 7)}-{_digits(rng, 7)}",
    "IBAN": _iban,
    "telephone": lambda rng: f"+{rng.choice(['49', '1', '44'])} {_digits(rng, 3)} {_digits(rng, 7)}",
}


@pytest.mark.parametrize("name", FORMATS)
def test_identifiers_pass(name: str) -> None:
    rng = random.Random(name)
    wrong = [text for text in (FORMATS[name](rng) for _ in range(SAMPLES)) if contains_card_number(text)]
    print(f"{name}: {100 * len(wrong) / SAMPLES:.3f} % are taken for card numbers")
    assert len(wrong) < 0.001 * SAMPLES, wrong[:5]


def test_a_number_of_no_issuer_passes() -> None:
    assert not is_card_number("1234567812345670")
    assert not contains_card_number("7992739871300000")
    assert not contains_card_number("424242424242424242424242424242")

"""Money: integer minor units of an ISO 4217 currency, never a float.

Invariants: an amount is an int; a currency is a code in the table below; amounts are combined only within one currency. Source:
ISO 4217:2015, list one (active codes and their minor-unit exponents). Funds codes, metals and test codes are left out.
"""

import msgspec

from core.errors import InvalidMoney

_CODES_BY_EXPONENT = {
    0: "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX VND VUV XAF XOF XPF",
    2: (
        "AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BRL BSD BTN BWP BYN BZD CAD CDF CHF CNY COP "
        "CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS INR "
        "IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN "
        "NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP "
        "STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD UYU UZS VED VES WST XCD XCG YER ZAR ZMW ZWG"
    ),
    3: "BHD IQD JOD KWD LYD OMR TND",
}

CURRENCY_EXPONENTS = {code: exponent for exponent, codes in _CODES_BY_EXPONENT.items() for code in codes.split()}

AMOUNT_MINOR_MAX = 999_999_999_999
"""The largest amount of one payment. It is far below 2**63, so sums over a merchant's lifetime fit a bigint."""


class Money(msgspec.Struct, frozen=True):
    """An amount in minor units of a currency. It may be negative, as postings and balances are."""

    amount_minor: int
    currency: str

    def __post_init__(self) -> None:
        if type(self.amount_minor) is not int:
            raise InvalidMoney("an amount is an integer number of minor units")
        if self.currency not in CURRENCY_EXPONENTS:
            raise InvalidMoney(f"unsupported currency {self.currency!r}")

    def __str__(self) -> str:
        exponent = CURRENCY_EXPONENTS[self.currency]
        sign = "-" if self.amount_minor < 0 else ""
        digits = str(abs(self.amount_minor)).rjust(exponent + 1, "0")
        whole, fraction = (digits[:-exponent], "." + digits[-exponent:]) if exponent else (digits, "")
        return f"{sign}{whole}{fraction} {self.currency}"


def payable(amount_minor: int, currency: str) -> Money:
    """The money of a payment: positive and at most `AMOUNT_MINOR_MAX`.

    Raises `InvalidMoney`.
    """
    money = Money(amount_minor, currency)
    if not 0 < amount_minor <= AMOUNT_MINOR_MAX:
        raise InvalidMoney(f"an amount must be between 1 and {AMOUNT_MINOR_MAX} minor units")
    return money

"""The domain of Florin: pure and synchronous.

Nothing here does I/O, reads a clock, draws random bits or imports anything but the standard library and msgspec, whose frozen
structs are the values of the payment path. The current time, random bits and identifiers are arguments. Every decision about
money is made here and carried out elsewhere.
"""

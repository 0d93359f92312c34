"""The domain of Florin: pure and synchronous.

Nothing here does I/O, reads a clock, draws randomness or imports anything but the standard library; the current time,
random bits and identifiers are arguments. Everything that decides about money is decided here and carried out elsewhere.
"""

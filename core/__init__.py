"""The domain of Florin: pure and synchronous.

Nothing here does I/O, reads a clock, draws randomness or imports anything but the standard library and msgspec, whose frozen
structs are the values that every payment makes and copies; the current time, random bits and identifiers are arguments.
Everything that decides about money is decided here and carried out elsewhere.
"""

"""The other side of the counter: a PSP to take payments with and a shop to sell with, as a separate program over real HTTP.

Nothing of the server is used here but the wire and the signature dialects; the two sides meet only over sockets.
"""

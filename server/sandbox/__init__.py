"""The sandbox PSP and a demo shop: a separate program over real HTTP.

It uses nothing of the server but the HTTP implementation and the signature dialects; the two sides meet only over sockets.
"""

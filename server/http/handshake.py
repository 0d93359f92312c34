"""The opening handshake of a websocket (RFC 6455, section 4.2), by wsproto, from a request that was read already."""

from base64 import b64decode
from dataclasses import dataclass

import h11
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.utilities import RemoteProtocolError

from server.http.parser import BadRequest, Request


@dataclass(frozen=True, slots=True)
class Handshake:
    """The client's half of a handshake, and what came behind it already."""

    protocol: WSConnection
    subprotocols: list[str]
    rest: bytes


def shake_hands(request: Request) -> Handshake:
    """What the request offers. Raises `BadRequest` where it is not a websocket's handshake."""
    keys = [value for name, value in request.headers if name == b"sec-websocket-key"]
    versions = [value for name, value in request.headers if name == b"sec-websocket-version"]
    if versions != [b"13"]:
        upgrade = b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
        raise BadRequest(426, "websockets are spoken in version 13 here", headers=upgrade)
    try:
        is_key = [len(b64decode(key, validate=True)) for key in keys] == [16]
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.initiate_upgrade_connection(request.headers, request.target)
        offered = [event.subprotocols for event in protocol.events() if isinstance(event, ws.Request)]
    except (RemoteProtocolError, h11.ProtocolError, ValueError) as error:
        raise BadRequest(400, f"not a websocket's handshake: {error}") from error
    if not is_key or not offered:
        raise BadRequest(400, "a websocket has one Sec-WebSocket-Key, of 16 bytes")
    return Handshake(protocol, offered[0], request.rest)

"""The opening handshake of a websocket (RFC 6455, section 4.2) by wsproto, from a request that was already read."""

from base64 import b64decode
from dataclasses import dataclass

import h11
from wsproto import ConnectionType, WSConnection
from wsproto import events as ws
from wsproto.extensions import PerMessageDeflate
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits
from wsproto.utilities import RemoteProtocolError

from server.http.server.parser import BadRequest, Request


@dataclass(frozen=True, slots=True)
class Handshake:
    """The client's half of a handshake, and the bytes that followed it."""

    protocol: WSConnection
    subprotocols: list[str]
    rest: bytes


def parse_handshake(request: Request) -> Handshake:
    """Read the offer of a request. Raises `BadRequest` if it is not a valid handshake."""
    keys = [value for name, value in request.headers if name == b"sec-websocket-key"]
    versions = [value for name, value in request.headers if name == b"sec-websocket-version"]
    if versions != [b"13"]:
        upgrade = b"upgrade: websocket\r\nsec-websocket-version: 13\r\n"
        raise BadRequest(426, "websockets are supported in version 13", headers=upgrade)
    try:
        is_key = [len(b64decode(key, validate=True)) for key in keys] == [16]
        protocol = WSConnection(ConnectionType.SERVER)
        protocol.initiate_upgrade_connection(_joined(request.headers), request.target)
        offered = [event.subprotocols for event in protocol.events() if isinstance(event, ws.Request)]
    except (RemoteProtocolError, h11.ProtocolError, ValueError) as error:
        raise BadRequest(400, f"not a websocket's handshake: {error}") from error
    if not is_key or not offered:
        raise BadRequest(400, "a websocket has one Sec-WebSocket-Key, of 16 bytes")
    return Handshake(protocol, offered[0], request.rest)


def _joined(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Join header fields that came in several lines (RFC 9110, 5.3), because wsproto sees only the last line."""
    found: dict[bytes, list[bytes]] = {b"connection": [], b"upgrade": []}
    rest = []
    for name, value in headers:
        if name in found:
            found[name].append(value)
        else:
            rest.append((name, value))
    return rest + [(name, b", ".join(values)) for name, values in found.items() if values]


class Deflate(PerMessageDeflate):
    """wsproto's extension, which takes a ping between the parts of a message for a part, and fails on unreadable parameters."""

    _is_control = False

    def accept(self, offer: str) -> bool | str | None:
        """Like wsproto's, but declines (None) if that fails."""
        try:
            return super().accept(offer)
        except ValueError:
            return None

    def frame_inbound_header(
        self, proto: FrameDecoder | FrameProtocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Control frames are never compressed (RFC 7692, 5)."""
        self._is_control = opcode.iscontrol()
        if self._is_control:
            return CloseReason.PROTOCOL_ERROR if rsv.rsv1 else RsvBits(rsv1=True, rsv2=False, rsv3=False)
        return super().frame_inbound_header(proto, opcode, rsv, payload_length)

    def frame_inbound_payload_data(self, proto: FrameDecoder | FrameProtocol, data: bytes) -> bytes | CloseReason:
        """Like wsproto's, for frames that are not control frames."""
        return data if self._is_control else super().frame_inbound_payload_data(proto, data)

    def frame_inbound_complete(
        self,
        proto: FrameDecoder | FrameProtocol,
        fin: bool,  # noqa: FBT001 - wsproto's signature
    ) -> bytes | CloseReason | None:
        """Like wsproto's, for frames that are not control frames."""
        return None if self._is_control else super().frame_inbound_complete(proto, fin)

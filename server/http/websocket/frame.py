"""One message for many websockets: encoded once, sent to each unchanged.

The ASGI extension is named `florin.websocket.frame`. Its message is `{"type": "florin.websocket.frame", "frame": bytes}`, sent to
a websocket that was accepted; it never waits, and raises OSError if the peer is gone or was cut off for being too far behind. A
server that supports it lists it in `scope["extensions"]`; with any other server `send_frame` sends a plain text message.
"""

from dataclasses import dataclass

from wsproto.frame_protocol import FrameProtocol

from server.http.asgi import Scope, Send

FRAME_EXTENSION = "florin.websocket.frame"


@dataclass(frozen=True, slots=True)
class Frame:
    """A text message and its encoding: one frame, neither masked nor compressed."""

    text: str
    encoded: bytes

    @classmethod
    def of(cls, text: str) -> "Frame":
        """Encode a text."""
        return cls(text, bytes(FrameProtocol(client=False, extensions=[]).send_data(text)))


async def send_frame(scope: Scope, send: Send, frame: Frame) -> None:
    """Send a frame to one websocket. Raises OSError if the peer is gone or was cut off."""
    if FRAME_EXTENSION in scope.get("extensions", ()):
        await send({"type": FRAME_EXTENSION, "frame": frame.encoded})
    else:
        await send({"type": "websocket.send", "text": frame.text})

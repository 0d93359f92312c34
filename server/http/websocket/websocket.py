"""A websocket: one connection after its upgrade (RFC 6455), as an ASGI application sees it.

wsproto parses the input. Output is tried at once: `websocket.send` then waits for a slow peer; a frame of the extension
(`server.http.websocket.frame`) never waits, and a peer that is too far behind with those is cut off with a code that means:
reconnect.

Invariants: the parts of an unfinished message, messages that the application has not received, and frames that the peer has not
taken are bounded; a peer that answers no ping, takes nothing, or does not finish the closing handshake is ended by the reaper;
nothing follows a Close; the application is told of the end once, with its code, and from then on every `send` raises OSError.
"""

import math
from contextlib import suppress
from io import BytesIO, StringIO
from typing import Any

import structlog
import trio
from wsproto import events as ws
from wsproto.connection import ConnectionState
from wsproto.extensions import Extension

from server.http.asgi import Application, Message, Scope, call
from server.http.reaper import Reaper
from server.http.refusal import Refusal, Render, refuse
from server.http.server.exchange import Exchange
from server.http.transport import Transport
from server.http.websocket.frame import FRAME_EXTENSION
from server.http.websocket.handshake import Deflate, Handshake
from server.http.websocket.outbox import Outbox

PING_SECONDS = 25.0
PONG_SECONDS = 8.0
ACCEPT_SECONDS = 30.0
"""The time in which an application must accept or refuse: until then a disconnected client is not noticed."""
CLOSE_SECONDS = 5.0
LINGER_SECONDS = 1.0
MESSAGE_BYTES_MAX = 65_536
MESSAGES_WAITING_MAX = 16
BEHIND_BYTES_MAX = 1_048_576
PARSED_BYTES = 4_096
"""The bytes that are parsed before other tasks run: they can hold hundreds of tiny frames."""

NORMAL, ABNORMAL, TOO_LARGE, FAILED, RESTART, TRY_AGAIN_LATER = 1000, 1006, 1009, 1011, 1012, 1013

_log = structlog.get_logger()


class WebSocket:
    """One websocket; `run` serves it. The reaper watches it for pings, pongs and an unanswered Close."""

    __slots__ = (
        "_close_by",
        "_deflate",
        "_ended",
        "_exchange",
        "_inbox",
        "_inbox_in",
        "_is_accepted",
        "_is_closing",
        "_is_connected",
        "_message",
        "_message_bytes",
        "_nursery",
        "_outbox",
        "_ping_at",
        "_pong_by",
        "_protocol",
        "_reaper",
        "_render",
        "_rest",
        "_subprotocols",
        "_transport",
        "_waits_for_application",
        "deadline",
    )

    def __init__(
        self,
        transport: Transport,
        reaper: Reaper,
        nursery: trio.Nursery,
        handshake: Handshake,
        exchange: Exchange,
        *,
        render: Render,
        deflate: bool,
    ) -> None:
        self._transport = transport
        self._reaper = reaper
        self._nursery = nursery
        self._protocol = handshake.protocol
        self._subprotocols = handshake.subprotocols
        self._rest = handshake.rest
        self._exchange = exchange
        self._render = render
        self._deflate = deflate
        self._outbox = Outbox(transport, reaper, nursery)
        self._inbox_in, self._inbox = trio.open_memory_channel[Message](MESSAGES_WAITING_MAX)
        self._is_connected = self._is_accepted = self._is_closing = self._waits_for_application = False
        self._ended: tuple[int, str] | None = None
        self._message: StringIO | BytesIO | None = None
        self._message_bytes = 0
        self._ping_at = self._pong_by = math.inf
        self._close_by = self.deadline = reaper.now + ACCEPT_SECONDS
        reaper.watched.add(self)

    # The life of a websocket

    async def run(self, app: Application, scope: Scope) -> None:
        """Call the application. When it has returned, the nursery ends with the closing handshake or its deadline."""
        scope.update(
            type="websocket",
            scheme="wss" if scope["scheme"] == "https" else "ws",
            subprotocols=self._subprotocols,
            extensions={"websocket.http.response": {}, FRAME_EXTENSION: {"behind_bytes_max": BEHIND_BYTES_MAX}},
        )
        scope.pop("method")
        failure = await call(app, scope, self.receive, self.send)
        self._inbox.close()
        answer = self._render(Refusal.FAILED)
        if failure is not None and self._ended is None and not self._exchange.broken:
            where = {"target": scope["raw_path"].decode("latin-1"), "request_id": answer.request_id}
            _log.error("the application failed", exc_info=failure, **where)
        if self._is_accepted:
            self._begin_close(NORMAL if failure is None else FAILED, "")
        elif self._ended is None and self._exchange.take_back():
            with suppress(OSError):
                await refuse(self._exchange.send, answer)

    def drain(self) -> None:
        """Close with the code that means reconnect, because the server stops."""
        if self._is_accepted:
            self._begin_close(RESTART, "the server restarts")
        self._end(RESTART, "the server restarts")

    def lose(self) -> None:
        """Mark the connection as lost, and wake everything that waits for it."""
        self.forget()
        self._transport.shut_down()

    def forget(self) -> None:
        """Drop everything; nothing is to be done any more."""
        self._end(ABNORMAL, "")
        self._outbox.lose()
        self._reaper.watched.discard(self)

    def expire(self) -> None:
        """Called by the reaper when a ping is due or the peer is late."""
        now = self._reaper.now
        if self._waits_for_application and self._pong_by <= now:
            self._pong_by = now + PONG_SECONDS  # it may be behind data that we do not read
        if now >= min(self._pong_by, self._close_by):
            self.lose()
            return
        if now >= self._ping_at and not self._is_closing:
            self._ping_at, self._pong_by = math.inf, now + PONG_SECONDS
            self._outbox.write(self._protocol.send(ws.Ping()))
        self.deadline = min(self._ping_at, self._pong_by, self._close_by)

    def _begin_close(self, code: int, reason: str) -> None:
        """Send a Close after the queued data, and give the peer a moment to answer it."""
        if self._is_closing:
            return
        data = self._protocol.send(ws.CloseConnection(code, reason))
        self._is_closing = True
        self._end(code, reason)
        self._outbox.write(data)
        self._ping_at = self._pong_by = math.inf
        self._close_by = self.deadline = self._reaper.now + CLOSE_SECONDS

    def _end(self, code: int, reason: str) -> None:
        """Decide what the application will be told."""
        if self._ended is None:
            self._ended = (int(code), reason)
            self._inbox_in.close()

    # The application's side

    async def receive(self) -> Message:
        """ASGI's `receive`: `websocket.connect`, then messages, then `websocket.disconnect`."""
        if not self._is_connected:
            self._is_connected = True
            return {"type": "websocket.connect"}
        try:
            return await self._inbox.receive()
        except trio.EndOfChannel:
            code, reason = self._ended or (ABNORMAL, "")
            return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def send(self, message: Message) -> None:
        """ASGI's `send`. Raises OSError if the websocket has ended (ASGI 2.4)."""
        kind = message["type"]
        if kind == FRAME_EXTENSION:
            self._require_open()
            self._offer(message["frame"])
        elif kind == "websocket.send":
            self._require_open()
            await self._send_message(message)
        elif kind == "websocket.accept":
            self._accept(message)
        elif kind == "websocket.close" and self._is_accepted:
            code, reason = message.get("code") or NORMAL, message.get("reason") or ""
            if not isinstance(reason, str) or not _may_be_sent(code):
                raise RuntimeError(f"a websocket cannot be closed with {code!r} and {reason!r}")
            self._begin_close(code, reason)
        elif kind == "websocket.close":
            await refuse(self._exchange.send, self._render(Refusal.DENIED))
            self._end(ABNORMAL, "")
        elif kind.startswith("websocket.http.response.") and not self._is_accepted:
            await self._exchange.send({**message, "type": kind.removeprefix("websocket.")})
            if self._exchange.finished:
                self._end(ABNORMAL, "")
        else:
            raise RuntimeError(f"{kind} cannot be sent to this websocket now")

    def _require_open(self) -> None:
        if self._outbox.is_lost:
            self._end(ABNORMAL, "")
        if self._ended is not None:
            raise ConnectionResetError(f"the websocket has ended with code {self._ended[0]}")
        if not self._is_accepted:
            raise RuntimeError("the websocket was not accepted yet")

    def _accept(self, message: Message) -> None:
        if self._is_accepted or self._exchange.started:
            raise RuntimeError("a websocket is accepted or refused once")
        if self._ended is not None:
            raise ConnectionResetError("the websocket has ended before it was accepted")
        extensions: list[Extension] = [Deflate()] if self._deflate else []
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        accept = ws.AcceptConnection(subprotocol=message.get("subprotocol"), extensions=extensions, extra_headers=headers)
        self._outbox.write(self._protocol.send(accept))
        self._is_accepted = True
        self._ping_at = self.deadline = self._reaper.now + PING_SECONDS
        self._close_by = math.inf
        self._nursery.start_soon(self._read)

    async def _send_message(self, message: Message) -> None:
        """Send a message after everything before it, and wait until the peer has taken it."""
        await self._outbox.until_empty()
        self._require_open()
        data = message.get("bytes")
        event: ws.Event = ws.TextMessage(message["text"]) if data is None else ws.BytesMessage(data)
        self._outbox.write(self._protocol.send(event))
        await trio.lowlevel.checkpoint()  # an endless stream must let other tasks run
        await self._outbox.until_empty()
        if self._outbox.is_lost:
            self._require_open()

    def _offer(self, frame: bytes) -> None:
        """Send now or later; a peer that is too far behind is cut off instead."""
        outbox = self._outbox
        if outbox.waiting_bytes and outbox.waiting_bytes + len(frame) > BEHIND_BYTES_MAX:
            self._cut_off()
            raise ConnectionResetError("the peer was cut off: too far behind")
        outbox.write(frame)

    def _cut_off(self) -> None:
        self._outbox.drop_what_waits()
        self._begin_close(TRY_AGAIN_LATER, "too far behind: reconnect")

    # The peer's side

    async def _read(self) -> None:
        """Read until the peer has closed or is gone."""
        with suppress(OSError):
            data = self._rest
            while True:
                for at in range(0, len(data), PARSED_BYTES):
                    if await self._parse(data[at : at + PARSED_BYTES]):
                        await self._linger()
                        return
                    await trio.lowlevel.checkpoint()
                data = await self._transport.receive()
                if not data:
                    break
        self.lose()

    async def _linger(self) -> None:
        """Discard input for a moment after our Close, because a peer that made a mistake may not have read it yet."""
        await self._outbox.until_empty()
        self._close_by = self.deadline = self._reaper.now + LINGER_SECONDS
        is_over = self._protocol.state is ConnectionState.CLOSED
        await self._transport.finish_sending()
        if not is_over:
            while await self._transport.receive():
                pass
        self._reaper.watched.discard(self)

    async def _parse(self, data: bytes) -> bool:
        """Parse the next bytes. Returns whether nothing after them is to be parsed."""
        self._protocol.receive_data(data)
        for event in self._protocol.events():
            match event:
                case ws.Message():
                    await self._take(event)
                    if self._message_bytes > MESSAGE_BYTES_MAX:
                        return True
                case ws.Ping():
                    self._answer(event)
                case ws.Pong():
                    self._hear_pong()
                case ws.CloseConnection():
                    self._begin_close(event.code, event.reason or "")
                    return True
        return False

    async def _take(self, event: "ws.Message[Any]") -> None:
        """Take a part of a message, and hand a complete one to the application, waiting for it if it is slow."""
        data = event.data
        if self._message is None:
            self._message = StringIO(newline="") if isinstance(data, str) else BytesIO()
            self._message_bytes = 0
        self._message_bytes += len(data.encode()) if isinstance(data, str) else len(data)
        if self._message_bytes > MESSAGE_BYTES_MAX:
            self._message = None
            self._begin_close(TOO_LARGE, f"a message has at most {MESSAGE_BYTES_MAX} bytes")
            return
        self._message.write(data)
        if event.message_finished:
            whole, self._message = self._message.getvalue(), None
            self._waits_for_application = True
            with suppress(trio.ClosedResourceError, trio.BrokenResourceError):
                await self._inbox_in.send({"type": "websocket.receive", "text" if isinstance(whole, str) else "bytes": whole})
            self._waits_for_application = False

    def _answer(self, ping: ws.Ping) -> None:
        if self._is_closing:
            return
        if self._outbox.waiting_bytes > BEHIND_BYTES_MAX:
            self._cut_off()
        else:
            self._outbox.write(self._protocol.send(ping.response()))

    def _hear_pong(self) -> None:
        if not self._is_closing:
            self._pong_by = math.inf
            self._ping_at = self.deadline = self._reaper.now + PING_SECONDS


def _may_be_sent(code: object) -> bool:
    """Return whether an endpoint may send this code in a Close (RFC 6455, 7.4)."""
    return isinstance(code, int) and (code in (1000, 1001, 1002, 1003) or 1007 <= code <= 1014 or 3000 <= code <= 4999)

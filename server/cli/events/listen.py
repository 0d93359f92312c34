"""`florin listen`: prints events from the stream, forwards them signed, and reconnects where it stopped."""

import hashlib
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any
from urllib.parse import urlencode

import msgspec
import trio
import trio_websocket as tw
import typer
from rich.text import Text

from core.errors import Unauthenticated, Unprocessable, leaves
from core.events import parse_types
from core.money import CURRENCY_EXPONENTS
from core.signing import StandardKey, sign_standard, standard_secret
from server.cli.options import DataDirectory, demo_instance, running_instance
from server.cli.output import Output, json_shown, shown
from server.http.client.client import Client, open_client
from server.http.client.errors import ClientError
from server.http.client.url import parse_origin, split
from server.settings import environment

FORWARD_SECONDS = 30.0
PING_SECONDS = 20.0
PONG_SECONDS = 10.0
RECONNECT_DELAYS_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)
KEY_REVOKED = 4401
_HOPELESS = (400, 401, 403, 404, 409, 422)
_LOST = (tw.HandshakeError, tw.ConnectionClosed, OSError, trio.TooSlowError)
_console = Output()
_errors = Output(stderr=True)


def command(
    forward: Annotated[
        str | None, typer.Option("--forward", help="Also send every event to this URL, signed, e.g. http://localhost:3000/hook.")
    ] = None,
    types: Annotated[
        str,
        typer.Option(
            "--types", help="Only these types, separated by commas, e.g. payment.succeeded,refund.*", show_default=False
        ),
    ] = "",
    after: Annotated[
        int | None, typer.Option("--after", min=0, help="Start after the event with this number; 0 starts at the first one.")
    ] = None,
    consumer: Annotated[
        str | None, typer.Option("--consumer", help="Keep the position on the server under this name, and continue from it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print events as JSON, one per line.")] = False,
    api_url: Annotated[
        str | None, typer.Option("--api-url", help="Default: FLORIN_API_URL, else the running instance.", show_default=False)
    ] = None,
    api_key: Annotated[
        str | None, typer.Option("--api-key", help="Default: FLORIN_API_KEY, else the demo's.", show_default=False)
    ] = None,
    data_dir: DataDirectory = None,
) -> None:
    """Print events as they happen, until Ctrl-C; with --forward, also send them to your program."""
    parse_types([one.strip() for one in types.split(",") if one.strip()], path="--types")
    url, key = address(api_url, api_key, data_dir)
    if forward is not None:
        _require_address(forward)
    wanted = {"types": types, "consumer": consumer}
    listener = EventListener(url, key, {name: text for name, text in wanted.items() if text}, forward, as_json=as_json, seq=after)
    try:
        trio.run(listener.run)
    except* KeyboardInterrupt:
        listener.print_position()
        sys.exit(130)


def address(api_url: str | None, api_key: str | None, data_dir: Any) -> tuple[str, str]:
    """The API and a key for it: those given, else those of the environment unless a data directory is given, else those of the
    running instance. Raises `NoRunningInstance`, `Unprocessable`.
    """
    key = api_key or environment("API_KEY")
    if api_url is None and data_dir is None:
        api_url = environment("API_URL")
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise Unprocessable("the API key contains characters that no Florin key has: copy it again")
    if api_url is not None:
        _require_address(api_url)
        if key is None:
            raise Unprocessable("another Florin needs a key of its own: give --api-key, or set FLORIN_API_KEY")
        return api_url.rstrip("/"), key
    if key is not None:
        return running_instance(data_dir).api_urls[0], key
    running, demo = demo_instance(data_dir)
    return running.api_urls[0], demo.api_key


def forwarding_secret(api_key: str) -> str:
    """The secret that signs forwarded events. It is derived from the API key, so it stays the same and can be kept in a
    configuration.
    """
    return standard_secret(hashlib.sha256(b"florin listen " + api_key.encode()).digest())


def _require_address(url: str) -> None:
    try:
        parse_origin(split(url)[0])
    except ClientError as error:
        raise Unprocessable(str(error)) from error


@dataclass(slots=True)
class EventListener:
    """One run of the command. `seq` is the last handled event."""

    url: str
    api_key: str
    query: dict[str, str]
    forward: str | None
    as_json: bool
    seq: int | None = None
    _epoch: str | None = field(default=None, init=False)
    _secret: str = field(default="", init=False)
    _is_busy: bool = field(default=False, init=False)

    async def run(self) -> None:
        """Listen until canceled. Raises `FlorinError` if listening again would not help."""
        self._secret = forwarding_secret(self.api_key)
        if self.forward is not None:
            _errors.print(f"forwarding to {shown(self.forward)}, signed with {self._secret}")
        failures = 0
        async with open_client() as http:
            while True:
                began = trio.current_time()
                lost = await self._listen(http)
                failures = 0 if trio.current_time() - began > PING_SECONDS else failures + 1
                seconds = RECONNECT_DELAYS_SECONDS[min(failures, len(RECONNECT_DELAYS_SECONDS)) - 1] if failures else 0.2
                _errors.print(f"disconnected ({shown(lost)}); reconnecting in {seconds:g} s")
                await trio.sleep(seconds)

    def print_position(self) -> None:
        """Print how to continue from here."""
        if self.seq is not None and "consumer" not in self.query:
            _errors.print(f"\nstopped; continue with: florin listen --after {self.seq}")

    async def _listen(self, http: Client) -> str:
        """Listen on one connection. Returns why it ended."""
        query = dict(self.query)
        if self.seq is not None:
            query["after"] = str(self.seq)
        if self._epoch is not None:
            query["epoch"] = self._epoch
        url = f"{self.url.replace('http', 'ws', 1)}/v1/stream?{urlencode(query)}"
        headers = [(b"authorization", f"Bearer {self.api_key}".encode())]
        try:
            async with (
                tw.open_websocket_url(url, extra_headers=headers, connect_timeout=10, disconnect_timeout=2) as socket,
                trio.open_nursery() as nursery,
            ):
                nursery.start_soon(self._keep_alive, socket)
                await self._take_all(socket, http)
        except (*_LOST, ExceptionGroup) as error:
            return self._explained(leaves(error) if isinstance(error, ExceptionGroup) else [error])
        return "closed"

    def _explained(self, errors: Sequence[BaseException]) -> str:
        """The reason for a lost connection, as text. Raises any error that is not a lost connection, and `FlorinError` if
        reconnecting would fail in the same way.
        """
        for error in errors:
            if not isinstance(error, _LOST):
                raise error
        first = next((one for one in errors if isinstance(one, tw.ConnectionClosed)), errors[0])
        if isinstance(first, tw.ConnectionRejected):
            self._refused(first)
            return f"answered {first.status_code}"
        if isinstance(first, tw.ConnectionClosed) and first.reason is not None:
            if first.reason.code == KEY_REVOKED:
                raise Unauthenticated("the API key was revoked")
            return str(first.reason.reason or first.reason.code)
        return str(first) or type(first).__name__

    async def _keep_alive(self, socket: tw.WebSocketConnection) -> None:
        """Detect a server that is gone without having closed the connection."""
        while True:
            await trio.sleep(PING_SECONDS)
            with trio.move_on_after(PONG_SECONDS) as pong:
                await socket.ping()
            if pong.cancelled_caught and not self._is_busy:
                raise trio.TooSlowError

    async def _take_all(self, socket: tw.WebSocketConnection, http: Client) -> None:
        hello = msgspec.json.decode(await socket.get_message())
        if self._epoch is None or not hello["recovered"]:
            begin = "events from now on" if self.seq is None else f"events after no. {hello['seq']}"
            _errors.print(f"listening to {shown(self.url)}: {begin}")
        if self.seq is not None and not hello["recovered"]:
            _errors.print(f"events after no. {self.seq} are no longer available; continuing after no. {hello['seq']}")
        self.seq, self._epoch = hello["seq"], hello["epoch"]
        while True:
            message = await socket.get_message()
            body = message.encode() if isinstance(message, str) else message
            event = msgspec.json.decode(body)
            self._is_busy = True  # while this event is handled, nothing after it is read, pongs included
            answer = await self._forward(http, event, body) if self.forward is not None else Text()
            self._is_busy = False
            if self.as_json:
                print(json_shown(body.decode()), flush=True)
            else:
                _console.print(Text.assemble(_line(event), answer))
            if answer and self.as_json:
                _errors.print(Text.assemble(f"no. {event['seq']}", answer))
            self.seq = event["seq"]
            if "consumer" in self.query:
                await socket.send_message(msgspec.json.encode({"ack": self.seq}).decode())

    async def _forward(self, http: Client, event: dict[str, Any], body: bytes) -> Text:
        """Send an event as a webhook. Returns the result as text."""
        assert self.forward is not None
        timestamp = int(time.time())
        signature = sign_standard([StandardKey(self._secret)], message_id=event["id"], timestamp=timestamp, body=body)
        headers = [
            ("content-type", "application/json"),
            ("user-agent", "florin-listen/1"),
            ("webhook-id", event["id"]),
            ("webhook-timestamp", str(timestamp)),
            ("webhook-signature", signature),
        ]
        began = trio.current_time()
        try:
            response = await http.request(
                "POST", self.forward, headers=headers, body=body, idempotent=True, total_seconds=FORWARD_SECONDS
            )
        except ClientError as error:
            return Text(f"  → {shown(error)}", "red")
        colour = "green" if 200 <= response.status < 300 else "red"
        took = f" in {(trio.current_time() - began) * 1_000:.0f} ms"
        return Text.assemble((f"  → {response.status}", colour), took)

    def _refused(self, error: tw.ConnectionRejected) -> None:
        """Raise if the same request would be refused again."""
        try:
            problem = msgspec.json.decode(error.body or b"{}")
            detail = str(problem.get("detail", ""))
        except (msgspec.DecodeError, AttributeError):
            detail = ""
        if error.status_code in (401, 403):
            raise Unauthenticated(f"the server refuses this key: {detail or error.status_code}")
        if error.status_code in _HOPELESS:
            raise Unprocessable(detail or f"the server answered {error.status_code}: check that {self.url} is a Florin")


def _line(event: dict[str, Any]) -> Text:
    data = event["data"]
    words = [shown(data.get("id", ""))]
    if isinstance(data.get("amount"), int):
        words.append(_money(data["amount"], shown(data.get("currency"))))
    words += [shown(data[name]) for name in ("order_id", "decline_code", "disabled_reason") if data.get(name)]
    moment = shown(event["timestamp"])[11:19]
    return Text.assemble(f"{moment}  no. {event['seq']}  ", (shown(event["type"]), "bold"), f"  {'  '.join(words)}")


def _money(amount_minor: int, currency: str) -> str:
    digits = CURRENCY_EXPONENTS.get(currency, 0)
    text = str(amount_minor).rjust(digits + 1, "0")
    return f"{text[:-digits]}.{text[-digits:]} {currency}" if digits else f"{text} {currency}"

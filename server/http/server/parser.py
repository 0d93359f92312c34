"""Bytes to requests: llhttp (through httptools) with strict limits.

Invariants: a request that two parsers could read differently is refused (RFC 9112, sections 3.2, 6.1, 6.3 and 11.2): exactly one
Host, never Content-Length with Transfer-Encoding, `chunked` as the only coding; the target, the header block and the pipeline are
bounded. After a refusal nothing more is read from that connection.
"""

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache

import httptools

from server.http.asgi import METHODS

TARGET_BYTES_MAX = 8_192
HOST_BYTES_MAX = 261  # a name of the DNS, and a port
HEADER_BYTES_MAX = 32_768
HEADERS_MAX = 100
_METHODS = {method.encode(): method for method in METHODS}
PIPELINE_MAX = 16
QUIET_BYTES_MAX = TARGET_BYTES_MAX + HEADER_BYTES_MAX + 65_536
"""The most bytes that may arrive without completing a head or a part of a body: llhttp buffers an unfinished head, and does not
report the extensions of chunks.
"""

_ABSOLUTE = re.compile(rb"https?://([A-Za-z0-9._~%!$&'()*+,;=:\[\]-]{1,261})((?:/[^?#]*)?(?:\?[^#]*)?)", re.IGNORECASE)
_HOST = re.compile(rb"[A-Za-z0-9._~%!$&'()*+,;=:\[\]-]*")


class BadRequest(Exception):
    """The bytes are not an acceptable request. `status` is the reply's, with these complete header lines."""

    def __init__(self, status: int, reason: str, *, headers: bytes = b"") -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = headers


@dataclass(slots=True)
class Request:
    """One request. The head is complete when it appears; the body arrives later. `rest` is what followed a websocket's
    request.
    """

    method: str = ""
    target: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    http_version: str = "1.1"
    keep_alive: bool = True
    expects_continue: bool = False
    body: list[bytes] = field(default_factory=list)
    body_bytes: int = 0
    body_began: float = math.inf
    complete: bool = False
    is_websocket: bool = False
    rest: bytes = b""


_NOTHING = Request()


class RequestParser:
    """Parses the bytes of a socket into `requests`.

    An invalid request is kept in `failure`, because the requests before it are served first. Nothing is read after it.
    """

    def __init__(self, *, websockets: bool = False) -> None:
        self._websockets = websockets
        self.requests: list[Request] = []
        self._parser = httptools.HttpRequestParser(self)
        self._current = _NOTHING
        self._head_bytes = 0
        self._quiet_bytes = 0
        self.in_head = False
        self.failure: BadRequest | None = None

    def feed(self, data: bytes) -> None:
        """Parse the next bytes."""
        if self.failure is not None:
            return
        self._quiet_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            self.failure = cause if isinstance(cause, BadRequest) else BadRequest(400, "malformed request")
        except httptools.HttpParserError as error:
            self.failure = BadRequest(400, f"malformed request: {error}")
        else:
            if self._quiet_bytes > QUIET_BYTES_MAX:
                self.failure = BadRequest(431, "the header block is too large")

    def _upgrade(self, rest: bytes) -> None:
        """Handle llhttp's stop at an upgrade. One that is not served is ignored (RFC 9110, 7.8): read the request without it."""
        request = self.requests[-1]
        if request.is_websocket:
            request.rest = rest
            self.failure = BadRequest(400, "a websocket is no longer HTTP")
            return
        self.requests.pop()
        self._parser = httptools.HttpRequestParser(self)
        lines = [b"%b: %b\r\n" % (name, value) for name, value in request.headers if name != b"upgrade"]
        version = request.http_version.encode()
        self.feed(b"%b %b HTTP/%b\r\n%b\r\n" % (request.method.encode(), request.target, version, b"".join(lines)) + rest)

    # llhttp's callbacks, in the order in which they come

    def on_message_begin(self) -> None:
        self._current = Request()
        self._head_bytes = 0
        self.in_head = True

    def on_url(self, part: bytes) -> None:
        self._current.target += part
        if len(self._current.target) > TARGET_BYTES_MAX:
            raise BadRequest(414, "the request target is too long")

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self._current.headers
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEADER_BYTES_MAX:
            raise BadRequest(431, "the header block is too large")
        if not self.in_head:
            return  # a trailer must never become a header (RFC 9110, 6.5.1)
        if len(headers) >= HEADERS_MAX:
            raise BadRequest(431, "the header block is too large")
        headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        request = self._current
        request.method = _METHODS.get(self._parser.get_method(), "")
        request.http_version = self._parser.get_http_version()
        request.keep_alive = self._parser.should_keep_alive()
        self.in_head = False
        self._quiet_bytes = 0
        _require_unambiguous(request)
        if request.target[:1] != b"/" or b"#" in request.target:
            _settle_target(request)
        if self._websockets and self._parser.should_upgrade():
            _find_websocket(request)
        if len(self.requests) >= PIPELINE_MAX:
            raise BadRequest(429, "too many pipelined requests")
        self.requests.append(request)

    def on_body(self, part: bytes) -> None:
        self._quiet_bytes = 0
        self._current.body.append(part)
        self._current.body_bytes += len(part)

    def on_message_complete(self) -> None:
        self._current.complete = True
        self._current = _NOTHING  # an idle connection keeps nothing of its last request


def _settle_target(request: Request) -> None:
    """Reduce the target to the origin form. In the absolute form its host is the one that counts (RFC 9112, 3.2.2)."""
    absolute = _ABSOLUTE.fullmatch(request.target)
    if absolute is not None:
        host, rest = absolute.groups()
        request.target = rest if rest.startswith(b"/") else b"/" + rest
        request.headers = [(name, host if name == b"host" else value) for name, value in request.headers]
    elif request.target != b"*" or request.method != "OPTIONS":
        raise BadRequest(400, "this is not a request target")


def _find_websocket(request: Request) -> None:
    """Return whether the request opens a websocket (RFC 6455, 4.1). Raises `BadRequest` if it has a body too."""
    if request.http_version == "1.1" and (b"upgrade", b"websocket") in [(name, value.lower()) for name, value in request.headers]:
        lengths = {name for name, _ in request.headers} & {b"content-length", b"transfer-encoding"}
        if request.method != "GET" or lengths:
            raise BadRequest(400, "a websocket begins with a GET without a body")
        request.is_websocket = True
        request.keep_alive = False


@lru_cache(maxsize=1_024)
def _require_host(value: bytes) -> None:
    if len(value) > HOST_BYTES_MAX or not _HOST.fullmatch(value):
        raise BadRequest(400, "invalid Host")


def _require_unambiguous(request: Request) -> None:
    if not request.method:
        raise BadRequest(501, "unknown method")
    if request.http_version not in ("1.1", "1.0"):
        raise BadRequest(505, "unsupported HTTP version")
    hosts = lengths = 0
    coding: bytes | None = None
    for name, value in request.headers:
        if name == b"host":
            hosts += 1
            _require_host(value)
        elif name == b"content-length":
            lengths += 1
        elif name == b"transfer-encoding":
            if coding is not None or value.strip().lower() != b"chunked":
                raise BadRequest(501, "the only transfer coding is chunked")
            coding = value
        elif name == b"expect" and value.strip().lower() == b"100-continue":
            request.expects_continue = request.http_version == "1.1"
    if hosts > 1 or (hosts == 0 and request.http_version == "1.1"):
        raise BadRequest(400, "a request has exactly one Host")
    if lengths > 1 or (coding is not None and (lengths or request.http_version == "1.0")):
        raise BadRequest(400, "the length of the body is ambiguous")

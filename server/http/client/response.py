"""Bytes to responses: llhttp (through httptools) with limits.

One parser serves one connection, response after response. Invariants: 1xx responses are skipped; a response is refused if two
parsers could read it differently, if it exceeds a limit, or if unexpected bytes follow it.
"""

from collections.abc import Sequence

import httptools
import msgspec

from server.http.client.errors import BadResponse

HEAD_BYTES_MAX = 65_536


class Response(msgspec.Struct, frozen=True):
    """A whole response. Header names are in lower case."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first header with that (lower-case) name."""
        return next((value for key, value in self.headers if key == name), None)


class ResponseParser:
    """Call `expect`, then `feed` until `complete`."""

    __slots__ = (
        "_bodiless",
        "_body",
        "_bytes_left",
        "_bytes_max",
        "_cuts",
        "_has_length",
        "_head_bytes",
        "_headers",
        "_is_chunked",
        "_parser",
        "_status",
        "complete",
        "head_complete",
        "heard",
        "keep_alive",
    )

    def __init__(self, *, bytes_max: int, cuts: bool = False) -> None:
        """With `cuts`, a body that is too large is cut and the beginning is the response."""
        self._bytes_max = bytes_max
        self._cuts = cuts
        self._parser: httptools.HttpResponseParser | None = None
        self.expect(bodiless=False)

    def expect(self, *, bodiless: bool) -> None:
        """Start a new response. `bodiless`: the request was a HEAD."""
        self._bodiless = bodiless
        self._bytes_left = self._bytes_max
        self._head_bytes = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._body: list[bytes] = []
        self._status = 0
        self._has_length = self._is_chunked = False
        self.heard = False
        self.head_complete = False
        self.complete = False
        self.keep_alive = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes. Raises `BadResponse`."""
        self.heard = True
        is_too_large = len(data) > self._bytes_left
        if is_too_large and not self._cuts:
            raise BadResponse(f"the response is larger than {self._bytes_max} bytes")
        data = data[: self._bytes_left]
        self._bytes_left -= len(data)
        if self._parser is None:
            self._parser = httptools.HttpResponseParser(self)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            cause = error.__context__
            raise cause if isinstance(cause, BadResponse) else BadResponse(f"not an HTTP response: {error}") from error
        if is_too_large:
            self._cut_off()

    def _cut_off(self) -> None:
        if not self.head_complete:
            raise BadResponse(f"the header block is larger than {self._bytes_max} bytes")
        self.complete = True
        self.keep_alive = False

    @property
    def ends_with_the_stream(self) -> bool:
        """True if the end of the stream is the end of the body."""
        return self.head_complete and not self._has_length

    def response(self) -> Response:
        """The response that was read."""
        body, self._body = self._body, []
        return Response(self._status, self._headers, body[0] if len(body) == 1 else b"".join(body))

    # llhttp's callbacks, in the order in which they come

    def on_message_begin(self) -> None:
        if self.complete:
            raise BadResponse("bytes after the end of the response")
        if self._headers:
            self._headers = []
            self._is_chunked = False

    def on_header(self, name: bytes, value: bytes) -> None:
        lowered = name.lower()
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > HEAD_BYTES_MAX:
            raise BadResponse(f"the header block is larger than {HEAD_BYTES_MAX} bytes")
        if self.head_complete:
            return  # a trailer
        if lowered == b"content-length":
            self._has_length = True
            if not self._bodiless and not self._cuts and int(value) > self._bytes_max:
                raise BadResponse(f"the response is larger than {self._bytes_max} bytes")
        elif lowered == b"transfer-encoding":
            if self._is_chunked or value.strip().lower() != b"chunked":
                raise BadResponse("the only transfer coding is chunked")
            self._has_length = self._is_chunked = True
        self._headers.append((lowered, value))

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._status = self._parser.get_status_code()
        version = self._parser.get_http_version()
        if self._status < 100 or version not in ("1.1", "1.0"):
            raise BadResponse(f"HTTP/{version} with status {self._status} is not supported")
        if self._status < 200:
            self._has_length = False
            return
        if self._is_chunked and version == "1.0":
            raise BadResponse("HTTP/1.0 has no chunked coding")
        self.head_complete = True
        self.keep_alive = self._parser.should_keep_alive()
        if self._bodiless:
            self.complete = True
            self._parser = None  # llhttp would wait for the body that the header announces

    def on_body(self, part: bytes) -> None:
        if self._bodiless or self._status < 200:
            raise BadResponse("unexpected body")
        self._body.append(part)

    def on_message_complete(self) -> None:
        if self._status >= 200:
            self.complete = True

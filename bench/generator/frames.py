"""Parses a server's websocket frames by hand, because a library would cost the reader more than the load does (RFC 6455, 5.2)."""

TEXT, SHORT_MAX, LENGTH_16 = 0x81, 125, 126


def take_frame(buffer: bytearray) -> tuple[int, bytes] | None:
    """The next complete frame of a server: its first byte and its payload; None if it has not arrived (RFC 6455, 5.2)."""
    if len(buffer) < 2:
        return None
    begin, length = 2, buffer[1]
    if length == LENGTH_16:
        begin, length = 4, int.from_bytes(buffer[2:4])
    elif length > SHORT_MAX:
        begin, length = 10, int.from_bytes(buffer[2:10])
    if len(buffer) < begin + length:
        return None
    frame = buffer[0], bytes(buffer[begin : begin + length])
    del buffer[: begin + length]
    return frame

"""`florin haproxy`: a configuration for HAProxy in front of workers with one port each."""

import os
from typing import Annotated

import typer

from server.settings import API_PORT

_TEMPLATE = """\
# Made by `florin haproxy`. Spreads requests round-robin over the workers of `florin up --port-per-worker`
# (or `florin serve --port-per-worker`). Check it with `haproxy -c -f FILE`.

defaults
    mode http
    timeout connect 2s
    timeout client 90s
    # Above the 60 s that a request may wait for an event or an outcome.
    timeout server 75s
    # Websockets: both sides send a ping every 25 s.
    timeout tunnel 75s
    timeout http-request 10s
    timeout http-keep-alive 75s
    timeout check 2s
    option redispatch 1
    retries 3
    # Another worker is tried only if no connection could be made: a request that may have been received is never repeated.
    retry-on conn-failure

frontend florin
    bind {bind}
    default_backend workers

backend workers
    balance roundrobin
    # The reply to a batch waits for its end, up to a quarter of an hour.
    http-request set-timeout server 16m if {{ path_beg /v1/batches }}
    option httpchk GET /readyz
    http-check expect status 200
    default-server check inter 500ms fall 2 rise 1 maxconn 8000
{servers}
"""


def render(*, bind: str, host: str, port: int, workers: int) -> str:
    """The configuration for workers on `port`, `port + 1`, …"""
    servers = "\n".join(f"    server worker{number} {host}:{port + number}" for number in range(workers))
    return _TEMPLATE.format(bind=bind, servers=servers)


def command(
    workers: Annotated[
        int | None, typer.Option(min=1, max=64, help="Number of workers. Default: one per core.", show_default=False)
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of the first worker.")] = API_PORT,
    host: Annotated[str, typer.Option(help="Address that the workers listen on.")] = "127.0.0.1",
    bind: Annotated[str, typer.Option(help="Address and port that HAProxy listens on.")] = "127.0.0.1:8000",
) -> None:
    """Print a configuration for HAProxy."""
    count = workers or len(os.sched_getaffinity(0))
    typer.echo(render(bind=bind, host=host, port=port, workers=count), nl=False)

"""`python -m bench.micro.http`: the CPU cost of HTTP, beside its peers, in one run.

Every subject is its own process on the first core; the load runs on the last. Subjects take turns, round after round; the figure
is the median of the rounds, in µs of user and system time per request.
"""

import os
import platform
import socket
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from bench.measure import LOAD_CORE, MEASURED_CORE, Program, interleaved, program
from bench.micro import http_load
from server.http.server.listener import bind

CONNECTIONS = 64
WARM_UP_REQUESTS = 2_000
SLOW_PEER_SHARE = 10
"""The idiomatic stacks cost so much more that they get fewer requests."""

_console = Console(highlight=False, soft_wrap=True)
_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

Rounds = Annotated[int, typer.Option(min=1, max=50, help="Number of rounds; the figure is their median.")]
Requests = Annotated[int, typer.Option(min=1_000, max=1_000_000, help="Requests per round.")]


@_app.callback(invoke_without_command=True)
def everything(context: typer.Context) -> None:
    """Measure HTTP. Without a command, all parts."""
    _console.print(
        f"{os.cpu_count()} cores, Linux {platform.release()}, Python {platform.python_version()}; "
        "CPU µs by utime + stime, medians of interleaved rounds"
    )
    if context.invoked_subcommand is None:
        server()
        client()
        idle()
        in_flight()
        fan_out()


@_app.command()
def server(rounds: Rounds = 5, requests: Requests = 30_000) -> dict[str, float]:
    """The HTTP server beside uvicorn and quart-trio: 64 connections, POST 200 B -> 200 B."""
    with ExitStack() as stack:
        subjects: dict[str, Callable[[], float]] = {}
        for name in ("florin", "uvicorn", "quart_trio"):
            one, port = stack.enter_context(_serving(name))
            count = requests // SLOW_PEER_SHARE if name == "quart_trio" else requests
            http_load.request_in_turn(stack.enter_context(_connections(port, CONNECTIONS)), min(count, WARM_UP_REQUESTS))
            subjects[name] = _metered(one, count, partial(_ask, port))
        return _print("server", interleaved(subjects, repeats=rounds), {"uvicorn": 1.0, "quart_trio": 1 / 15})


def request_us(requests: int) -> float:
    """The cost of a bare request in our server, on one core, after a warm-up: the unit for the cost of a payment."""
    with _serving("florin") as (one, port), _connections(port, CONNECTIONS) as connections:
        http_load.request_in_turn(connections, WARM_UP_REQUESTS)
        return _metered(one, requests, partial(http_load.request_in_turn, connections))()


@_app.command()
def client(rounds: Rounds = 5, requests: Requests = 30_000) -> dict[str, float]:
    """The HTTP client beside aiohttp and httpx: 64 tasks, keep-alive."""
    with ExitStack() as stack:
        listening = stack.enter_context(bind("127.0.0.1", 0))
        port = listening.getsockname()[1]
        stack.enter_context(program("bench.micro.http_load", str(listening.fileno()), core=LOAD_CORE, sockets=[listening]))
        subjects: dict[str, Callable[[], float]] = {}
        for name in ("florin", "aiohttp", "httpx", "httpx_tuned"):
            one = stack.enter_context(program("bench.micro.http_clients", name, str(port), core=MEASURED_CORE))
            count = requests // SLOW_PEER_SHARE if name.startswith("httpx") else requests
            _tell(one, min(count, WARM_UP_REQUESTS))
            subjects[name] = _metered(one, count, partial(_tell, one))
        return _print("client", interleaved(subjects, repeats=rounds), {"aiohttp": 0.7, "httpx": 1 / 50, "httpx_tuned": 1 / 50})


@_app.command()
def idle(connections: Annotated[int, typer.Option(min=100, max=15_000)] = 10_000) -> None:
    """Memory per idle keep-alive connection, after one request each."""
    for name in ("florin", "uvicorn"):
        with _serving(name) as (one, port), _connections(port, 200) as warm:
            http_load.request_in_turn(warm, len(warm))
            before = one.resident_bytes
            with _connections(port, connections) as idle_ones:
                http_load.request_in_turn(idle_ones, len(idle_ones))
                each = (one.resident_bytes - before) / connections
            target = f" (target: at most 8,192{_verdict(each, 8_192)})" if name == "florin" else ""
            _console.print(f"idle      {name:<15} {each:8,.0f} bytes resident per connection, of {connections:,}{target}")


@_app.command()
def in_flight(requests: Annotated[int, typer.Option(min=100, max=15_000)] = 15_000) -> None:
    """As many requests as possible inside the application at the same time."""
    with _serving("florin_waiting", str(requests)) as (one, port):
        before = one.resident_bytes
        with _connections(port, requests) as connections:
            http_load.request_in_turn(connections, len(connections))
            each = (one.resident_bytes - before) / requests
    _console.print(
        f"in flight {requests:,} requests at once, all answered; {each:,.0f} bytes resident each (target: 8,000 at once)"
    )


@_app.command()
def fan_out(rounds: Rounds = 5, sockets: Annotated[int, typer.Option(min=10, max=9_000)] = 5_000) -> None:
    """One event of 300 bytes to many websockets, beside trio-websocket; then with one of them not reading.

    The target is 15 µs per socket; trio-websocket takes 40.
    """
    event, events = b"e" * 300, 10
    delays: dict[str, list[float]] = {"all read": [], "one stalled": []}
    with ExitStack() as stack:
        subjects: dict[str, Callable[[], float]] = {}
        for name in ("florin_fan_out", "trio_websocket"):
            one, port = stack.enter_context(_serving(name))
            audience = stack.enter_context(http_load.Audience(port, sockets))
            say = audience.publish if name == "florin_fan_out" else audience.say
            say(event, 1)
            subjects[name] = _metered(one, events, partial(say, event), times=sockets)
        _print("fan-out", interleaved(subjects, repeats=rounds), {"trio_websocket": 15 / 40})
    with _serving("florin_fan_out") as (one, port), http_load.Audience(port, sockets) as audience:
        for state, seconds in delays.items():
            if state == "one stalled":
                audience.stall()
            began = one.cpu_seconds
            seconds += [audience.publish(event, events) for _ in range(rounds)]
            each = (one.cpu_seconds - began) / (rounds * events * sockets) * 1e6
            _console.print(
                f"fan-out   {state:<15} {each:8.1f} µs per socket; the last reader has the event after "
                f"{statistics.median(seconds) * 1e3:.0f} ms (longest of {events}, median of {rounds} rounds)"
            )


@contextmanager
def _serving(name: str, *arguments: str) -> Iterator[tuple[Program, int]]:
    with (
        bind("127.0.0.1", 0) as listening,
        program(
            "bench.micro.http_servers", name, str(listening.fileno()), *arguments, core=MEASURED_CORE, sockets=[listening]
        ) as one,
    ):
        yield one, listening.getsockname()[1]


def _ask(port: int, count: int) -> None:
    """On new connections: between its turns a server may close idle ones."""
    with _connections(port, CONNECTIONS) as connections:
        http_load.request_in_turn(connections, count)


@contextmanager
def _connections(port: int, count: int) -> Iterator[list[socket.socket]]:
    with ExitStack() as stack:
        yield [stack.enter_context(one) for one in http_load.connect(port, count)]


def _metered(one: Program, count: int, load: Callable[[int], object], *, times: int = 1) -> Callable[[], float]:
    """Measure a round: CPU µs per request, or per message if each request makes several."""

    def measure() -> float:
        began = one.cpu_seconds
        load(count)
        return (one.cpu_seconds - began) / (count * times) * 1e6

    return measure


def _tell(one: Program, count: int) -> None:
    assert one.process.stdin is not None
    assert one.process.stdout is not None
    one.process.stdin.write(f"{count}\n")
    if one.process.stdout.readline().strip() != "done":
        raise ConnectionError("a client ended before its calls were done")


def _print(part: str, found: Mapping[str, Sequence[float]], targets: Mapping[str, float]) -> dict[str, float]:
    """Print the medians; the first subject's as a ratio to each of the others'."""
    medians = {name: statistics.median(values) for name, values in found.items()}
    ours, *_ = medians
    ratios = {name: medians[ours] / medians[name] for name in targets}
    for name, values in found.items():
        line = f"{part:<9} {name:<15} {medians[name]:8.1f} µs (from {min(values):.1f} to {max(values):.1f})"
        if name in targets:
            target = f"target: at most {targets[name]:.3f}{_verdict(ratios[name], targets[name])}"
            line += f"   {ours} is {ratios[name]:.3f} of it ({target})"
        _console.print(line)
    return ratios


def _verdict(value: float, at_most: float) -> str:
    return ": met" if value <= at_most else ": MISSED"


if __name__ == "__main__":
    os.sched_setaffinity(0, {LOAD_CORE})
    _app()

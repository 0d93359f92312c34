"""What a run is asked for, and whether that makes sense: said before anything is started, in one line that says what to do.

Only loopback is loaded, unless told otherwise: load on somebody else's host is an attack.
"""

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.generator.arrivals import Arrivals
from bench.lab.scenarios import Scenario
from bench.lab.subjects import PEERS
from core.errors import FlorinError

_SECRET_WORDS = ("KEY", "PASS", "SECRET", "TOKEN", "URL")


class BenchError(FlorinError):
    """The run cannot be made as asked for; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What was asked for. What is None follows from the scenario."""

    scenario: str
    subjects: Sequence[str] = ("florin",)
    url: str | None = None
    key: str | None = None
    allow_remote: bool = False
    workers: int = 1
    generators: int = 1
    rounds: int = 1
    rate: float | None = None
    steps: Sequence[float] = ()
    arrivals: Arrivals | None = None
    callers: int | None = None
    seconds: float | None = None
    count: int | None = None
    warm_up_seconds: float = 4.0
    merchants: int | None = None
    psp_ms: int | None = None
    sockets: int | None = None
    items: int | None = None
    settings: Mapping[str, str] = field(default_factory=dict)


def require_loopback(url: str, *, allow_remote: bool) -> None:
    """Raises `BenchError` for what is no address of an instance, or not on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        is_plain = parts.scheme == "http" and parts.path in ("", "/") and parts.username is None and bool(host)
    except ValueError:
        is_plain = False
    if not is_plain:
        raise BenchError(f"an instance is given like http://127.0.0.1:8080, not like {url[:80]!r}: http, host and port")
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here and not allow_remote:
        raise BenchError(f"{host} is not this machine: load on it needs its owner's consent. If you have it: --allow-remote")


def require_sense(asked: Asked, scenario: Scenario) -> None:
    """Raises `BenchError` for what would be ignored, or cannot be: before anything is started."""
    url, is_batch = asked.url, scenario.journey == "batch"
    peers = [name for name in asked.subjects if name in PEERS]
    strangers = [name for name in asked.subjects if name not in PEERS and name != "florin" and not Path(name).is_dir()]
    wrong = {
        "a loop is open (--rate, --steps) or closed (--callers), not both": (
            (asked.rate is not None or bool(asked.steps)) and asked.callers is not None
        ),
        "--rate is one rate and --steps several, one after the other: choose one": asked.rate is not None and bool(asked.steps),
        "--steps takes rates from 0.1 to 100,000 by commas, as 100,200,400": any(
            not 0.1 <= one <= 100_000 for one in asked.steps
        ),
        f"`{asked.scenario}` has a schedule of its own: give --rate, not --steps": scenario.is_timed and bool(asked.steps),
        "--arrivals closed is what --callers asks for": asked.arrivals is Arrivals.CLOSED,
        "--arrivals spreads an open loop: it needs --rate": (
            asked.arrivals is not None and asked.rate is None and not asked.steps and scenario.defaults.rate is None
        ),
        f"`{asked.scenario}` is made by its schedule: give --rate, not --callers": scenario.is_timed
        and asked.callers is not None,
        "--items is for `batch`": asked.items is not None and not is_batch,
        "--sockets is for `stream`": asked.sockets is not None and not scenario.hears_stream,
        "--subjects are started here, and --url runs already: choose one": url is not None and list(asked.subjects) != ["florin"],
        "--psp-ms, --workers, --merchants and --set are of a Florin that is started here, not of --url": (
            url is not None and bool(asked.psp_ms or asked.workers != 1 or asked.merchants or asked.settings)
        ),
        f"`{asked.scenario}` needs a Florin that is started here, for its PSP or its memory: leave --url out": (
            url is not None and (scenario.pages or asked.scenario in ("soak", "outage", "batch"))
        ),
        "an instance that runs needs --key with an API key of a test merchant (`florin up` shows one)": (
            url is not None and asked.key is None and scenario.takes_payments
        ),
        "this is a live key: load would charge real cards. Use a test merchant's": (asked.key or "").startswith("fl_live_"),
        f"peers implement the sync flow only: measure them with `sync`, not with `{asked.scenario}`": (
            bool(peers) and not scenario.is_for_peers
        ),
        "a Florin that is started for a run has its own database and key: leave them out of --set": bool(
            {"FLORIN_DATABASE_URL", "FLORIN_KEY_FILE"} & asked.settings.keys()
        ),
        f"there is no subject {(strangers or [''])[0]!r}: florin, {', '.join(PEERS)}, or the directory of a checkout": bool(
            strangers
        ),
    }
    for text, is_so in wrong.items():
        if is_so:
            raise BenchError(text)
    if url is not None:
        require_loopback(url, allow_remote=asked.allow_remote)


def command_line(arguments: Sequence[str]) -> str:
    """The command as it may be shown to others: without keys, and without settings that are secrets."""
    shown = ["florin", "bench"]
    for before, one in zip(["", *arguments], arguments, strict=False):
        name, _, value = one.partition("=")
        if before == "--key" or (name == "--key" and value):
            one = "…" if before == "--key" else "--key=…"
        elif before == "--set" or name == "--set":
            one = one[: one.rfind("=")] + "=…" if any(word in one for word in _SECRET_WORDS) else one
        if one != "bench":
            shown.append(one)
    return " ".join(shown)


def shown_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that may be shown to others."""
    return {name: value for name, value in settings.items() if not any(word in name for word in _SECRET_WORDS)}

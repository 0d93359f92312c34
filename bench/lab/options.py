"""The options of a run, validated before anything is started, with errors of one line that say what to do.

Only loopback is loaded unless allowed otherwise: load on somebody else's host is an attack.
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
    """The run cannot be made as requested; the text says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """The options of a run. None means the scenario's default."""

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


def rates_of(text: str | None) -> list[float]:
    """The rates of `--steps`. Raises `BenchError`."""
    try:
        return [float(one) for one in text.split(",")] if text else []
    except ValueError as error:
        raise BenchError(f"--steps takes rates separated by commas, like 100,200,400, not {text!r}") from error


def settings_of(given: Sequence[str]) -> dict[str, str]:
    """The settings of `--set`. Raises `BenchError`."""
    pairs = [one.partition("=") for one in given]
    if wrong := [name for name, is_pair, _ in pairs if not (is_pair and name.startswith("FLORIN_"))]:
        raise BenchError(f"--set takes FLORIN_NAME=VALUE, not {wrong[0]!r}")
    return {name: value for name, _, value in pairs}


def require_loopback(url: str, *, allow_remote: bool) -> None:
    """Raise `BenchError` for a URL that is not an instance's, or not on this machine."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
        is_plain = parts.scheme == "http" and parts.path in ("", "/") and parts.username is None and bool(host)
    except ValueError:
        is_plain = False
    if not is_plain:
        raise BenchError(f"--url must be like http://127.0.0.1:8080, not {url[:80]!r}: http, host and port")
    try:
        is_here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_here = host == "localhost"
    if not is_here and not allow_remote:
        raise BenchError(f"{host} is not this machine: load on it needs its owner's consent. If you have it, add --allow-remote")


def require_sense(options: RunOptions, scenario: Scenario) -> None:
    """Raise `BenchError` for options that contradict each other or would be ignored."""
    url, is_batch = options.url, scenario.journey == "batch"
    peers = [name for name in options.subjects if name in PEERS]
    strangers = [name for name in options.subjects if name not in PEERS and name != "florin" and not Path(name).is_dir()]
    wrong = {
        "give either an open loop (--rate, --steps) or a closed one (--callers)": (
            (options.rate is not None or bool(options.steps)) and options.callers is not None
        ),
        "give either --rate, one rate, or --steps, several rates one after another": options.rate is not None
        and bool(options.steps),
        "--steps takes rates between 0.1 and 100,000, separated by commas, like 100,200,400": any(
            not 0.1 <= one <= 100_000 for one in options.steps
        ),
        f"`{options.scenario}` has its own schedule: give --rate, not --steps": scenario.is_timed and bool(options.steps),
        "use --callers for a closed loop": options.arrivals is Arrivals.CLOSED,
        "--arrivals is for an open loop: add --rate": (
            options.arrivals is not None and options.rate is None and not options.steps and scenario.defaults.rate is None
        ),
        f"`{options.scenario}` needs a schedule: give --rate, not --callers": scenario.is_timed and options.callers is not None,
        "--items is for `batch`": options.items is not None and not is_batch,
        "--sockets is for `stream`": options.sockets is not None and not scenario.hears_stream,
        "give either --subjects, which are started here, or --url, which runs already": url is not None
        and list(options.subjects) != ["florin"],
        "--psp-ms, --workers, --merchants and --set are for a Florin that is started here, not for --url": (
            url is not None and bool(options.psp_ms or options.workers != 1 or options.merchants or options.settings)
        ),
        f"`{options.scenario}` needs a Florin that is started here, because of its PSP or its memory: leave out --url": (
            url is not None and (scenario.pages or options.scenario in ("soak", "outage", "batch"))
        ),
        "--url needs --key with an API key of a test merchant (`florin up` shows one)": (
            url is not None and options.key is None and scenario.takes_payments
        ),
        "this is a live key: load would charge real cards. Use a test merchant's": (options.key or "").startswith("fl_live_"),
        f"peers implement the sync flow only: measure them with `sync`, not `{options.scenario}`": (
            bool(peers) and not scenario.is_for_peers
        ),
        "a Florin that is started for a run has its own database and key: leave them out of --set": bool(
            {"FLORIN_DATABASE_URL", "FLORIN_KEY_FILE"} & options.settings.keys()
        ),
        f"unknown subject {(strangers or [''])[0]!r}: expected florin, {', '.join(PEERS)}, or the directory of a checkout": bool(
            strangers
        ),
    }
    for text, is_so in wrong.items():
        if is_so:
            raise BenchError(text)
    if url is not None:
        require_loopback(url, allow_remote=options.allow_remote)


def command_line(arguments: Sequence[str]) -> str:
    """The command line to show to others: without keys, and without settings that are secrets."""
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
    """The settings to show to others."""
    return {name: value for name, value in settings.items() if not any(word in name for word in _SECRET_WORDS)}

"""The settings of a Florin process: frozen, and the only reader of the environment.

Every setting is a `FLORIN_...` variable. Flags of the command line take precedence.
"""

import os
import tempfile
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_interface, ip_network
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticUndefined
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import FlorinError
from core.nearest import unknown

API_PORT = 8080
PSP_PORT = 8090
SHOP_PORT = 8091

_PREFIX = "FLORIN_"
_OF_COMMANDS = ("FLORIN_SETTINGS", "FLORIN_DATA_DIR", "FLORIN_API_URL", "FLORIN_API_KEY", "FLORIN_OPERATOR_KEY")
"""The variables that only commands read."""

_OF_TESTS = "FLORIN_TEST_"

T = TypeVar("T", bound=BaseSettings)


def default_data_directory() -> Path:
    """The default data directory: `FLORIN_DATA_DIR`, else below /var/lib for root, whose home other users cannot enter, else in
    the user's home.
    """
    given = environment("DATA_DIR")
    if given is not None:
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/lib/florin")
    return Path.home() / ".local" / "share" / "florin"


def state_directory() -> Path:
    """The place of files that outlive a process and are not worth a backup. Source: XDG Base Directory Specification."""
    given = os.environ.get("XDG_STATE_HOME")
    return (Path(given) if given else Path.home() / ".local" / "state") / "florin"


def runtime_directories() -> list[Path]:
    """The places for files that live as long as a process of this user, the best one first; not all need exist.

    Source: XDG Base Directory Specification, `XDG_RUNTIME_DIR`.
    """
    uid = os.geteuid()
    given = os.environ.get("XDG_RUNTIME_DIR")
    usual = Path("/run" if uid == 0 else f"/run/user/{uid}")
    parents = [one for one in (Path(given) if given else usual, usual) if one.is_dir()]
    return [*(one / "florin" for one in parents), Path(tempfile.gettempdir()) / f"florin-{uid}"]


class SettingsError(FlorinError):
    """A setting in the environment is invalid; the text names it."""

    code = "settings_error"


class AlertSettings(BaseSettings):
    """Settings of alerts, and the networks besides the internet that their webhook may use."""

    model_config = SettingsConfigDict(env_prefix="FLORIN_", frozen=True, extra="ignore")

    webhook_networks: str = Field(
        default="",
        description="networks besides the public internet that webhooks may go to, also over http, separated by commas",
    )
    alert_webhook_url: str = Field(
        default="", description="URL that alerts are posted to, such as a Slack incoming webhook; empty: none"
    )
    alert_smtp_url: str = Field(
        default="", description="mail server for alerts, smtp://user:password@host:587 or smtps://...; empty: no mail"
    )
    alert_mail_from: str = Field(default="", description="sender of alerts by mail")
    alert_mail_to: str = Field(default="", description="recipients of alerts by mail, separated by commas")

    @field_validator("webhook_networks")
    @classmethod
    def _require_networks(cls, text: str) -> str:
        parse_networks(text)
        return text

    @model_validator(mode="after")
    def _require_usable_channels(self) -> "AlertSettings":
        """Refuse a channel that cannot work, because otherwise that is found out when it is too late."""
        if self.alert_webhook_url and not self.alert_webhook_url.lower().startswith(("https://", "http://")):
            raise ValueError("FLORIN_ALERT_WEBHOOK_URL must begin with https://, or with http:// in development")
        if self.alert_smtp_url and not self.alert_smtp_url.lower().startswith(("smtp://", "smtps://")):
            raise ValueError("FLORIN_ALERT_SMTP_URL must be like smtp://user:password@mail.example:587")
        if len({bool(self.alert_smtp_url), bool(self.alert_mail_from), bool(self.alert_mail_to)}) > 1:
            raise ValueError("FLORIN_ALERT_SMTP_URL, FLORIN_ALERT_MAIL_FROM and FLORIN_ALERT_MAIL_TO go together")
        return self


class Settings(AlertSettings):
    """The settings of a worker."""

    database_url: str = Field(description="PostgreSQL 15 or newer, as a URL or libpq string")
    key_file: Path = Field(description="file with the key that seals secrets at rest")
    pool_size: int = Field(default=8, ge=1, le=100, description="database connections of a worker, besides its committers")
    # Bounded, because a payment that its PSP does not know after a minute is taken to have never been sent.
    psp_seconds: float = Field(default=10.0, gt=0, le=25, description="time limit of a call to a PSP, connecting included")
    psp_read_seconds: float = Field(default=5.0, gt=0, le=25, description="time limit of a fetch from a PSP")
    fraud_url: str = Field(default="", description="URL of the fraud check that is asked before any PSP; empty: none")
    fraud_token: str = Field(default="", description="bearer token for the fraud check")
    connect_seconds: float = Field(default=3.0, gt=0, description="time limit of connecting to a PSP or merchant")
    delivery_seconds: float = Field(default=15.0, gt=0, le=60, description="time limit of one webhook to a merchant")
    sweep_seconds: float = Field(default=1.0, gt=0, description="interval at which jobs look for due work")
    drain_seconds: float = Field(default=5.0, ge=0, description="time that running requests have after SIGTERM")
    merchant_requests_per_second: float = Field(
        default=10_000, ge=0, description="requests per second of a merchant to all workers, unless it has its own; 0: no limit"
    )
    merchant_requests_in_flight: int = Field(
        default=768,
        ge=1,
        description="concurrent requests of a merchant in a worker, unless it has its own; further ones get 429",
    )
    linger_seconds: float = Field(
        default=1.5, ge=0, le=60, description="time after SIGTERM in which requests are still accepted, while /readyz says 503"
    )
    requests_in_flight_max: int = Field(default=1_024, ge=1, description="concurrent requests in a worker; further ones get 503")
    tls_cert: str = Field(default="", description="certificate chain in PEM, for TLS 1.3 without a proxy in front")
    tls_key: str = Field(default="", description="the certificate's key in PEM")
    proxy_protocol: bool = Field(default=False, description="every connection begins with a PROXY header, version 2")
    trusted_proxies: str = Field(
        default="", description="addresses or networks whose X-Forwarded-* is believed, separated by commas"
    )
    allowed_origins: str = Field(
        default="",
        description="origins whose pages may ask for a ticket of the stream and read what is public, like https://shop.example, "
        "separated by commas",
    )
    metrics_token: str = Field(default="", description="bearer token for GET /metrics; empty: no access")
    refund_approval_minor: int = Field(
        default=50_000,
        ge=0,
        description="refunds by operators above this amount, in minor units, need a second operator",
    )
    log_level: str = Field(
        default="info",
        pattern="^(debug|info|warning|error)$",
        description="the least level of the log: debug, info, warning or error",
    )

    @field_validator("trusted_proxies")
    @classmethod
    def _require_proxies(cls, text: str) -> str:
        parse_networks(text)
        return text

    @field_validator("allowed_origins")
    @classmethod
    def _require_origins(cls, text: str) -> str:
        for origin in parse_list(text):
            if not _is_web_address(origin) or urlsplit(origin).path or urlsplit(origin).query:
                raise ValueError(f"{origin!r} is not an origin: write it like https://shop.example")
        return text

    @field_validator("fraud_url")
    @classmethod
    def _require_url(cls, text: str) -> str:
        if text and not _is_web_address(text):
            raise ValueError(f"{text!r} is not a URL: write it like https://fraud.example/check")
        return text

    @model_validator(mode="after")
    def _certificate_and_key(self) -> "Settings":
        """Refuse a certificate without its key, which must not be served as plain HTTP."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("FLORIN_TLS_CERT and FLORIN_TLS_KEY (--tls-cert and --tls-key) go together: set both or neither")
        return self

    @property
    def delivery_lease_seconds(self) -> float:
        """The lease of a delivery: twice the time limit of an attempt."""
        return 2 * self.delivery_seconds


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, overridden by `given`. Raises `SettingsError`."""
    return _loaded(Settings, given)


def load_alert_settings() -> AlertSettings:
    """The settings of alerts alone. Raises `SettingsError`."""
    return _loaded(AlertSettings, {})


def _loaded(kind: type[T], given: dict[str, Any]) -> T:
    require_known_variables()
    try:
        return kind(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explained, error.errors()))) from None


def _explained(error: ErrorDetails) -> str:
    name = "_".join(map(str, error["loc"])).upper()
    said = error["msg"].removeprefix("Value error, ")
    return f"FLORIN_{name}: {said}" if name else said


def parse_list(text: str) -> list[str]:
    """The parts of a text that are separated by commas, without blanks around them; empty ones do not count."""
    return [one.strip() for one in text.split(",") if one.strip()]


def parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Parse networks or addresses, separated by commas. Raises ValueError with what is wrong."""
    found = []
    for one in parse_list(text):
        try:
            found.append(_unmapped(ip_network(one)))
        except ValueError as error:
            advice = "write it like 127.0.0.0/8,::1"
            try:
                interface = ip_interface(one)
                advice = f"it is an address and a network at once: write {interface.network} or {interface.ip}"
            except ValueError:
                pass
            raise ValueError(f"{one!r} is not a network: {advice}") from error
    return found


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """The network itself, if it is one of IPv4 that is mapped into IPv6: peers are compared by that."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) and network.prefixlen >= 96 else None
    return network if mapped is None else IPv4Network((mapped, network.prefixlen - 96))


def settings_file(what: str, given: Mapping[str, str], *, with_all: bool) -> str:
    """The text of a file of settings, for `florin --settings` and for systemd's EnvironmentFile.

    `with_all`: every other setting of a worker stands there too, commented out, with its meaning and default.
    """
    lines = [
        f"# Settings {what}. Use them by `florin --settings FILE COMMAND`, or as systemd's EnvironmentFile.",
        "# They contain secrets.",
    ]
    for name, field in Settings.model_fields.items() if with_all else ():
        if name.upper() not in given:
            default = "" if field.default is PydanticUndefined else str(field.default)
            said = field.description or ""
            lines += ["", f"# {said[:1].upper()}{said[1:]}.", f"#{_PREFIX}{name.upper()}={default}"]
    return "\n".join([*lines[:2], "", *(f"{_PREFIX}{name}={value}" for name, value in given.items()), *lines[2:], ""])


def read_settings_file(path: Path) -> None:
    """Set the variables of a file of settings in the environment, in which those that are set already take precedence.

    A line is `NAME=VALUE`, with or without quotes around the value, or a comment. Raises `SettingsError` with the line.
    """
    try:
        lines = path.read_text("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"cannot read the settings in {path}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith(("#", ";")):
            continue
        name, equals, value = (part.strip() for part in line.partition("="))
        if not equals or not name.startswith(_PREFIX) or "\0" in line:
            raise SettingsError(f"{path}, line {number}: expected {_PREFIX}NAME=VALUE")
        if name in found:
            raise SettingsError(f"{path}, line {number}: {name} is set a second time")
        if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
            value = value[1:-1]
        found[name] = value
    for name, value in found.items():
        os.environ.setdefault(name, value)


def environment_networks(name: str) -> list[IPv4Network | IPv6Network] | None:
    """The networks of one variable, or None if it is not set or empty. Raises `SettingsError`."""
    text = environment(name)
    try:
        return parse_networks(text) if text is not None else None
    except ValueError as error:
        raise SettingsError(f"FLORIN_{name}: {error}") from error


def environment(name: str) -> str | None:
    """One variable, for commands that need no others; None if it is not set or empty."""
    return os.environ.get(f"{_PREFIX}{name}") or None


def refund_approval_minor() -> int:
    """The amount above which a refund by an operator needs another one. Raises `SettingsError`."""
    field, text = Settings.model_fields["refund_approval_minor"], environment("REFUND_APPROVAL_MINOR")
    if text is not None and not (text.isascii() and text.isdigit()):
        raise SettingsError(f"FLORIN_REFUND_APPROVAL_MINOR: {text!r} is not a number of minor units")
    return int(field.default if text is None else text)


def require_known_variables() -> None:
    """Raise `SettingsError` for a variable that nothing reads: most likely it is mistyped."""
    known = [*(f"{_PREFIX}{name.upper()}" for name in Settings.model_fields), *_OF_COMMANDS]
    for name in os.environ:
        if name.startswith(_PREFIX) and not name.startswith(_OF_TESTS) and name not in known:
            raise SettingsError(unknown("variable", name, known))


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        return False

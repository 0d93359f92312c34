"""The settings of a Florin process: frozen, and the only reader of the environment.

Every setting is a `FLORIN_...` variable; flags of the command line win over it.
"""

import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from core.errors import FlorinError

API_PORT = 8080
PSP_PORT = 8090
SHOP_PORT = 8091

T = TypeVar("T", bound=BaseSettings)


def default_data_directory() -> Path:
    """Where data lives unless told: below /var/lib for root, whose home other users cannot enter, else in the user's home."""
    if os.geteuid() == 0:
        return Path("/var/lib/florin")
    return Path.home() / ".local" / "share" / "florin"


class SettingsError(FlorinError):
    """A setting in the environment is not what it should be; the text names it."""

    code = "settings_error"


class AlertSettings(BaseSettings):
    """How people are told of what they have to know, and which networks besides the internet may be called for it."""

    model_config = SettingsConfigDict(env_prefix="FLORIN_", frozen=True, extra="ignore")

    webhook_networks: str = Field(
        default="", description="networks, by commas, that webhooks may go to besides the public internet, over http too"
    )
    alert_webhook_url: str = Field(
        default="", description="where alerts are posted, as to an incoming webhook of Slack; empty: no"
    )
    alert_smtp_url: str = Field(
        default="", description="mail server for alerts, smtp://user:password@host:587 or smtps://...; empty: no mail"
    )
    alert_mail_from: str = Field(default="", description="who alerts by mail are from")
    alert_mail_to: str = Field(default="", description="who gets alerts by mail, by commas")

    @model_validator(mode="after")
    def _ways_of_alerts(self) -> "AlertSettings":
        """An alert that goes nowhere is found out when it is too late."""
        if self.alert_webhook_url and not self.alert_webhook_url.lower().startswith(("https://", "http://")):
            raise ValueError("FLORIN_ALERT_WEBHOOK_URL begins with https://, or with http:// in development")
        if self.alert_smtp_url and not self.alert_smtp_url.lower().startswith(("smtp://", "smtps://")):
            raise ValueError("FLORIN_ALERT_SMTP_URL is like smtp://user:password@mail.example:587")
        if len({bool(self.alert_smtp_url), bool(self.alert_mail_from), bool(self.alert_mail_to)}) > 1:
            raise ValueError("FLORIN_ALERT_SMTP_URL, FLORIN_ALERT_MAIL_FROM and FLORIN_ALERT_MAIL_TO go together")
        return self


class Settings(AlertSettings):
    """What a worker needs to know."""

    database_url: str = Field(description="PostgreSQL 15 or newer, as a URL or libpq string")
    key_file: Path = Field(description="file with the key that seals secrets at rest")
    pool_size: int = Field(default=8, ge=1, le=100, description="database connections of a worker, besides its writers")
    # Bounded, because a payment whose PSP knows nothing of it after a minute is taken to have been never sent.
    psp_seconds: float = Field(default=10.0, gt=0, le=25, description="how long a call to a PSP may take, connecting included")
    psp_read_seconds: float = Field(default=5.0, gt=0, le=25, description="how long asking a PSP how something stands may take")
    fraud_url: str = Field(default="", description="the fraud check that is asked before a PSP is; empty: none")
    fraud_token: str = Field(default="", description="sent to the fraud check as a bearer token")
    connect_seconds: float = Field(default=3.0, gt=0, description="how long connecting to a PSP or merchant may take")
    delivery_seconds: float = Field(default=15.0, gt=0, le=60, description="how long one webhook to a merchant may take")
    sweep_seconds: float = Field(default=1.0, gt=0, description="how often jobs look for work that is due")
    drain_seconds: float = Field(default=5.0, ge=0, description="how long requests in hand may take after SIGTERM")
    requests_in_flight_max: int = Field(default=1_024, ge=1, description="requests at once in a worker; more get 503")
    tls_cert: str = Field(default="", description="certificate chain in PEM, for TLS 1.3 without a proxy in front")
    tls_key: str = Field(default="", description="the certificate's key in PEM")
    proxy_protocol: bool = Field(default=False, description="every connection begins with a PROXY header, version 2")
    trusted_proxies: str = Field(default="", description="addresses or networks, by commas, whose X-Forwarded-* is believed")
    metrics_token: str = Field(default="", description="who sends it as a bearer token may read GET /metrics; empty: nobody")
    log_level: str = Field(default="info", pattern="^(debug|info|warning|error)$")

    @model_validator(mode="after")
    def _certificate_and_key(self) -> "Settings":
        """A certificate without its key must not be served as plain HTTP."""
        if bool(self.tls_cert) != bool(self.tls_key):
            raise ValueError("FLORIN_TLS_CERT and FLORIN_TLS_KEY (--tls-cert and --tls-key) go together: set both or neither")
        return self

    @property
    def delivery_lease_seconds(self) -> float:
        """How long a delivery is left to one worker: twice what an attempt may take."""
        return 2 * self.delivery_seconds


def load_settings(**given: Any) -> Settings:
    """The settings of the environment, under what is `given`. Raises `SettingsError`."""
    return _loaded(Settings, given)


def load_alert_settings() -> AlertSettings:
    """Those of alerts alone. Raises `SettingsError`."""
    return _loaded(AlertSettings, {})


def _loaded(kind: type[T], given: dict[str, Any]) -> T:
    try:
        return kind(**given)
    except ValidationError as error:
        raise SettingsError("; ".join(map(_explained, error.errors()))) from None


def _explained(error: ErrorDetails) -> str:
    name = "_".join(map(str, error["loc"])).upper()
    return f"FLORIN_{name}: {error['msg']}" if name else error["msg"].removeprefix("Value error, ")


def webhook_networks(settings: AlertSettings) -> list[IPv4Network | IPv6Network]:
    """The networks of development. Raises `SettingsError`."""
    return parse_networks(settings.webhook_networks)


def parse_networks(text: str) -> list[IPv4Network | IPv6Network]:
    """Networks or addresses, by commas. Raises `SettingsError`."""
    try:
        return [ip_network(one.strip()) for one in text.split(",") if one.strip()]
    except ValueError as error:
        raise SettingsError(f"FLORIN_WEBHOOK_NETWORKS: {error}; write it like 127.0.0.0/8,::1") from error


def environment(name: str) -> str | None:
    """One setting of the environment, for commands that need no others; None where it is not set or empty."""
    return os.environ.get(f"FLORIN_{name}") or None

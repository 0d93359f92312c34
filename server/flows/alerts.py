"""The channels of alerts: the log, always; a URL that accepts Slack's incoming webhooks; mail.

All due alerts go in one message. The webhook's address is checked when connecting, as merchants' are: it must be on the public
internet or in a network that the settings name.
"""

import smtplib
import socket
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from urllib.parse import unquote, urlsplit

import httpx2
import structlog
import trio

from core.errors import FlorinError
from core.ids import MERCHANT, encode_id
from core.redaction import redacted_url
from server.db.alerts import NOBODY, NotedAlert
from server.flows.webhooks.destinations import Destinations
from server.http.client.dial import Lookups, resolve
from server.http.client.errors import Refused
from server.http.client.url import parse_origin, split

SEND_SECONDS = 10.0
MAIL_SECONDS = 45.0

SMTP_PORT, SMTPS_PORT = 587, 465
_log = structlog.get_logger()


class AlertNotSent(FlorinError):
    """A channel did not accept an alert; the text says which one and why."""

    code = "alert_not_sent"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mail:
    """`url` is smtp://user:password@host:port, with STARTTLS if the server offers it, or smtps://."""

    url: str
    sender: str
    recipients: tuple[str, ...]


class Channels:
    """All configured channels."""

    def __init__(self, destinations: Destinations, *, webhook_url: str = "", mail: Mail | None = None) -> None:
        self._destinations = destinations
        self._webhook_url = webhook_url
        self._mail = mail
        self._lookups = Lookups()
        self._mailing = trio.CapacityLimiter(1)

    @property
    def names(self) -> list[str]:
        """The configured channels, for people."""
        found = ["log"]
        if self._webhook_url:
            found.append(f"webhook {redacted_url(self._webhook_url)}")
        if self._mail is not None:
            found.append(f"mail to {', '.join(self._mail.recipients)}")
        return found

    async def send(self, alerts: Sequence[NotedAlert], *, more: int = 0, all_channels: bool = False) -> None:
        """Send alerts on all channels; a failure of one does not stop the others. `more` is the number of further alerts that
        wait.

        Raises `AlertNotSent` if there are channels besides the log and all of them failed, or with `all_channels` if any failed.
        """
        for noted in alerts:
            alert = noted.alert
            if noted.attempts > 1:
                continue
            _log.error("alert", kind=alert.kind, key=alert.key, title=alert.title, detail=alert.detail, times=noted.times)
        subject, text = message(alerts, more=more)
        failures: list[str] = []
        ways = 0
        if self._webhook_url:
            ways += 1
            try:
                await self._post(text)
            except Refused as error:
                failures.append(f"webhook: {error}; set FLORIN_WEBHOOK_NETWORKS to allow a private network")
            except Exception as error:  # noqa: BLE001 - the other channels are tried whatever failed here
                failures.append(f"webhook: {error or type(error).__name__}")
        if self._mail is not None:
            ways += 1
            try:
                with trio.fail_after(MAIL_SECONDS):
                    await trio.to_thread.run_sync(
                        _send_mail, self._mail, subject, text, abandon_on_cancel=True, limiter=self._mailing
                    )
            except Exception as error:  # noqa: BLE001 - the other channels are tried whatever failed here
                failures.append(f"mail: {error or type(error).__name__}")
        for failure in failures:
            _log.warning("an alert channel failed", error=failure)
        if ways and len(failures) >= (1 if all_channels else ways):
            raise AlertNotSent("; ".join(failures))

    async def _post(self, text: str) -> None:
        """Post to the address that was checked, under the host name of the URL."""
        origin = parse_origin(split(self._webhook_url)[0])
        with trio.fail_after(SEND_SECONDS):
            address = (await resolve(origin.host, origin.port, lookups=self._lookups.of(None)))[0]
            (self._destinations.check if origin.is_secure else self._destinations.check_private)(address)
            async with httpx2.AsyncClient(trust_env=False, timeout=SEND_SECONDS) as http:
                response = await http.post(
                    httpx2.URL(self._webhook_url).copy_with(host=str(address)),
                    json={"text": text},
                    headers={"host": origin.host_header, "user-agent": "florin-alerts/1"},
                    extensions={"sni_hostname": origin.host},
                )
        if not 200 <= response.status_code < 300:
            raise httpx2.HTTPError(f"answered {response.status_code}")


def message(alerts: Sequence[NotedAlert], *, more: int = 0) -> tuple[str, str]:
    """The subject and text of one message about several alerts."""
    parts: list[str] = []
    for noted in alerts:
        alert = noted.alert
        again = f" ({noted.times} times since {noted.first_at:%Y-%m-%d %H:%M} UTC)" if noted.times > 1 else ""
        whose = f"{encode_id(MERCHANT, alert.merchant_id)}\n" if alert.merchant_id != NOBODY else ""
        parts.append(f"{alert.title}{again}\n{whose}{alert.detail}".rstrip())
    if more:
        parts.append(f"{more} more alerts are waiting.")
    first = alerts[0].alert.title
    others = f" and {len(alerts) - 1 + more} more" if len(alerts) + more > 1 else ""
    host = socket.gethostname()
    return f"Florin on {host}: {first}{others}".replace("\n", " ")[:200], "\n\n".join([f"Florin on {host}", *parts])


def _send_mail(mail: Mail, subject: str, text: str) -> None:
    parts = urlsplit(mail.url)
    made = EmailMessage()
    made["Subject"], made["From"], made["To"] = subject, mail.sender, ", ".join(mail.recipients)
    made.set_content(text)
    context = ssl.create_default_context()
    host, is_secure = parts.hostname or "", parts.scheme == "smtps"
    port = parts.port or (SMTPS_PORT if is_secure else SMTP_PORT)
    opened = (
        smtplib.SMTP_SSL(host, port, timeout=SEND_SECONDS, context=context)
        if is_secure
        else smtplib.SMTP(host, port, timeout=SEND_SECONDS)
    )
    with opened as server:
        if not is_secure:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=context)
        if parts.username:
            server.login(unquote(parts.username), unquote(parts.password or ""))
        server.send_message(made)

"""`florin alert`: the latest alerts, and a test of the channels."""

from typing import Annotated

import trio
import typer

from core.errors import FlorinError
from server.cli.groups import group
from server.cli.options import DatabaseUrl, DataDirectory, find_database, with_database
from server.cli.output import Output, Rows, shown
from server.clock import utc_now
from server.db.alerts import Alert, NotedAlert, list_alerts
from server.db.connection import Connection
from server.flows.alerts import Channels
from server.flows.webhooks.destinations import Destinations
from server.process.alert_channels import channels_of
from server.settings import load_alert_settings, parse_networks

app = group("List alerts, and send one to see that it arrives.")
_console = Output()


class NoAlertChannel(FlorinError):
    """No channel is configured."""

    code = "nobody_is_told"


@app.command("list")
def show_all(
    limit: Annotated[int, typer.Option(min=1, max=1_000)] = 50, database_url: DatabaseUrl = None, data_dir: DataDirectory = None
) -> None:
    """List the latest alerts."""

    async def work(connection: Connection) -> list[NotedAlert]:
        return await list_alerts(connection, limit=limit)

    found = with_database(find_database(data_dir, database_url), work)
    if not found:
        _console.print("There are no alerts.")
        return
    table = Rows("last", "times", "sent", "what")
    for one in found:
        sent = f"{one.sent_at:%Y-%m-%d %H:%M:%S}" if one.sent_at is not None else shown(one.last_error or "not yet")
        table.add(f"{one.last_at:%Y-%m-%d %H:%M:%S}", str(one.times), sent, shown(one.alert.title))
    _console.print(table)


@app.command("test")
def test() -> None:
    """Send a test alert on every channel that the environment configures (FLORIN_ALERT_…), as the workers would."""
    settings = load_alert_settings()
    channels = channels_of(settings, Destinations(parse_networks(settings.webhook_networks)))
    if len(channels.names) == 1:
        raise NoAlertChannel(
            "alerts go to the log only: set FLORIN_ALERT_WEBHOOK_URL, or FLORIN_ALERT_SMTP_URL, _MAIL_FROM and _MAIL_TO"
        )
    trio.run(_send, channels)
    _console.print(f"sent: {shown(', '.join(channels.names[1:]))}")


async def _send(channels: Channels) -> None:
    now = utc_now()
    alert = Alert(key="test", kind="test", title="this is a test", detail="Somebody ran `florin alert test`: nothing is wrong.")
    await channels.send(
        [NotedAlert(alert=alert, times=1, first_at=now, last_at=now, sent_at=None, due_at=None, attempts=1, last_error=None)],
        all_channels=True,
    )

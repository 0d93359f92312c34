"""Alerts reach people once, on every channel, and again only after a while."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from email import message_from_string
from pathlib import Path

import pytest
import trio

from server.clock import utc_now
from server.db.alerts import REPEAT_SECONDS, Alert, list_alerts, note_alert
from server.flows.alerts import Channels, Mail
from server.flows.webhooks.destinations import Destinations
from server.jobs import overdue
from server.jobs.alerts import send_due
from server.settings import Settings, SettingsError, load_settings, parse_networks
from tests.support.florin import Florin, eventually, open_florin
from tests.support.receiver import Receiver, receiving

LOOPBACK = Destinations(parse_networks("127.0.0.0/8"))


def an_alert(key: str = "batch:1", **fields: object) -> Alert:
    return Alert(key=key, kind="batch_deadline", title=f"{key} passed its deadline", **fields)  # type: ignore[arg-type]


def texts(receiver: Receiver) -> list[str]:
    """The texts that were posted."""
    return [str(one.event["text"]) for one in receiver.got]


async def test_one_message_has_all_due_alerts_once(florin: Florin) -> None:
    async with receiving() as slack:
        channels = Channels(LOOPBACK, webhook_url=slack.url)
        now = utc_now()
        first, second = an_alert("batch:1", detail="150 of 200"), an_alert("batch:1", detail="151 of 200")
        for alert, seconds in ((first, 2), (second, 1), (second, 1), (an_alert("batch:2"), 1)):
            await note_alert(florin.connection, alert, now=now - timedelta(seconds=seconds))
        assert await send_due(florin.payments, channels) == 2
        (text,) = texts(slack)
        assert "batch:1 passed its deadline (2 times" in text
        assert "151 of 200" in text
        assert "batch:2" in text
        await note_alert(florin.connection, an_alert(), now=florin.payments.now())
        assert await send_due(florin.payments, channels) == 0, "what was told a moment ago is told again after an hour"
        assert [one.times for one in await list_alerts(florin.connection, limit=5)] == [3, 1]
        await florin.connection.execute("UPDATE alerts SET due_at = due_at - make_interval(secs => $1)", (REPEAT_SECONDS,))
        assert await send_due(florin.payments, channels) == 1
        assert len(slack.got) == 2


async def test_an_alert_that_could_not_be_sent_is_sent_later(florin: Florin) -> None:
    async with receiving() as slack:
        slack.answer = lambda _: (500, [], b"")
        channels = Channels(LOOPBACK, webhook_url=slack.url)
        await note_alert(florin.connection, an_alert(), now=florin.payments.now())
        assert await send_due(florin.payments, channels) == 1
        (noted,) = await list_alerts(florin.connection, limit=5)
        assert (noted.sent_at, noted.last_error) == (None, "webhook: answered 500")
        assert await send_due(florin.payments, channels) == 0, "it waits"
        slack.answer = lambda _: (200, [], b"ok")
        await florin.connection.execute("UPDATE alerts SET due_at = now() - interval '1 second'")
        assert await send_due(florin.payments, channels) == 1
        assert (await list_alerts(florin.connection, limit=5))[0].sent_at is not None


async def test_alerts_go_only_where_webhooks_may(florin: Florin) -> None:
    async with receiving() as slack:
        await note_alert(florin.connection, an_alert(), now=florin.payments.now())
        assert await send_due(florin.payments, Channels(Destinations(), webhook_url=slack.url)) == 1
        assert slack.got == []
    (noted,) = await list_alerts(florin.connection, limit=5)
    assert "not on the public internet" in str(noted.last_error)


@asynccontextmanager
async def mail_server() -> AsyncIterator[tuple[str, list[str]]]:
    """A minimal mail server."""
    got: list[str] = []

    async def serve(stream: trio.SocketStream) -> None:
        text, body, in_body = b"", "", False
        await stream.send_all(b"220 test\r\n")
        while chunk := await stream.receive_some(65_536):
            text += chunk
            while b"\r\n" in text:
                line, _, text = text.partition(b"\r\n")
                if in_body:
                    if line == b".":
                        in_body = False
                        got.append(body)
                        await stream.send_all(b"250 kept\r\n")
                    else:
                        body += line.decode() + "\n"
                elif line.upper() == b"QUIT":
                    await stream.send_all(b"221 bye\r\n")
                elif line.upper() == b"DATA":
                    in_body, body = True, ""
                    await stream.send_all(b"354 go on\r\n")
                else:
                    await stream.send_all(b"250 yes\r\n")

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        await nursery.start(trio.serve_listeners, serve, [listener])
        port = listener.socket.getsockname()[1]
        yield f"smtp://127.0.0.1:{port}", got
        nursery.cancel_scope.cancel()


async def test_by_mail_and_one_way_that_works_is_enough(florin: Florin) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = f"http://127.0.0.1:{closed.getsockname()[1]}/"
        async with mail_server() as (url, got):
            mail = Mail(url=url, sender="florin@shop.example", recipients=("ops@shop.example", "cto@shop.example"))
            channels = Channels(LOOPBACK, webhook_url=nobody, mail=mail)
            assert len(channels.names) == 3
            await note_alert(florin.connection, an_alert(detail="nothing is lost"), now=florin.payments.now())
            assert await send_due(florin.payments, channels) == 1
    sent = message_from_string(got[0])
    assert sent["To"] == "ops@shop.example, cto@shop.example"
    assert sent["Subject"] == f"Florin on {socket.gethostname()}: batch:1 passed its deadline"
    assert "nothing is lost" in sent.get_payload()
    assert (await list_alerts(florin.connection, limit=5))[0].sent_at is not None


async def test_dead_letters_findings_and_overdue_payments_are_found(florin: Florin) -> None:
    payment = await florin.create(confirm=True, token="tok_paid")
    await florin.until_told(payment["id"], "payment.succeeded")
    await florin.connection.execute("UPDATE deliveries SET state = 'DEAD', due_at = NULL, attempts = 10, updated_at = now()")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now() - interval '1 hour'")
    await florin.connection.execute(
        """
        INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
        SELECT merchant_id, gen_random_uuid(), 'lost_at_psp', id, '', now() FROM payment_requests
        """
    )
    await overdue.look(florin.payments)
    found = {one.alert.kind: one.alert for one in await list_alerts(florin.connection, limit=9)}
    assert set(found) >= {"dead_letters", "reconciliation"}
    assert "became dead letters" in found["dead_letters"].title
    await florin.connection.execute("DELETE FROM findings")
    await florin.connection.execute("UPDATE deliveries SET state = 'DELIVERED'")


@pytest.mark.slow
async def test_an_open_breaker_and_a_passed_deadline_make_alerts(database_url: str, directory: Path) -> None:
    async with receiving() as slack, open_florin(database_url, directory, alert_webhook_url=slack.url) as florin:
        (adapter,) = florin.payments.psps.adapters
        adapter.guard.breaker.open(until=trio.current_time() + 5)
        adapter.guard.news = adapter.guard.state
        await eventually(lambda: _told(slack, "PSP account acct_"))
        adapter.guard.breaker.close()


async def _told(slack: Receiver, text: str) -> bool:
    await trio.lowlevel.checkpoint()
    return any(text in one for one in texts(slack))


def test_unusable_alert_settings_are_refused() -> None:
    given = {"database_url": "postgresql://x", "key_file": "k"}
    for wrong in (
        {"alert_smtp_url": "smtp://mail"},
        {"alert_mail_to": "ops@shop.example"},
        {"alert_smtp_url": "mail", "alert_mail_to": "a@b", "alert_mail_from": "a@b"},
        {"alert_webhook_url": "hooks.slack.example"},
    ):
        with pytest.raises(SettingsError, match="FLORIN_ALERT"):
            load_settings(**given, **wrong)
    assert Settings(**given).alert_webhook_url == ""  # type: ignore[arg-type]

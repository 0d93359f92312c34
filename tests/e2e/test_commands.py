"""`florin up` and the other commands, as a person uses them."""

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import psutil
import psycopg
import pytest
import standardwebhooks

from server.http.server.listener import bind
from server.process import postgres_user
from server.sealing import create_key_file
from tests.support.command import FLORIN, STOP_SECONDS, here, log_in, owner_url, run, started, up

pytestmark = pytest.mark.slow


def test_up_smoke_stop_and_up_again(directory: Path) -> None:
    data = ("--data-dir", str(directory / "data"))
    with up(*data, "--workers", "2") as first:
        smoke = run("smoke", *data)
        assert "6 of 6 outcomes as expected" in smoke
        assert "all promises are kept" in smoke
        key = first.value("API key")
        payment = re.findall(r"pay_\w+", smoke)[0]
        assert "PENDING → SUCCEEDED" in run("explain", payment, *data)
        merchant = re.findall(r"mer_\w{32}", run("merchant", "list", *data))[0]
        assert "nobody is logged in here" in run("payout", "request", merchant, "100", "EUR", *data, code=1)
        log_in(*data)
        log_in(*data, name="grace")
        payout = re.findall(r"po_\w{32}", run("payout", "request", merchant, "100", "EUR", "--operator", "ada", *data))[0]
        assert "another operator" in run("payout", "approve", payout, "--operator", "ada", *data, code=1)
        run("payout", "approve", payout, "--operator", "grace", *data)
        assert "several operators" in run("payout", "succeed", payout, *data, code=1)
        assert "SUCCEEDED" in run("payout", "succeed", payout, "--operator", "grace", *data)
        assert "logged out: grace" in run("operator", "logout", "--operator", "grace", *data)
        listed = run("payout", "list", *data)
        assert payout in listed
        assert merchant in listed
        assert "every wallet was the sum" in run("wallet", "rebuild", merchant, *data)
        assert "fee 1.5 %" in run("merchant", "set", merchant, "--fee", "EUR:150+25", *data)
        assert "--fee must be like" in run("merchant", "set", merchant, "--fee", "EUR:x", *data, code=1)
        assert "0003_roles.sql" in run("migrate", "--status", *data)
        assert "another Florin uses" in run("up", *data, code=1)
        postgres = [one for one in first.process_tree() if one.name() == "postgres"]
        assert postgres
        assert all(one.uids().real != 0 for one in postgres)
        seconds, left = first.end(signal.SIGINT)
        assert not left
        assert seconds < STOP_SECONDS
        assert first.process.returncode == 0
    assert "has stopped" in run("smoke", *data, code=1) or "no Florin is running" in run("smoke", *data, code=1)

    with up(*data, "--workers", "1") as second:
        assert second.value("API key") == key
        headers = {"authorization": f"Bearer {key}"}
        stored = httpx2.get(f"{second.value('API')}/v1/payments/{payment}", headers=headers).json()
        assert stored["status"] == "SUCCEEDED"
        assert "all promises are kept" in run("doctor", *data)


def test_ctrl_c_does_not_wait_for_a_psp_that_hangs(directory: Path) -> None:
    with up("--data-dir", str(directory), "--workers", "1") as running, socket.socket() as hanging:
        httpx2.post(f"{running.value('sandbox PSP')}/control", json={"create": "hang"})
        address = running.value("API").removeprefix("http://").split(":")
        hanging.connect((address[0], int(address[1])))
        body = b'{"amount": 1, "currency": "EUR", "order_id": "hangs"}'
        head = f"POST /v1/payments HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {running.value('API key')}\r\n"
        hanging.sendall(head.encode() + b"Idempotency-Key: k\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        with psycopg.connect(owner_url(directory), autocommit=True) as connection:
            deadline = time.monotonic() + STOP_SECONDS
            while not connection.execute("SELECT 1 FROM payment_requests").fetchall():
                assert time.monotonic() < deadline
        seconds, left = running.end(signal.SIGINT)
        assert not left
        assert seconds < STOP_SECONDS
    with up("--data-dir", str(directory), "--workers", "1"):
        assert "all promises are kept" in run("doctor", "--data-dir", str(directory))


def test_nothing_outlives_a_killed_parent(directory: Path) -> None:
    with up("--data-dir", str(directory), "--workers", "2") as killed:
        assert len(killed.process_tree()) >= 4
        _, left = killed.end(signal.SIGKILL)
        assert not left, [one.cmdline() for one in left]
    with up("--data-dir", str(directory), "--workers", "1"):
        assert "all promises are kept" in run("doctor", "--data-dir", str(directory))


def test_an_ephemeral_instance_leaves_nothing(directory: Path) -> None:
    with up("--ephemeral", "--data-dir", str(directory), "--workers", "1") as ephemeral:
        assert list(directory.iterdir())
        ephemeral.end(signal.SIGTERM)
    assert list(directory.iterdir()) == []


def test_merchants_and_keys(directory: Path) -> None:
    data = ("--data-dir", str(directory))
    with up(*data, "--workers", "1") as running:
        api = running.value("API")
        log_in(*data)
        added = run("merchant", "add", "Corner shop", "--webhook-url", "http://127.0.0.1:9/hook", *data)
        merchant = re.findall(r"mer_\w+", added)[0]
        key = re.findall(r"fl_test_\w+", added)[0]
        assert "whsec_" in added
        assert "Corner shop" in run("merchant", "list", *data)
        assert httpx2.get(f"{api}/v1/wallets", headers={"authorization": f"Bearer {key}"}).json() == {"data": []}

        second = re.findall(r"fl_test_\w+", run("merchant", "key", "add", merchant, *data))[0]
        listed = run("merchant", "key", "list", merchant, *data)
        assert key not in listed
        key_id = next(line.split()[0] for line in listed.splitlines() if second[-4:] in line)
        run("merchant", "key", "revoke", merchant, key_id, *data)
        assert httpx2.get(f"{api}/v1/wallets", headers={"authorization": f"Bearer {second}"}).status_code == 401
        assert "no such key" in run("merchant", "key", "revoke", merchant, key_id, *data, code=1)

        assert "1 to 200 printable characters" in run("merchant", "add", "", *data, code=1)
        assert "http" in run("merchant", "add", "x", "--webhook-url", "ftp://x", *data, code=1)
        assert "no live PSP account" in run("merchant", "add", "x", "--mode", "live", *data, code=1)
        assert "not a merchant" in run("merchant", "key", "add", "nonsense", *data, code=1)
        assert "there is no merchant" in run("merchant", "key", "add", "mer_" + "0" * 32, *data, code=1)
        assert "there is no payment" in run("explain", "pay_" + "0" * 32, *data, code=1)
        assert "up to date" in run("migrate", *data)


def eventually_reply(ask: Callable[[str], httpx2.Response], status: int) -> Any:
    """Repeat with new keys until the reply has a status: a worker loads the accounts once a second."""
    for number in range(40):
        response = ask(f"key-{status}-{number}")
        if response.status_code == status:
            return response.json()
        time.sleep(0.2)
    raise AssertionError(response.text)


def test_psp_accounts_and_routes(directory: Path) -> None:
    data = ("--data-dir", str(directory))
    key, secret = directory / "key.txt", directory / "secret.txt"
    key.write_text("sk_test_123\n")
    secret.write_text("whsec_123\n")
    files = ("--api-key-file", str(key), "--webhook-secret-file", str(secret))
    with up(*data, "--workers", "1") as running:
        log_in(*data)
        assert "taken" in run("psp", "list", *data)
        assert "There are no DEAD events." in here("psp", "events", "list", *data)
        added = run("psp", "add", "stripe", "--name", "Stripe EU", "--base-url", "http://127.0.0.1:9", *files, *data)
        account = added.partition("account")[2].split()[0]
        assert f"/v1/psp/stripe/{account}/webhooks" in added
        assert "whsec_123" not in added
        assert "give a live one" in here("psp", "add", "stripe", "--mode", "live", *files, *data, code=1)
        assert "needs an https URL" in here(
            "psp", "add", "stripe", "--mode", "live", "--base-url", "http://x", *files, *data, code=1
        )
        listed = here("psp", "list", *data)
        assert "Stripe EU" in listed
        sandbox = next(line.split()[0] for line in listed.splitlines() if "sandbox" in line)

        merchant = next(line.split()[0] for line in here("merchant", "list", *data).splitlines() if line.startswith("mer_"))
        shown = here("psp", "route", merchant, "--rule", f"{account}:JPY:100-500", "--rule", account + ":USD", *data)
        assert [one for one in ("rule 1", "100 to 500", "rule 2") if one in shown] == ["rule 1", "100 to 500", "rule 2"]
        assert sandbox in shown.splitlines()[-1]
        for wrong in ("acct_1", f"{account}:EURO", f"{account}:EUR:9-1", f"{account}:EUR:0-0"):
            here("psp", "route", merchant, "--rule", wrong, *data, code=1)
        assert "rule" not in here("psp", "route", merchant, "--clear", *data)

        assert "nothing to change" in here("psp", "set", sandbox, *data, code=1)
        here("psp", "set", sandbox, "--no-payments", "--rate", "50", *data)
        body = {"amount": 1_990, "currency": "EUR", "order_id": "order-1"}
        headers = {"authorization": f"Bearer {running.value('API key')}"}
        url = f"{running.value('API')}/v1/payments"
        refusal = eventually_reply(lambda key: httpx2.post(url, json=body, headers={**headers, "idempotency-key": key}), 503)
        assert refusal["code"] == "psp_unavailable"
        here("psp", "set", sandbox, "--payments", "--rate", "0", *data)
        eventually_reply(lambda key: httpx2.post(url, json=body, headers={**headers, "idempotency-key": key}), 201)

        secret.write_text("whsec_new")
        rotated = here("psp", "rotate-secret", account, "--webhook-secret-file", str(secret), "--overlap-hours", "1", *data)
        assert "valid until" in rotated
        assert "unknown provider 'paypal': expected one of stripe" in here("psp", "add", "paypal", *data, code=1)
        assert "no event evt_1" in here("psp", "events", "retry", "evt_1", *data, code=1)
        assert "no account" in here("psp", "set", f"acct_{'0' * 32}", "--payments", *data, code=1)


def test_serve_needs_a_migrated_database_and_a_key(directory: Path, database_url: str) -> None:
    key_file = str(directory / "missing.key")
    assert "cannot use the sealing key" in run(
        "serve", "--database-url", database_url, "--key-file", key_file, "--port", "39999", code=1
    )


def test_an_instance_ends_if_a_part_fails_again_and_again(directory: Path) -> None:
    """With the end of its log: here, of a PostgreSQL whose data are damaged after its start."""
    with up("--data-dir", str(directory), "--workers", "1") as running:
        process_tree = running.process_tree()
        (directory / "postgres" / "data" / "global" / "pg_control").write_bytes(b"damaged")
        next(one for one in process_tree if "postgres" in " ".join(one.cmdline()[:1])).kill()
        assert running.process.wait(60) == 1
        _, left = psutil.wait_procs(process_tree, timeout=STOP_SECONDS)
        assert not left


def test_a_database_is_not_shared_by_two_keys(directory: Path, database_url: str) -> None:
    first, second = directory / "first", directory / "second"
    with up("--data-dir", str(first), "--database-url", database_url, "--workers", "1") as running:
        refusal = run("up", "--data-dir", str(second), "--database-url", database_url, "--port", "0", code=1)
        assert "sealed with another key" in refusal
        assert running.process.poll() is None
        assert "all promises are kept" in run("doctor", "--database-url", database_url)
        wrong = first / "wrong.key"
        create_key_file(wrong)
        log_in("--data-dir", str(first))
        added = ("merchant", "add", "x", "--webhook-url", "http://127.0.0.1:9/", "--key-file", str(wrong))
        assert "another key" in run(*added, "--database-url", database_url, code=1)
    (second / "keys" / "sealing.key").write_text("")
    assert "restore your copy" in run("up", "--data-dir", str(second), "--database-url", database_url, "--port", "0", code=1)


def test_serve_speaks_tls_or_says_why_not(directory: Path, database_url: str, certificate: tuple[str, str]) -> None:
    key_file = directory / "sealing.key"
    create_key_file(key_file)
    with bind("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    command = [FLORIN, "serve", "--database-url", database_url, "--key-file", str(key_file), "--port", str(port)]
    for wrong in (["--tls-cert", certificate[0]], ["--tls-cert", certificate[1], "--tls-key", certificate[1]]):
        done = subprocess.run([*command, *wrong], capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode != 0
        assert "Traceback" not in done.stderr
        assert "--tls-key" in done.stderr
    tls = ["--tls-cert", certificate[0], "--tls-key", certificate[1]]
    with started([*command, *tls], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        try:
            assert "with TLS" in served.stdout.readline()
            context = ssl.create_default_context(cafile=certificate[0])
            with httpx2.Client(verify=context) as client:
                assert client.get(f"https://127.0.0.1:{port}/healthz").json() == {"status": "ok"}
            served.send_signal(signal.SIGTERM)
            assert served.wait(STOP_SECONDS) == 0
        finally:
            served.kill()


def test_serve_takes_requests_until_it_is_stopped(directory: Path, database_url: str) -> None:
    key_file, path = directory / "sealing.key", directory / "florin.sock"
    create_key_file(key_file)
    command = [FLORIN, "serve", "--database-url", database_url, "--key-file", str(key_file), "--workers", "2"]
    with started([*command, "--unix-socket", str(path)], stdout=subprocess.PIPE, text=True) as served:
        assert served.stdout is not None
        try:
            assert "ready: 2 worker(s)" in served.stdout.readline()
            with httpx2.Client(transport=httpx2.HTTPTransport(uds=str(path))) as client:
                assert client.get("http://florin/healthz").json() == {"status": "ok"}
                assert client.post("http://florin/v1/payments").status_code == 401
            served.send_signal(signal.SIGTERM)
            assert served.wait(STOP_SECONDS) == 0
            assert not path.exists()
        finally:
            served.kill()


def test_listen_trigger_and_dead_letters(directory: Path) -> None:
    data = ("--data-dir", str(directory))
    with up(*data, "--workers", "1") as running, _hook() as (url, got):
        headers = {"authorization": f"Bearer {running.value('API key')}"}
        command = [FLORIN, "listen", *data, "--forward", url, "--after", "0"]
        with started(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1) as listening:
            assert listening.stdout is not None
            said = [listening.stdout.readline() for _ in range(2)]
            assert "whsec_" in said[0]
            secret = re.findall(r"whsec_\S+", said[0])[0]
            for event_type in ("payment.succeeded", "payment.declined", "refund.failed"):
                assert event_type in here("trigger", event_type, *data)
            said = [listening.stdout.readline() for _ in range(4)]
            assert all("→ 204" in line for line in said), said
            assert "payment.declined" in said[1]
            listening.send_signal(signal.SIGINT)
            assert "--after 4" in listening.stdout.read()
        assert listening.returncode == 130
        assert [standardwebhooks.Webhook(secret).verify(body, headers)["seq"] for headers, body in got] == [1, 2, 3, 4]
        assert "cannot be triggered" in here("trigger", "payment.paid", *data, code=1)
        assert "refuses this key" in run("listen", "--api-url", running.value("API"), "--api-key", "fl_test_x", code=1)
        assert "there is no event type" in here("listen", *data, "--types", "payment.paid", code=1)

        assert "There are no dead letters." in here("dlq", "list", *data)
        endpoint = httpx2.get(f"{running.value('API')}/v1/webhook-endpoints", headers=headers).json()["data"][0]["id"]
        with psycopg.connect(owner_url(directory), autocommit=True) as connection:
            connection.execute("UPDATE deliveries SET state = 'DEAD', due_at = NULL, attempts = 10, last_error = 'was down'")
        letter = f"{endpoint}/2"
        assert letter in here("dlq", "list", *data, "--endpoint", endpoint)
        assert "is DEAD" in here("dlq", "show", letter, *data)
        log_in(*data)
        assert "1 dropped" in here("dlq", "drop", letter, *data, "--operator", "ada")
        assert "1 tried again" in here("dlq", "retry", f"{endpoint}/1", *data)
        assert "2 tried again" in here("dlq", "retry", "--all", *data)
        assert "0 tried again" in here("dlq", "retry", "--all", *data)
        for wrong in (["retry"], ["retry", letter, "--all"], ["show", "x"], ["drop", f"{endpoint}/99"], ["retry", "evt_psp"]):
            assert here("dlq", *wrong, *data, code=1)
        assert "all promises are kept" in here("doctor", *data)


@contextmanager
def _hook() -> Iterator[tuple[str, list[tuple[dict[str, str], str]]]]:
    """A developer's program that receives webhooks."""
    got: list[tuple[dict[str, str], str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            got.append(({name.lower(): value for name, value in self.headers.items()}, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", got
        server.shutdown()
        thread.join()


def test_nobody_logs_in_with_special_rights_and_no_password_is_shown(directory: Path) -> None:
    with up("--data-dir", str(directory), "--workers", "1") as running:
        url = json.loads((directory / "running.json").read_text())["database_url"]
        shown = "\n".join(running.lines)
        assert url.partition("@")[0].rpartition(":")[2] not in shown
        assert "florin psql" in shown
        with psycopg.connect(owner_url(directory), autocommit=True) as connection:
            logins = connection.execute(
                """
                SELECT DISTINCT usename, rolsuper FROM pg_stat_activity JOIN pg_roles ON rolname = usename
                 WHERE usename <> 'florin'
                """
            ).fetchall()
        assert logins == [("florin_worker", False)]
        secret = (directory / "postgres-password-florin_worker").read_text()
        for forbidden in ("UPDATE ledger_entries SET amount_minor = 0", "SET ROLE florin_migrate", "CREATE TABLE x ()"):
            with (
                psycopg.connect(f"postgresql://florin_worker:{secret}@{url.partition('@')[2]}", autocommit=True) as connection,
                pytest.raises(psycopg.errors.InsufficientPrivilege),
            ):
                connection.execute(forbidden)
        command = [FLORIN, "psql", "--data-dir", str(directory)]
        query = subprocess.run(command, input="SELECT current_user;", capture_output=True, text=True, timeout=30, check=True)
        assert "florin_read" in query.stdout
        if os.geteuid() == 0:
            assert (directory / "postgres" / "data").stat().st_uid in postgres_user.OWN_UIDS


def test_a_reader_of_the_doctor_that_leaves_changes_nothing(directory: Path, database_url: str) -> None:
    done = subprocess.run(
        f"set -o pipefail; {FLORIN} doctor --database-url '{database_url}' | head -1",
        shell=True,
        executable="/bin/bash",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("kept")

"""One worker: the composition root. Opens the services, owns every nursery, and shuts down in order.

    worker
    └─ services: database (pool and committers), HTTP client, PSP adapters     opened first, closed last
       └─ jobs: deliver, follow up, chain, prune, and what goes on behind a reply
          └─ front: the listener, one task a connection

SIGTERM: stop accepting, let requests in hand finish under a deadline, stop the jobs (what they had claimed comes back when its
lease ends), commit what is queued, close. A client that hangs up cancels nothing.
"""

import gc
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial

import structlog
import trio

from core.errors import FlorinError, leaves
from server.api.app import Api
from server.children import say_ready
from server.db.database import Database, open_database
from server.db.merchants import PspAccount, list_psp_accounts
from server.db.migrate import MigrationError, require_current
from server.flows.background import Background
from server.flows.services import Services, utc_now
from server.http.client import Client, ClientOptions, open_client
from server.http.forwarded import networks
from server.http.listener import Listener, ListenerOptions
from server.http.tls import server_tls
from server.jobs import chain, follow_up, prune
from server.jobs.deliver import Deliverer
from server.psp.adapter import Adapter
from server.psp.routing import Routing
from server.psp.sandbox import SandboxAdapter
from server.sealing import Sealer, SealError
from server.settings import Settings, SettingsError, load_settings
from server.telemetry import Metrics, configure_logs

CHAIN_SWEEPS = 5
"""How much less often than others the chain job looks: nobody waits for it."""

EXIT_SETUP_FAILED = 78  # EX_CONFIG: a restart will not help
_log = structlog.get_logger()


@asynccontextmanager
async def open_worker(settings: Settings, listening: socket.socket) -> AsyncIterator[Services]:
    """Everything of a worker, serving. At the end of the block it drains and closes in order."""
    sealer = Sealer.from_file(settings.key_file)
    metrics = Metrics()
    async with (
        open_database(
            settings.database_url,
            pool_size=settings.pool_size,
            delivery_lease_seconds=settings.delivery_lease_seconds,
            observe=metrics.committed,
        ) as db,
        open_client(_client_options(settings)) as psp_http,
        open_client(_client_options(settings)) as webhook_http,  # apart, so that merchants' hosts cannot hold up a PSP
    ):
        async with db.pool.connection() as connection:
            await require_current(connection)
        deliverer = Deliverer(
            db,
            webhook_http,
            sealer,
            attempt_seconds=settings.delivery_seconds,
            lease_seconds=settings.delivery_lease_seconds,
            sweep_seconds=settings.sweep_seconds,
        )
        routing = _routing(db, psp_http, sealer)
        await routing.reload()
        background = Background()
        services = Services(db, routing, deliverer.notify, settings.psp_seconds, utc_now, background, sealer.receipt_key())
        listener = Listener(Api(services, metrics, metrics_token=settings.metrics_token), listening, _listener_options(settings))
        async with trio.open_nursery() as jobs:
            await jobs.start(deliverer.run)
            await jobs.start(background.run)
            await jobs.start(partial(follow_up.run, services, sweep_seconds=settings.sweep_seconds))
            await jobs.start(partial(chain.run, services, sweep_seconds=CHAIN_SWEEPS * settings.sweep_seconds))
            await jobs.start(partial(prune.run, services))
            async with trio.open_nursery() as front:
                await front.start(listener.run)
                try:
                    yield services
                finally:
                    with trio.CancelScope(shield=True):
                        until = trio.current_time() + settings.drain_seconds
                        await listener.drain(seconds=settings.drain_seconds)
                        await background.drain(seconds=max(until - trio.current_time(), 0))
                    front.cancel_scope.cancel()
            jobs.cancel_scope.cancel()


def _client_options(settings: Settings) -> ClientOptions:
    """What could not connect in time was not sent; that must be known before the PSP's deadline makes it unknown."""
    return ClientOptions(connect_seconds=min(settings.connect_seconds, settings.psp_seconds / 2))


def _listener_options(settings: Settings) -> ListenerOptions:
    try:
        return ListenerOptions(
            requests_in_flight_max=settings.requests_in_flight_max,
            tls=server_tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None,
            proxy_protocol=settings.proxy_protocol,
            trusted_proxies=networks(filter(None, settings.trusted_proxies.split(","))),
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(f"the listener cannot be set up as configured: {error}") from error


def _routing(db: Database, http: Client, sealer: Sealer) -> Routing:
    async def load() -> Iterable[Adapter]:
        async with db.pool.connection() as connection:
            accounts = await list_psp_accounts(connection)
        adapters = [adapter for account in accounts if (adapter := _adapter(account, http, sealer))]
        if accounts and not adapters:
            raise SealError("no PSP account can be opened with this sealing key: is it the right key file?")
        return adapters

    return Routing(load)


def _adapter(account: PspAccount, http: Client, sealer: Sealer) -> Adapter | None:
    """The adapter of an account; one whose secrets cannot be opened must not stop the others."""
    try:
        return SandboxAdapter(
            http,
            account_id=account.id,
            base_url=account.base_url,
            api_key=sealer.open(account.sealed_api_key, table="psp_accounts.api_key", row=account.id),
            webhook_secrets=(sealer.open(account.sealed_webhook_secret, table="psp_accounts.webhook_secret", row=account.id),),
        )
    except SealError as error:
        _log.error("a PSP account cannot be used", account=str(account.id), error=str(error))
        return None


async def serve(settings: Settings, listening: socket.socket, *, ready: int) -> None:
    """Serve until SIGTERM or SIGINT. `ready` is a descriptor that is told when requests can come."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_worker(settings, listening):
            gc.collect()
            gc.freeze()
            say_ready(ready)
            async for _ in signals:
                break


def main(listening_descriptor: int, ready_descriptor: int) -> int:
    """A worker process of the supervisor, which passes the listening socket and a pipe. Its exit code."""
    try:
        settings = load_settings()
    except SettingsError as error:
        configure_logs("info")
        _log.error("the worker cannot run", errors=[str(error)])
        return EXIT_SETUP_FAILED
    configure_logs(settings.log_level)
    listening = socket.socket(fileno=listening_descriptor)
    try:
        trio.run(lambda: serve(settings, listening, ready=ready_descriptor))
    except (FlorinError, BaseExceptionGroup) as error:
        group = error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])
        failures, rest = group.split(FlorinError)
        if rest is not None or failures is None:
            raise
        _log.error("the worker cannot run", errors=[str(error) for error in leaves(failures)])
        is_hopeless = failures.subgroup((MigrationError, SealError, SettingsError)) is not None
        return EXIT_SETUP_FAILED if is_hopeless else 1
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))

"""One worker: the composition root. It opens the contexts of the flows, owns every nursery, and shuts down in order.

    worker
    └─ contexts: database (pool and committers), HTTP clients, PSP adapters     opened first, closed last
       └─ jobs: heartbeat, clock repair, deliveries, batches, feeds and acknowledgements of the stream, follow-up, inbox, PSP
          sync, hash chain, operators' requests, prune, overdue, alerts, and work that continues after a reply
          └─ front: the listener, one task per connection

SIGTERM: say 503 on /readyz and `Connection: close` for a moment while serving on, stop accepting, let running requests finish
under a deadline, stop the jobs (claimed work comes back when its lease ends), commit what is queued, close. SIGINT: the same
without the moment. A client that disconnects cancels nothing.
"""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from uuid import UUID

import trio

from server.api.app import Api
from server.api.problems import wire_problem
from server.clock import DatabaseClock
from server.concurrency.background import Background
from server.concurrency.health import Health
from server.concurrency.request_limits import RequestLimits
from server.concurrency.single_flight_cache import Validity
from server.concurrency.wakeup import Wakeup
from server.concurrency.worker_count import WorkerCount
from server.db.database import Database, open_database
from server.db.migrate import require_current
from server.db.payments.changes import Applied
from server.db.payments.idempotency_keys import Flights
from server.db.pool import Pool
from server.flows.contexts import Batches as BatchesContext
from server.flows.contexts import Contexts, Events, Payments, Receipts, Webhooks
from server.flows.events.acknowledgements import Acks
from server.flows.events.live_feeds import Feeds
from server.flows.payments.fraud import FraudCheck
from server.flows.webhooks.destinations import Destinations
from server.flows.webhooks.send import RESPONSE_BYTES_MAX, Sender
from server.http.client.client import Client, ClientOptions, open_client
from server.http.client.dial import AddressCheck
from server.http.server.listener import Listener, ListenerOptions
from server.http.tls import server_tls
from server.jobs import (
    alerts,
    clock_repair,
    event_hints,
    follow_up_payments,
    hash_chain,
    key_usage,
    operator_requests,
    overdue,
    prune,
    psp_inbox,
    psp_sync,
    request_usage,
)
from server.jobs.batches.runner import Batches
from server.jobs.due_work import DueWork
from server.jobs.heartbeat import Heartbeat
from server.jobs.webhooks.endpoint_queue import Timing
from server.jobs.webhooks.parallel import Deliverer
from server.process.alert_channels import channels_of
from server.process.psp_adapters import Accounts, deadlines_of
from server.psp.routing import Routing
from server.sealing import Sealer
from server.settings import Settings, SettingsError, parse_list, parse_networks
from server.telemetry import Metrics
from server.uuid7 import uuid7

CHAIN_SWEEPS = 5
"""The chain job runs this many times less often than other jobs, because nobody waits for it."""

PAUSE_SECONDS = 0.003
"""The pause of a busy committer while other workers use PostgreSQL too: two workers take a tenth more payments with it. A single
one takes fewer, because it would wait for its own groups.
"""

PSP_CONNECTIONS_MAX = 8_192
PSP_IDLE_SECONDS = 20.0
"""Shorter than PSPs keep connections: a call that dies with a connection that was just closed leaves an UNKNOWN payment."""


@dataclass(frozen=True, slots=True)
class Place:
    """The ids of a worker and of the one in whose place it comes, which is dead, if any."""

    worker_id: UUID = field(default_factory=uuid7)
    predecessor: UUID | None = None


@asynccontextmanager
async def open_worker(
    settings: Settings, listening: socket.socket, *, place: Place | None = None, now: Callable[[], datetime] | None = None
) -> AsyncIterator[tuple[Contexts, Listener]]:
    """Open a worker that serves. At the end of the block it lingers, drains and closes in order.

    `now` replaces the database's clock, for tests.
    """
    sealer = Sealer.from_file(settings.key_file)
    metrics, clock, workers, place = Metrics(), DatabaseClock(), WorkerCount(), place or Place()
    now, worker_id = now or clock.now, place.worker_id
    destinations = Destinations(parse_networks(settings.webhook_networks))
    health, flights = Health(), Flights()
    async with (
        open_database(
            settings.database_url,
            worker_id=worker_id,
            pool_size=settings.pool_size,
            delivery_lease_seconds=settings.delivery_lease_seconds,
            observe=metrics.committed,
            pause_seconds=lambda: PAUSE_SECONDS if workers.count > 1 else 0.0,
            found_read_only=health.doubt,
        ) as db,
        open_client(_psp_client_options(settings)) as psp_http,
        open_client(_client_options(settings)) as fraud_http,
        _open_webhook_clients(settings, destinations) as webhook_clients,
    ):
        feeds = Feeds(db.pool, workers)
        work = DueWork(db.pool, sweep_seconds=settings.sweep_seconds)
        sender = _sender(db.pool, webhook_clients, sealer, settings, now, feeds, work)
        deliverer = Deliverer(db, sender, metrics, workers, _timing(settings), may_be_due=lambda: work.now.deliveries)
        accounts = Accounts(db, psp_http, sealer, metrics, deadlines_of(settings), now=now)
        notify = partial(_tell, feeds, deliverer)
        fraud = _fraud_check(fraud_http, db.pool, metrics, settings)
        payments = _payments(db, Routing(accounts.load), metrics, settings, worker_id, flights, notify, fraud, now)
        limits = RequestLimits(
            per_second=settings.merchant_requests_per_second, in_flight_max=settings.merchant_requests_in_flight
        )
        contexts = _contexts(payments, sealer, destinations, feeds, workers, health, limits, work.validity)
        went_back = Wakeup()
        heartbeat = Heartbeat(
            settings.database_url, worker_id, clock, workers, health, flights, went_back.wake, place.predecessor
        )
        api = _api(contexts, metrics, settings)
        listener = Listener(api, listening, listener_options(settings))
        batches = Batches(contexts.batches, contexts.payments, sweep_seconds=settings.sweep_seconds, work=work)
        async with trio.open_nursery() as jobs:
            await _require_current(db.pool)
            await jobs.start(heartbeat.run)
            await payments.psps.reload()
            await _start_jobs(jobs, contexts, work, deliverer, batches, settings)
            await jobs.start(clock_repair.run, payments, went_back)
            await _start_api(jobs, api, contexts)
            async with _serving(settings, api, listener, contexts, batches):
                yield contexts, listener
            jobs.cancel_scope.cancel()


def _sender(
    pool: Pool,
    clients: tuple[Client, Client],
    sealer: Sealer,
    settings: Settings,
    now: Callable[[], datetime],
    feeds: Feeds,
    work: DueWork,
) -> Sender:
    seconds, validity = settings.delivery_seconds, work.validity
    return Sender(pool, *clients, sealer, attempt_seconds=seconds, now=now, publish=feeds.publish, validity=validity)


def _payments(
    db: Database,
    psps: Routing,
    metrics: Metrics,
    settings: Settings,
    worker_id: UUID,
    flights: Flights,
    notify: Callable[[Applied], None],
    fraud: FraudCheck | None,
    now: Callable[[], datetime],
) -> Payments:
    return Payments(
        pool=db.pool,
        now=now,
        psp_seconds=settings.psp_seconds,
        worker_id=worker_id,
        flights=flights,
        changes=db.changes,
        change_group=db.change_group,
        notify=notify,
        psps=psps,
        background=Background(),
        metrics=metrics,
        creations=db.creations,
        fraud=fraud,
    )


def _contexts(
    payments: Payments,
    sealer: Sealer,
    destinations: Destinations,
    feeds: Feeds,
    workers: WorkerCount,
    health: Health,
    limits: RequestLimits,
    validity: Validity,
) -> Contexts:
    pool, now = payments.pool, payments.now
    return Contexts(
        health=health,
        settings_validity=validity,
        request_limits=limits,
        payments=payments,
        webhooks=Webhooks(
            pool=pool,
            now=now,
            psp_seconds=payments.psp_seconds,
            worker_id=payments.worker_id,
            flights=payments.flights,
            sealer=sealer,
            destinations=destinations,
            feeds=feeds,
        ),
        events=Events(pool=pool, now=now, feeds=feeds, acks=Acks(pool, now=now), workers=workers),
        batches=BatchesContext(pool=pool, now=now, sealer=sealer, wakeup=Wakeup()),
        receipts=Receipts(pool=pool, now=now, receipt_key=sealer.receipt_key()),
    )


@asynccontextmanager
async def _serving(settings: Settings, api: Api, listener: Listener, contexts: Contexts, batches: Batches) -> AsyncIterator[None]:
    """Run the listener. At the end of the block it lingers, so that clients and balancers go elsewhere, and drains."""
    async with trio.open_nursery() as front:
        await front.start(listener.run)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                contexts.health.is_draining = True
                listener.retire()
                if contexts.health.failure is None and not contexts.health.is_hurried:
                    await trio.sleep(settings.linger_seconds)
                until = trio.current_time() + settings.drain_seconds
                api.end_waits()
                async with trio.open_nursery() as draining:
                    draining.start_soon(partial(batches.drain, seconds=settings.drain_seconds))
                    draining.start_soon(partial(listener.drain, seconds=settings.drain_seconds))
                await contexts.payments.background.drain(seconds=max(until - trio.current_time(), 0))
            front.cancel_scope.cancel()


async def _require_current(pool: Pool) -> None:
    """Raise `MigrationError` if this worker cannot serve this database."""
    async with pool.connection() as connection:
        await require_current(connection)


async def _start_jobs(
    jobs: trio.Nursery, contexts: Contexts, work: DueWork, deliverer: Deliverer, batches: Batches, settings: Settings
) -> None:
    sweep_seconds, payments, events = settings.sweep_seconds, contexts.payments, contexts.events
    await jobs.start(work.run)
    await jobs.start(batches.run)
    await jobs.start(deliverer.run)
    await jobs.start(events.feeds.run)
    await jobs.start(events.acks.run)
    await jobs.start(partial(event_hints.run, events, settings.database_url))
    await jobs.start(payments.background.run)
    await jobs.start(partial(request_usage.run, payments, contexts.request_limits, events.workers))
    await jobs.start(partial(psp_sync.run, payments, events.workers, work))
    await jobs.start(partial(follow_up_payments.run, payments, work, sweep_seconds=sweep_seconds))
    await jobs.start(partial(psp_inbox.run, payments, work, sweep_seconds=sweep_seconds))
    await jobs.start(partial(hash_chain.run, payments, sweep_seconds=CHAIN_SWEEPS * sweep_seconds))
    limit_minor = settings.refund_approval_minor
    await jobs.start(
        partial(operator_requests.run, payments, work, sweep_seconds=sweep_seconds, refund_approval_minor=limit_minor)
    )
    await jobs.start(partial(prune.run, payments))
    await jobs.start(partial(overdue.run, payments))
    await jobs.start(partial(alerts.run, payments, channels_of(settings, contexts.webhooks.destinations)))


def _api(contexts: Contexts, metrics: Metrics, settings: Settings) -> Api:
    origins = frozenset(map(str.lower, parse_list(settings.allowed_origins)))
    return Api(contexts, metrics, metrics_token=settings.metrics_token, allowed_origins=origins)


async def _start_api(jobs: trio.Nursery, api: Api, contexts: Contexts) -> None:
    await jobs.start(api.run)
    await jobs.start(partial(key_usage.run, contexts.payments, api.take_used_keys))


def _client_options(settings: Settings) -> ClientOptions:
    """The options of the clients. A connection that cannot be made in time means that nothing was sent, which must be known
    before the PSP's deadline.
    """
    return ClientOptions(connect_seconds=min(settings.connect_seconds, settings.psp_seconds / 2))


def _timing(settings: Settings) -> Timing:
    return Timing(lease_seconds=settings.delivery_lease_seconds, sweep_seconds=settings.sweep_seconds)


def _fraud_check(http: Client, pool: Pool, metrics: Metrics, settings: Settings) -> FraudCheck | None:
    if not settings.fraud_url:
        return None
    return FraudCheck(http, pool, metrics, url=settings.fraud_url, token=settings.fraud_token)


def _tell(feeds: Feeds, deliverer: Deliverer, applied: Applied) -> None:
    """Pass a committed event to live readers and to endpoints."""
    if applied.event is not None:
        feeds.publish(applied.event)
        deliverer.notify(applied)


@asynccontextmanager
async def _open_webhook_clients(settings: Settings, destinations: Destinations) -> AsyncIterator[tuple[Client, Client]]:
    """The clients for webhooks, apart from the PSPs' so that merchants' hosts cannot delay them. https may reach more
    than http.
    """
    async with (
        open_client(_webhook_client_options(settings, destinations.check)) as https,
        open_client(_webhook_client_options(settings, destinations.check_private)) as http,
    ):
        yield https, http


def _webhook_client_options(settings: Settings, check: AddressCheck) -> ClientOptions:
    return replace(_client_options(settings), response_bytes_max=RESPONSE_BYTES_MAX, cuts_responses=True, check=check)


def _psp_client_options(settings: Settings) -> ClientOptions:
    """The options of a PSP's client. Each account's guard limits the number of calls."""
    return replace(_client_options(settings), connections_per_origin_max=PSP_CONNECTIONS_MAX, idle_seconds=PSP_IDLE_SECONDS)


def listener_options(settings: Settings) -> ListenerOptions:
    """The options of the listener. Raises `SettingsError` for an unusable certificate or network."""
    try:
        return ListenerOptions(
            requests_in_flight_max=settings.requests_in_flight_max,
            render=wire_problem,
            tls=server_tls(settings.tls_cert, settings.tls_key) if settings.tls_cert else None,
            proxy_protocol=settings.proxy_protocol,
            trusted_proxies=tuple(parse_networks(settings.trusted_proxies)),
            websockets=True,
        )
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise SettingsError(f"the listener cannot be set up as configured: {error}") from error

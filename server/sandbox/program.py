"""The sandbox as a process: the PSP on one port and the demo shop on another, until SIGTERM."""

import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import trio

from server.child_process import allow_many_files, say_ready
from server.http.client.client import open_client
from server.http.server.listener import Listener, ListenerOptions
from server.sandbox.intents import Intents, account_name, upgraded
from server.sandbox.journal import Journal
from server.sandbox.psp import Psp
from server.sandbox.shop import Shop
from server.sandbox.webhooks import Webhooks
from server.telemetry import configure_logs

CONNECTIONS_MAX = 32_768
DRAIN_SECONDS = 1.0


class SandboxConfiguration(msgspec.Struct, frozen=True):
    """Shared facts of the two sides. Written by their parent, readable by its owner only."""

    florin_url: str
    psp_url: str
    psp_api_key: str
    psp_webhook_url: str
    psp_webhook_secret: str
    shop_url: str
    shop_api_key: str
    shop_webhook_secret: str
    business_name: str = "Demo shop"
    directory: str | None = None


@asynccontextmanager
async def open_sandbox(
    configuration: SandboxConfiguration, psp_socket: socket.socket, shop_socket: socket.socket
) -> AsyncIterator[None]:
    """Serve the PSP and the shop within the block."""
    directory = Path(configuration.directory) if configuration.directory else None
    intents_journal = Journal(directory / "intents.jsonl" if directory else None)
    if directory:
        upgraded(intents_journal, directory / "ledger.jsonl")
    orders_journal = Journal(directory / "orders.jsonl" if directory else None)
    try:
        async with open_client() as http, trio.open_nursery() as nursery:
            webhooks = Webhooks(http, url=configuration.psp_webhook_url, secret=configuration.psp_webhook_secret)
            api_key = configuration.psp_api_key
            intents = Intents(intents_journal, configuration.psp_url, account=account_name(api_key))
            psp = Psp(intents, webhooks, api_key=api_key, business_name=configuration.business_name)
            shop = Shop(
                http,
                orders_journal,
                florin_url=configuration.florin_url,
                public_url=configuration.shop_url,
                api_key=configuration.shop_api_key,
                webhook_secret=configuration.shop_webhook_secret,
            )
            listeners = [
                Listener(
                    psp, psp_socket, ListenerOptions(connections_max=CONNECTIONS_MAX, requests_in_flight_max=CONNECTIONS_MAX)
                ),
                Listener(shop, shop_socket),
            ]
            await nursery.start(webhooks.run)
            for listener in listeners:
                await nursery.start(listener.run)
            try:
                yield
            finally:
                with trio.CancelScope(shield=True):
                    async with trio.open_nursery() as draining:
                        for listener in listeners:
                            draining.start_soon(_drain, listener)
                nursery.cancel_scope.cancel()
    finally:
        intents_journal.close()
        orders_journal.close()


async def _drain(listener: Listener) -> None:
    await listener.drain(seconds=DRAIN_SECONDS)


async def serve(configuration: SandboxConfiguration, psp_socket: socket.socket, shop_socket: socket.socket, ready: int) -> None:
    """Serve until SIGTERM or SIGINT."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_sandbox(configuration, psp_socket, shop_socket):
            say_ready(ready)
            async for _ in signals:
                break


def main(configuration_path: str, psp_descriptor: int, shop_descriptor: int, ready_descriptor: int) -> None:
    """Run the sandbox process. Its parent passes two listening sockets and a pipe."""
    configure_logs("warning")
    allow_many_files()
    configuration = msgspec.json.decode(Path(configuration_path).read_bytes(), type=SandboxConfiguration)
    sockets = [socket.socket(fileno=descriptor) for descriptor in (psp_descriptor, shop_descriptor)]
    trio.run(serve, configuration, sockets[0], sockets[1], ready_descriptor)


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))

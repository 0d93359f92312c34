"""The rate of an endpoint is kept evenly, however many workers deliver to it."""

import itertools
from dataclasses import dataclass, field
from pathlib import Path

import trio

from server.http.asgi import Receive, Scope, Send
from server.http.server.listener import bind
from server.process.worker import open_worker
from server.settings import Settings
from tests.support.florin import Florin, until
from tests.support.payments import charge
from tests.support.receiver import Receiver, receiving
from tests.support.webhooks import add


@dataclass
class Timed(Receiver):
    """A receiver that notes when each request came."""

    times: list[float] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.times.append(trio.current_time())
        await super().__call__(scope, receive, send)


async def test_two_workers_take_turns_at_a_slow_endpoint(florin: Florin, directory: Path) -> None:
    settings = Settings(
        database_url=florin.database_url, key_file=directory / "sealing.key", sweep_seconds=0.05, webhook_networks="127.0.0.0/8"
    )
    listening = bind("127.0.0.1", 0)
    other_url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    per_second, count = 4, 16
    async with open_worker(settings, listening) as (other, _), receiving(Timed) as receiver:
        both = (florin.contexts.events.workers, other.events.workers)
        await until(lambda: [one.count for one in both] == [2, 2] and {one.rank for one in both} == {0, 1})
        await add(florin, receiver, requests_per_second_max=per_second)
        urls = itertools.cycle([florin.api_url, other_url])
        for number in range(count):
            florin.api_url = next(urls)
            await charge(florin, order_id=str(number))
        await receiver.until(count)
        assert isinstance(receiver, Timed)
        gaps = [after - before for before, after in itertools.pairwise(receiver.times)]
        assert min(gaps) > 0.5 / per_second, gaps
        seconds = receiver.times[-1] - receiver.times[0]
        assert (count - 2) / per_second < seconds < 2 * count / per_second

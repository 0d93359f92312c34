"""The wire's cost, watched as ratios to its peers within one run; `python -m bench.wire` measures it properly."""

from bench import wire


def test_the_server_is_as_cheap_as_those_in_c() -> None:
    ratios = wire.server(rounds=3, requests=10_000)
    assert ratios["uvicorn"] < 1.25
    assert ratios["quart_trio"] < 1 / 12


def test_the_client_is_cheaper_than_its_peers() -> None:
    ratios = wire.client(rounds=3, requests=10_000)
    assert ratios["aiohttp"] < 0.7
    assert ratios["httpx"] < 1 / 30

"""The sandbox's control API: a wrong setting changes nothing and is answered with the right ones."""

from typing import Any

from server.sandbox.faults import CALLS
from tests.support.florin import Florin

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"capture": "loose"}, "capture: unknown value 'loose': did you mean lose? known are answer, slow, hang, hang_before,"),
    ({"capture": {"fault": "loose", "times": 1}}, "capture: unknown value 'loose': did you mean lose?"),
    ({"capture": {"times": 1}}, 'capture: expected the name of a fault, or {"fault": NAME, "times": 1}'),
    ({"capture": {"fault": "lose", "times": 0}}, "capture: expected the name of a fault"),
    ({"capture": 7}, "capture: unknown value '7': known are answer,"),
    ({"captured": "lose"}, "unknown field 'captured': did you mean capture?"),
    ({"webhooks": "held"}, "webhooks: unknown value 'held': did you mean hold? known are send, hold,"),
    ({"outage_seconds": 1, "outage": "none"}, "outage: unknown value 'none': known are reset, unavailable, hang"),
    ({"outage_seconds": "long"}, "expected a number of seconds between 0 and 3600, instead of 'long'"),
    ({"refunds_end_as": "lost"}, "refunds_end_as: unknown value 'lost': known are succeeded, pending, failed"),
    ({"requests_per_second_max": "x"}, "requests_per_second_max: expected a number, or null for no limit"),
    ({"webhook_copies": -1}, "webhook_copies: expected a number from 1 to 100"),
    ({"webhook_delay_seconds": "nan"}, "expected a number of seconds between 0 and 3600, instead of 'nan'"),
    ({"count": "new"}, "count: unknown value 'new': did you mean anew?"),
    ({"expire": "pi_x"}, "there is no intent 'pi_x'"),
    ({"latency": {"minutes": 1}}, "latency takes seconds, or from_seconds and to_seconds, or"),
]


async def test_a_wrong_setting_is_answered_with_the_right_ones(florin: Florin) -> None:
    for wanted, said in WRONG:
        reply = await florin.http.post(f"{florin.psp_url}/control", json={"create": "lose", **wanted})
        assert reply.status_code == 422, wanted
        assert reply.json()["error"].startswith(said), reply.text
    many = "a=1&" * 25
    for url in (f"{florin.shop_url}/checkout", f"{florin.psp_url}/pay/int_x"):
        assert (await florin.http.post(url, content=many)).status_code == 404
    assert (await florin.http.get(f"{florin.shop_url}/return?{many}")).status_code == 404
    settings = await florin.control(capture={"fault": "lose", "times": 2})
    assert {call: settings[call] for call in CALLS} == dict.fromkeys(CALLS, "answer") | {"capture": "lose"}

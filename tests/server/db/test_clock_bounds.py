"""Times that lie too far ahead, because a clock stood ahead when they were stored, are set right once and for all."""

from server.db.clock_bounds import set_right
from tests.support.florin import Florin


async def test_a_page_keeps_its_time_however_often_it_is_looked_at(florin: Florin) -> None:
    payment = await florin.create(expires_in=1_800)
    await florin.connection.execute(
        "UPDATE payment_requests SET created_at = created_at + interval '31 days', expires_at = expires_at + interval '31 days',"
        " due_at = now() + interval '10 minutes'"
    )
    assert ("payment_requests.expires_at", 1) in await set_right(florin.connection)
    first = await florin.row(payment["id"])
    left = await florin.rows("SELECT expires_at - now() BETWEEN '29 minutes' AND '30 minutes' AS is_right FROM payment_requests")
    assert left == [{"is_right": True}]
    assert await set_right(florin.connection) == []
    assert (await florin.row(payment["id"]))["expires_at"] == first["expires_at"]


async def test_what_lies_as_far_ahead_as_a_rule_allows_is_left_alone(florin: Florin) -> None:
    await florin.create(expires_in=604_800)
    await florin.connection.execute("UPDATE payment_requests SET due_at = now() + interval '10 minutes'")
    await florin.connection.execute("UPDATE psp_states SET rate_used_until = now() + interval '1 minute'")
    assert await set_right(florin.connection) == []

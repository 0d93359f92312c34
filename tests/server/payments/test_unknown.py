"""UNKNOWN ends: as soon as the PSP answers again, by its proof that it never knew the charge, and whenever somebody asks."""

from pathlib import Path

import pytest
import trio

from core.ids import PAYMENT, decode_id
from tests.support.batches import charge as charge_item
from tests.support.batches import post
from tests.support.florin import Florin, eventually, open_florin, order
from tests.support.payments import charge


async def lose(florin: Florin, key: str, *, before: bool = False) -> str:
    """A charge whose answer, or which itself, is lost. Returns the payment's id."""
    await florin.control(create="reset_before" if before else "reset_after", fetch="drop")
    reply = await florin.post(order(order_id=key, confirm=True, token="tok_paid"), key=key)
    assert reply.status_code == 504, reply.text
    payment = reply.json()["payment"]
    assert (payment["status"], payment["awaiting"]) == ("UNKNOWN", "provider")
    payment_id: str = payment["id"]
    return payment_id


async def test_what_is_unknown_is_asked_about_as_soon_as_the_psp_answers(florin: Florin) -> None:
    lost = [await lose(florin, f"k{number}") for number in range(4)]
    await florin.connection.execute("UPDATE payment_requests SET due_at = now() + interval '20 hours'")
    await florin.control(create="answer", fetch="answer")
    began = trio.current_time()
    await charge(florin)
    for payment_id in lost:
        await florin.until_stored(payment_id, "SUCCEEDED")
    print(f"UNKNOWN ended {trio.current_time() - began:.1f} s after the PSP was back")
    await florin.require_promises()


async def test_a_retry_of_an_unknown_payment_looks_again(florin: Florin) -> None:
    payment_id = await lose(florin, "k")
    again = await florin.post(order(order_id="k", confirm=True, token="tok_paid"), key="k")
    assert again.status_code == 504, again.text
    await florin.control(create="answer", fetch="answer")
    settled = await florin.post(order(order_id="k", confirm=True, token="tok_paid"), key="k")
    assert (settled.status_code, settled.json()["id"], settled.json()["status"]) == (201, payment_id, "SUCCEEDED")


async def test_a_charge_that_the_psp_never_received_ends_once_that_is_proved(florin: Florin) -> None:
    payment_id = await lose(florin, "k", before=True)
    await florin.control(create="answer", fetch="answer")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now(), checks = 4")

    async def is_put_off() -> bool:
        """Not for the hour that the schedule says, but until the absence proves something."""
        looked = await florin.rows("SELECT 1 FROM payment_logs WHERE kind = 'not_found'")
        (row,) = await florin.rows("SELECT due_at - created_at BETWEEN '80 s' AND '100 s' AS is_so FROM payment_requests")
        return bool(looked) and bool(row["is_so"])

    await eventually(is_put_off)
    assert (await florin.row(payment_id))["status"] == "UNKNOWN", "the charge could still arrive"
    await florin.connection.execute("UPDATE payment_requests SET created_at = created_at - interval '5 minutes', due_at = now()")
    row = await florin.until_stored(payment_id, "CANCELED")
    assert (row["decline_code"], row["due_at"]) == ("psp_unreachable", None)
    again = await florin.post(order(order_id="k", confirm=True, token="tok_paid"), key="k")
    assert (again.status_code, again.json()["code"]) == (502, "psp_unreachable")
    await florin.until_event("payment.canceled", payment_id)
    assert (await florin.control())["requests"] > 0
    await florin.require_promises()


async def test_a_decline_that_is_not_confirmed_is_not_like_a_customer_who_has_to_act(florin: Florin) -> None:
    await florin.control(fetch="drop", webhooks="hold")
    declined = await florin.post(order(order_id="a", confirm=True, token="tok_declined"))
    challenged = await florin.post(order(order_id="b", confirm=True, token="tok_3ds"))
    assert [declined.status_code, challenged.status_code] == [202, 202]
    said = [
        (one["awaiting"], one["decline_code"], one["payment_url"] is not None) for one in (declined.json(), challenged.json())
    ]
    assert said == [("provider", "card_declined", False), ("customer", None, True)]


async def test_items_that_are_open_at_the_end_of_their_batch_say_so_and_end_later(florin: Florin) -> None:
    await florin.control(fetch="drop", webhooks="hold")
    body = [charge_item(1, "tok_declined"), charge_item(2, "tok_3ds"), charge_item(3)]
    done = (await post(florin, body, deadline_seconds=3)).json()
    first, second, _ = sorted(done["items"], key=lambda one: one["item"])
    assert (first["status"], first["code"]) == ("UNKNOWN", "decline_unconfirmed")
    assert "its end is reported" in first["detail"]
    assert (second["status"], second["code"]) == ("PENDING", "action_required")
    await florin.control(fetch="answer", webhooks="release")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now() WHERE due_at IS NOT NULL")

    async def ended() -> bool:
        rows = await florin.rows("SELECT status, code FROM batch_items WHERE number = 1")
        return rows == [{"status": "DECLINED", "code": "card_declined"}]

    await eventually(ended)
    url = f"{florin.api_url}/v1/batches/{done['batch']['id']}"
    outcomes = (await florin.http.get(url, headers=florin.headers)).json()["outcomes"]
    assert (outcomes["DECLINED"], outcomes["PENDING"], outcomes["SUCCEEDED"]) == (1, 1, 1)
    last = max(one["position"] for one in done["items"])
    later = (await florin.http.get(f"{url}/items?after={last}", headers=florin.headers)).json()["data"]
    assert [(one["item"], one["status"]) for one in later] == [(1, "DECLINED")], "who reads on is told"
    await florin.require_promises()


@pytest.mark.slow
async def test_after_a_psp_has_hung_for_a_minute_nothing_stays_unknown(database_url: str, directory: Path) -> None:
    """Measured in seconds after the PSP is back; here it hangs for some seconds, with calls that are shorter than usual."""
    async with open_florin(database_url, directory, psp_seconds=1.0, psp_read_seconds=0.5) as florin:
        await florin.control(outage="hang", outage_seconds=6.0)
        ids = list[str]()
        async with trio.open_nursery() as nursery:

            async def one(number: int) -> None:
                reply = await florin.post(order(order_id=f"o{number}", confirm=True, token="tok_paid"))
                if "payment" in reply.json():
                    ids.append(reply.json()["payment"]["id"])

            for number in range(14):
                nursery.start_soon(one, number)
        await florin.control(outage_seconds=0.0)
        for adapter in florin.payments.psps.adapters:
            adapter.guard.breaker.close()
        began = trio.current_time()
        reply = await florin.post(order(order_id="new", confirm=True, token="tok_paid"))
        assert reply.status_code == 201, reply.text
        assert ids

        async def known() -> bool:
            return not await florin.rows("SELECT 1 FROM payment_requests WHERE status = 'UNKNOWN' AND reference IS NOT NULL")

        await eventually(known)
        print(f"{len(ids)} payments: {trio.current_time() - began:.1f} s after the PSP was back those that it knew had ended")
        assert decode_id(PAYMENT, ids[0])

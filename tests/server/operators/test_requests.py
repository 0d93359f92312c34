"""The requests of operators: carried out once, by two where it moves money, and overruled by the PSP."""

from typing import Any

import psycopg
import pytest

from core.errors import Conflict
from core.findings import FindingState
from core.ids import OPERATOR_REQUEST, PAYMENT, MerchantId, PaymentId, PayoutId, decode_id, encode_id
from core.money import Money
from core.operator_requests import Adjust, MoveSuspense, RefundPayment, ResolvePayment, ResolveRefund
from core.payout import Payout, PayoutStatus
from server.clock import utc_now
from server.db.ledger.suspense import list_suspended
from server.db.merchants.audit import Act, Wanted, list_acts
from server.db.operators.requests import OperatorRequest, RequestState
from server.db.payments.findings import find_finding, list_findings
from server.flows.ledger import payouts
from server.flows.operators.carry_out import carry_out
from server.flows.operators.requests import approve, expire, withdraw
from server.jobs.overdue import look
from server.uuid7 import uuid7
from tests.support.florin import Florin, eventually, order
from tests.support.operators import ADA, GRACE, approved, asked, ended
from tests.support.payments import act, balances, captured_event, charge, send_event

CAPTURED, NOT_CHARGED = ResolvePayment(outcome="captured", reference="int_9"), ResolvePayment(outcome="not_charged")


async def lost(florin: Florin, key: str = "lost", **fields: Any) -> str:
    """A charge whose answer is lost, with a PSP that cannot be asked, and that nobody asks again."""
    await florin.control(create="reset_after", fetch="drop")
    reply = await florin.post(order(order_id=key, confirm=True, token="tok_paid", **fields), key=key)
    assert reply.status_code == 504, reply.text
    payment_id: str = reply.json()["payment"]["id"]
    await florin.connection.execute("UPDATE payment_requests SET due_at = NULL WHERE id = $1", (decode_id(PAYMENT, payment_id),))
    await florin.connection.execute(
        """
        INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
        SELECT merchant_id, gen_random_uuid(), 'outcome_unknown', id, 'recheck brought unanswered', now() - interval '1 day'
          FROM payment_requests WHERE id = $1
        """,
        (decode_id(PAYMENT, payment_id),),
    )
    return payment_id


async def states(florin: Florin) -> list[tuple[str, str | None]]:
    return [(one.state.value, one.operator) for one in await list_findings(florin.connection, only_open=False, limit=10)]


async def test_a_lost_payment_is_resolved_by_two_operators(florin: Florin) -> None:
    payment_id = await lost(florin)
    request = await asked(florin, CAPTURED, payment_id)
    assert request.state is RequestState.REQUESTED
    with pytest.raises(Conflict, match="ada made this request, so another operator"):
        await approve(florin.connection, request, ADA, now=utc_now())
    done = await approved(florin, request)
    assert (done.state, done.result) == (RequestState.DONE, f"{payment_id} is SUCCEEDED")
    row = await florin.row(payment_id)
    assert (row["status"], row["is_operators_word"], row["reference"]) == ("SUCCEEDED", True, None)
    assert await balances(florin) == {"available": 1_990}
    assert await states(florin) == [("FIXED", "ada and grace")]
    await florin.until_event("payment.succeeded", payment_id)
    acts = await list_acts(florin.connection, Wanted(payment_id=decode_id(PAYMENT, payment_id)), limit=10)
    assert [(one.actor, one.action) for one in acts] == [("ada", "payment.resolve"), ("grace", "request.approve")]
    await carry_out(florin.payments, request, refund_approval_minor=50_000)
    assert await balances(florin) == {"available": 1_990}, "once"
    await florin.require_promises()


@pytest.mark.parametrize("word", [CAPTURED, NOT_CHARGED])
async def test_the_psp_contradicts_later_and_is_followed(florin: Florin, word: ResolvePayment) -> None:
    """The sandbox has carried out the charge; what it says afterwards is made up here where it has to be something else."""
    payment_id = await lost(florin)
    request = await asked(florin, word, payment_id)
    await (approved(florin, request) if word is CAPTURED else ended(florin, request))
    row = await florin.row(payment_id)
    assert row["status"] == ("SUCCEEDED" if word is CAPTURED else "CANCELED")
    event = captured_event(florin, {**row, "reference": "int_of_the_psp", "payment_url": ""})
    if word is CAPTURED:
        event["type"], event["data"]["status"], event["data"]["captured_minor"] = "intent.canceled", "canceled", 0
    await send_event(florin, event)
    row = await florin.until_stored(payment_id, "CANCELED" if word is CAPTURED else "SUCCEEDED")
    assert (row["is_operators_word"], row["late"]) == (False, False)
    wanted = {"available": 0} if word is CAPTURED else {"available": 1_990}
    assert await balances(florin) == wanted
    (found,) = await list_findings(florin.connection, only_open=True, limit=10)
    assert found.kind == "operator_contradicted"
    await florin.until_event("payment.canceled" if word is CAPTURED else "payment.succeeded", payment_id)
    await florin.require_promises()


async def test_not_charged_needs_nobody_else_and_an_outcome_of_the_psps_stands(florin: Florin) -> None:
    payment_id = await lost(florin)
    done = await ended(florin, await asked(florin, NOT_CHARGED, payment_id))
    assert done.state is RequestState.DONE
    assert (await florin.row(payment_id))["status"] == "CANCELED"
    await florin.control(create="answer", fetch="answer")
    paid = await charge(florin, order_id="paid")
    refused = await ended(florin, await asked(florin, NOT_CHARGED, paid["id"]))
    assert refused.state is RequestState.FAILED
    assert "own word, which stands" in (refused.result or "")
    assert (await florin.row(paid["id"]))["status"] == "SUCCEEDED"


async def test_a_lost_refund_is_settled(florin: Florin) -> None:
    paid = await charge(florin)
    await florin.control(refund="reset_before", fetch="drop")
    refunded = await act(florin, paid, "refunds", amount=500)
    assert refunded.status_code == 504, refunded.text
    refund_id = decode_id("ref", refunded.json()["refund"]["id"])
    request = await asked(florin, ResolveRefund(refund_id=refund_id, outcome="failed"), paid["id"])
    assert (await approved(florin, request)).state is RequestState.DONE
    assert await balances(florin) == {"available": 1_990}
    (refund,) = await florin.rows("SELECT status, failure_code FROM refunds")
    assert refund == {"status": "FAILED", "failure_code": "not_refunded"}
    await florin.until_event("refund.failed", refunded.json()["refund"]["id"])
    await florin.require_promises()


async def test_an_operator_refunds_and_a_large_refund_takes_two(florin: Florin) -> None:
    paid = await charge(florin)
    small = await asked(florin, RefundPayment(amount_minor=500), paid["id"], act="payment.refund")
    assert "SUCCEEDED" in ((await ended(florin, small)).result or "")
    large = await asked(florin, RefundPayment(amount_minor=1_000, is_large=True), paid["id"], act="payment.refund")
    assert large.state is RequestState.REQUESTED
    await approved(florin, large)
    too_much = await ended(florin, await asked(florin, RefundPayment(amount_minor=1_000), paid["id"], act="payment.refund"))
    assert (too_much.state, await balances(florin)) == (RequestState.FAILED, {"available": 490})
    await florin.require_promises()


async def test_what_needs_an_approval_is_judged_by_the_worker(florin: Florin) -> None:
    """Not by the settings of the operator's terminal, and as things are by then."""
    paid = await charge(florin, amount=100_000)
    for amount_minor, state in ((40_000, RequestState.DONE), (20_000, RequestState.FAILED), (10_000, RequestState.DONE)):
        request = await asked(florin, RefundPayment(amount_minor=amount_minor), paid["id"], act="payment.refund")
        assert (await ended(florin, request)).state is state, amount_minor
    payment_id = await lost(florin)
    await approved(florin, await asked(florin, CAPTURED, payment_id))
    taken_back = await ended(florin, await asked(florin, NOT_CHARGED, payment_id))
    assert (taken_back.state, (await florin.row(payment_id))["status"]) == (RequestState.FAILED, "SUCCEEDED")
    assert "needs the approval" in (taken_back.result or "")
    word = ResolvePayment(outcome="not_charged", takes_back=True)
    await approved(florin, await asked(florin, word, payment_id))
    assert (await florin.row(payment_id))["status"] == "CANCELED"
    await florin.require_promises()


async def test_a_payout_that_nobody_approves_gives_its_money_back(florin: Florin) -> None:
    await charge(florin)
    money, now = Money(500, "EUR"), utc_now()
    payout = Payout(
        id=PayoutId(uuid7()),
        merchant_id=MerchantId(florin.demo.merchant_id),
        money=money,
        status=PayoutStatus.PENDING,
        requested_by="ada",
        approved_by=None,
        reference=None,
        failure=None,
        created_at=now,
        updated_at=now,
    )
    act = Act(id=uuid7(), merchant_id=payout.merchant_id, actor="ada", action="payout.request", detail="", at=now)
    await payouts.add_payout(florin.connection, payout, act)
    await look(florin.payments)
    assert await balances(florin) == {"available": 1_490}
    await florin.connection.execute("UPDATE payouts SET created_at = created_at - interval '8 days'")
    for _ in range(2):
        await look(florin.payments)
    assert await balances(florin) == {"available": 1_990}
    events = await florin.rows("SELECT type, data FROM events WHERE type LIKE 'payout.%' ORDER BY seq")
    assert [one["type"] for one in events] == ["payout.created", "payout.failed"]
    assert "nobody approved it in time" in events[1]["data"]
    await florin.require_promises()


async def suspend(florin: Florin, payment_id: str, amount_minor: int) -> MoveSuspense:
    """Tell of a capture that does not fit its payment. Returns what moves it to the wallet."""
    row = await florin.row(payment_id)
    event = captured_event(florin, {**row, "reference": row["reference"] or "int_x", "payment_url": ""})
    event["data"]["captured_minor"] = event["data"]["amount_minor"] = amount_minor
    await send_event(florin, event)

    async def held() -> MoveSuspense | None:
        found = await list_suspended(florin.connection, payment_id=decode_id(PAYMENT, payment_id), limit=1)
        return MoveSuspense(transfer_id=found[0].transfer_id, to="wallet") if found else None

    return await eventually(held)


async def test_suspense_goes_to_the_wallet_once(florin: Florin) -> None:
    payment_id = await lost(florin)
    move = await suspend(florin, payment_id, 777)
    requests = [await asked(florin, move, payment_id, act="suspense.credit") for _ in range(2)]
    done = [await approved(florin, one) for one in requests]
    assert [one.state for one in done] == [RequestState.DONE, RequestState.FAILED]
    assert await balances(florin) == {"available": 777}
    assert await list_suspended(florin.connection, payment_id=None, limit=10) == []
    (event,) = await florin.rows("SELECT data FROM events WHERE type = 'adjustment.created'")
    assert '"amount":777' in event["data"]
    assert ("FIXED", "ada and grace") in await states(florin)
    await florin.require_promises()


async def test_suspense_is_assigned_to_the_payment_it_was_for(florin: Florin) -> None:
    wrong, right = await lost(florin, "wrong", amount=500), await lost(florin, "right", amount=800)
    move = await suspend(florin, wrong, 800)
    fit = MoveSuspense(transfer_id=move.transfer_id, to="payment", payment_id=decode_id(PAYMENT, right))
    request = await asked(florin, fit, wrong, act="suspense.assign")
    done = await approved(florin, request)
    assert (done.state, (await florin.row(right))["status"]) == (RequestState.DONE, "SUCCEEDED")
    assert await balances(florin) == {"available": 800}
    await carry_out(florin.payments, request, refund_approval_minor=50_000)
    assert await balances(florin) == {"available": 800}
    rows = await florin.rows("SELECT account, sum(amount_minor)::int AS total FROM ledger_entries GROUP BY account")
    assert {row["account"]: row["total"] for row in rows}["suspense"] == 0
    await florin.require_promises()


async def assigned(florin: Florin) -> tuple[str, OperatorRequest]:
    """A request to assign 800 that are in suspense to a payment whose outcome is unknown. Returns that payment too."""
    wrong, right = await lost(florin, "wrong", amount=500), await lost(florin, "right", amount=800)
    move = await suspend(florin, wrong, 800)
    fit = MoveSuspense(transfer_id=move.transfer_id, to="payment", payment_id=decode_id(PAYMENT, right))
    return right, await asked(florin, fit, wrong, act="suspense.assign")


async def in_suspense(florin: Florin) -> int:
    (row,) = await florin.rows("SELECT sum(amount_minor)::int AS total FROM ledger_entries WHERE account = 'suspense'")
    return int(row["total"])


async def test_an_assignment_after_the_psp_has_spoken_moves_nothing(florin: Florin) -> None:
    right, request = await assigned(florin)
    row = await florin.row(right)
    await send_event(florin, {**captured_event(florin, {**row, "reference": "int_r", "payment_url": ""}), "id": "sbe_right"})
    await florin.until_stored(right, "SUCCEEDED")
    assert (await approved(florin, request)).state is RequestState.FAILED
    assert (await in_suspense(florin), await balances(florin)) == (800, {"available": 800})
    await florin.require_promises()


@pytest.mark.parametrize("end", ["canceled", "captured"])
async def test_assigned_money_is_in_suspense_again_when_the_psp_speaks(florin: Florin, end: str) -> None:
    right, request = await assigned(florin)
    await approved(florin, request)
    assert await in_suspense(florin) == 0
    row = await florin.row(right)
    event = captured_event(florin, {**row, "reference": "int_r", "payment_url": ""})
    event["id"], event["type"], event["data"]["status"] = "sbe_right", f"intent.{end}", end
    if end == "canceled":
        event["data"]["captured_minor"] = 0
    await send_event(florin, event)
    assert await in_suspense(florin) == 800
    assert await balances(florin) == {"available": 0 if end == "canceled" else 800}
    await florin.require_promises()
    (back,) = await list_suspended(florin.connection, payment_id=decode_id(PAYMENT, right), limit=10)
    credit = MoveSuspense(transfer_id=back.transfer_id, to="wallet")
    assert (await approved(florin, await asked(florin, credit, right, act="suspense.credit"))).state is RequestState.DONE
    assert await in_suspense(florin) == 0
    await florin.require_promises()


async def test_the_request_of_an_operator_who_may_no_longer_is_not_carried_out(florin: Florin) -> None:
    document = Adjust(amount_minor=5, currency="EUR", account="goodwill")
    for change in ("disabled_at = now()", "role = 'viewer'"):
        request = await asked(florin, document, act="adjust")
        await florin.connection.execute(f"UPDATE operators SET {change} WHERE name = 'ada'")
        refused = await approved(florin, request)
        assert (refused.state, await balances(florin)) == (RequestState.FAILED, {})
        await florin.connection.execute("UPDATE operators SET disabled_at = NULL, role = 'finance'")


async def test_one_resolved_refund_closes_no_other_ones_finding(florin: Florin) -> None:
    paid = await charge(florin)
    await florin.control(refund="reset_before", fetch="drop")
    refunds = [(await act(florin, paid, "refunds", amount=100)).json()["refund"]["id"] for _ in range(2)]
    await florin.connection.execute(
        """
        INSERT INTO findings (merchant_id, id, kind, payment_id, detail, created_at)
        SELECT merchant_id, gen_random_uuid(), 'refund_outcome_unknown', id, 'x', now() FROM payment_requests
        """
    )
    for number, refund in enumerate(refunds):
        word = ResolveRefund(refund_id=decode_id("ref", refund), outcome="succeeded", reference="re_1")
        assert (await ended(florin, await asked(florin, word, paid["id"]))).state is RequestState.DONE
        assert len(await list_findings(florin.connection, only_open=True, limit=9)) == 1 - number


async def test_a_request_of_a_newer_version_is_left_to_its_workers(florin: Florin) -> None:
    newer = await asked(florin, Adjust(amount_minor=5, currency="EUR", account="goodwill"), act="adjust")
    await florin.connection.execute("""UPDATE operator_requests SET document = '{"type": "later"}'""")
    await approve(florin.connection, newer, GRACE, now=utc_now())
    other = await asked(florin, Adjust(amount_minor=7, currency="EUR", account="goodwill"), act="adjust")
    assert (await approved(florin, other)).state is RequestState.DONE
    assert (await florin.rows("SELECT state FROM operator_requests WHERE id = $1", newer.id))[0]["state"] == "APPROVED"


async def test_suspense_that_fits_no_payment_stays(florin: Florin) -> None:
    wrong, other = await lost(florin, "wrong", amount=500), await lost(florin, "other", amount=900)
    move = await suspend(florin, wrong, 800)
    misfit = MoveSuspense(transfer_id=move.transfer_id, to="payment", payment_id=decode_id(PAYMENT, other))
    done = await approved(florin, await asked(florin, misfit, wrong, act="suspense.assign"))
    assert (done.state, (await florin.row(other))["status"]) == (RequestState.FAILED, "UNKNOWN")
    back = MoveSuspense(transfer_id=move.transfer_id, to="psp", reference="re_1")
    assert (await approved(florin, await asked(florin, back, wrong, act="suspense.return"))).state is RequestState.DONE
    assert (
        sum(
            row["total"]
            for row in await florin.rows("SELECT abs(sum(amount_minor))::int AS total FROM ledger_entries GROUP BY account")
        )
        == 0
    )
    await florin.require_promises()


async def test_adjustments_are_transfers_of_a_kind_of_their_own(florin: Florin) -> None:
    async def adjust(amount_minor: int, account: str) -> OperatorRequest:
        document = Adjust(amount_minor=amount_minor, currency="EUR", account=account)
        return await approved(florin, await asked(florin, document, act="adjust"))

    assert (await adjust(1_000, "goodwill")).result == "adjusted by 10.00 EUR"
    assert (await adjust(-600, "reserve")).state is RequestState.DONE
    refused = await adjust(-500, "correction")
    assert (refused.state, refused.result) == (RequestState.FAILED, "only 4.00 EUR is available")
    assert (await adjust(600, "reserve")).state is RequestState.DONE
    assert await balances(florin) == {"available": 1_000}
    rows = await florin.rows("SELECT reason, amount_minor FROM wallet_adjustments ORDER BY created_at")
    assert [(row["reason"], row["amount_minor"]) for row in rows] == [("adjustment", one) for one in (1_000, -600, 600)]
    events = await florin.rows("SELECT type FROM events ORDER BY seq")
    assert [row["type"] for row in events] == ["adjustment.created"] * 3
    await florin.require_promises()


async def test_nothing_is_half_done_when_the_second_operator_never_comes(florin: Florin) -> None:
    payment_id = await lost(florin)
    request = await asked(florin, CAPTURED, payment_id)
    other = await asked(florin, CAPTURED, payment_id)
    await withdraw(florin.connection, other, GRACE, "asked twice", now=utc_now())
    with pytest.raises(Conflict, match="no longer open"):
        await approve(florin.connection, other, GRACE, now=utc_now())
    await florin.connection.execute("UPDATE operator_requests SET expires_at = now() - interval '1 second'")
    with pytest.raises(Conflict, match="no longer open"):
        await approve(florin.connection, request, GRACE, now=utc_now())
    await expire(florin.connection)
    assert (await ended(florin, request)).state is RequestState.EXPIRED
    (alert,) = await florin.rows("SELECT title FROM alerts WHERE kind = 'operator_request'")
    name = encode_id(OPERATOR_REQUEST, request.id)
    assert alert["title"].startswith(f"{name} of ada has expired")
    (act,) = await florin.rows("SELECT actor, subject FROM audit_log WHERE action = 'request.expire'")
    assert (act["actor"], act["subject"]) == ("florin", name)
    assert (await florin.row(payment_id))["status"] == "UNKNOWN"
    assert await balances(florin) == {}


async def test_the_database_refuses_one_and_the_same(florin: Florin) -> None:
    request = await asked(florin, CAPTURED, await lost(florin))
    with pytest.raises(psycopg.errors.CheckViolation, match="four_eyes"):
        await florin.connection.execute("UPDATE operator_requests SET approved_by = requested_by")
    with pytest.raises(psycopg.errors.CheckViolation, match="carried_out_only_when_approved"):
        await florin.connection.execute("UPDATE operator_requests SET state = 'DONE' WHERE id = $1", (request.id,))
    with pytest.raises(psycopg.errors.RestrictViolation, match="append-only"):
        await florin.connection.execute("UPDATE audit_log SET actor = 'eve'")


async def test_what_the_psp_tells_closes_the_finding_by_itself(florin: Florin) -> None:
    payment_id = await lost(florin)
    (finding,) = await list_findings(florin.connection, only_open=True, limit=10)
    assert finding.at_stake is not None
    assert (finding.at_stake.amount_minor, finding.payment_id) == (1_990, PaymentId(decode_id(PAYMENT, payment_id)))
    assert finding.merchant_id == MerchantId(florin.demo.merchant_id)
    await florin.connection.execute("UPDATE findings SET created_at = now() - interval '4 days'")
    await look(florin.payments)
    (alert,) = await florin.rows("SELECT title FROM alerts WHERE key LIKE 'findings_open:%'")
    assert alert["title"] == "URGENT: 1 findings are still open after 4 days: outcome_unknown"
    await florin.control(create="answer", fetch="answer")
    await florin.connection.execute("UPDATE payment_requests SET due_at = now()")
    await florin.until_stored(payment_id, "SUCCEEDED")
    await look(florin.payments)
    closed = await find_finding(florin.connection, finding.id)
    assert closed is not None
    assert (closed.state, closed.operator) == (FindingState.FIXED, "florin")

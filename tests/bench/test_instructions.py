"""The instructions of a payment: counted the same twice, and within the budget."""

import sys
from functools import partial

import pytest
import trio

from bench.micro.instructions import BUDGET, CALLERS, PAYMENTS, PYTHON, count
from server.child_process import allow_many_files
from tests.conftest import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

AGREEMENT, REPEATS_MAX = 0.01, 6


@pytest.mark.skipif(sys.version_info[:3] != PYTHON, reason="the budget is for the Python that is counted in CI")
def test_a_payment_needs_no_more_instructions_than_its_budget() -> None:
    program("valgrind")
    allow_many_files()
    counted = trio.run(partial(count, CALLERS, PAYMENTS, REPEATS_MAX, [], None, agreement=AGREEMENT))
    first, second = sorted(counted.totals)[:2]  # a job that seldom runs adds to some of them, and nothing takes away
    assert second == pytest.approx(first, rel=AGREEMENT)
    assert first <= 1.05 * BUDGET, "find what has become dearer; a price that is worth it moves the budget, with its reason"
    assert first >= 0.9 * BUDGET, "lower the budget, or what was gained is lost again unnoticed"

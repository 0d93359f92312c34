"""The instructions of a payment: counted the same twice, and within the budget."""

import sys

import pytest
import trio

from bench.micro.instructions import BUDGET, CALLERS, PAYMENTS, PYTHON, count
from server.child_process import allow_many_files
from tests.conftest import program

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.mark.skipif(sys.version_info[:3] != PYTHON, reason="the budget is for the Python that is counted in CI")
def test_a_payment_needs_no_more_instructions_than_its_budget() -> None:
    program("valgrind")
    allow_many_files()
    counted = trio.run(count, CALLERS, PAYMENTS, 3, [], None)
    first, second, _ = sorted(counted.totals)  # a job that seldom runs adds to one of them, and nothing takes away
    assert second == pytest.approx(first, rel=0.01)
    assert first <= 1.05 * BUDGET, "find what has become dearer; a price that is worth it moves the budget, with its reason"
    assert first >= 0.9 * BUDGET, "lower the budget, or what was gained is lost again unnoticed"

"""The sandbox PSP's own books: a step and its movement of money are one write, whatever becomes of the disk or the process."""

import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from server.sandbox.intents import ISSUED_BY, Intents, account_name, upgraded
from server.sandbox.journal import Journal

Books = Callable[..., Intents]


@pytest.fixture
def books() -> Iterator[Books]:
    """Opens the books in a file."""
    opened: list[Journal] = []

    def open_books(path: Path, *, account: str = "") -> Intents:
        opened.append(Journal(path))
        return Intents(opened[-1], "http://psp", account=account)

    yield open_books
    for journal in opened:
        journal.close()


def charged(intents: Intents, token: str = "tok_paid") -> dict[str, object]:
    ids = {name: str(uuid4()) for name in ("merchant_id", "payment_id", "operation_id")}
    return intents.create({"amount_minor": 1_000, "currency": "EUR", "token": token, **ids})


@contextmanager
def full_disk(path: Path, *, room: int) -> Iterator[None]:
    """Files of this process may grow only to the size of `path` and that many bytes more."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_step_that_does_not_fit_on_the_disk_has_not_happened(tmp_path: Path, books: Books, room: int) -> None:
    path = tmp_path / "intents.jsonl"
    intents = books(path)
    intent = charged(intents)
    with full_disk(path, room=room):
        with pytest.raises(OSError, match=r"space|too large"):
            intents.refund(intent, "re_1", 400)
        with pytest.raises(OSError, match=r"space|too large"):
            charged(intents)
    assert intents.balances() == {"EUR": 1_000}
    step = intents.refund(intent, "re_1", 400)
    assert step.intent["refunds"]["re_1"]["status"] == "succeeded"
    again = books(path)
    assert again.balances() == intents.balances() == {"EUR": 600}
    assert again.movements(after="", limit=10) == intents.movements(after="", limit=10)
    assert again.find(str(intent["id"])) == step.intent


def test_a_torn_line_of_a_process_that_died_is_as_if_it_had_not_been(tmp_path: Path, books: Books) -> None:
    path = tmp_path / "intents.jsonl"
    intents = books(path)
    intent = charged(intents)
    whole = path.read_bytes()
    intents.refund(intent, "re_1", 400)
    path.write_bytes(path.read_bytes()[:-7])
    after = books(path)
    assert after.balances() == {"EUR": 1_000}
    assert path.read_bytes() == whole
    after.refund(after.find(str(intent["id"])) or {}, "re_1", 400)
    assert books(path).balances() == {"EUR": 600}


def test_the_books_of_an_older_version_are_read(tmp_path: Path) -> None:
    with closing(Journal(tmp_path / "intents.jsonl")) as old, closing(Journal(tmp_path / "ledger.jsonl")) as ledger:
        old.put("int_1", {"id": "int_1", "status": "captured"})
        ledger.put("txn_1", {"id": "txn_1", "intent": "int_1", "currency": "EUR", "amount_minor": 5})
    for _ in range(2):
        with closing(Journal(tmp_path / "intents.jsonl")) as journal:
            upgraded(journal, tmp_path / "ledger.jsonl")
            intents = Intents(journal, "http://psp")
        assert (intents.balances(), intents.find("int_1")) == ({"EUR": 5}, {"id": "int_1", "status": "captured"})


def test_a_token_is_known_to_the_account_that_issued_it(tmp_path: Path, books: Books) -> None:
    mine, other = account_name("sandbox_mine"), account_name("sandbox_other")
    intents = books(tmp_path / "intents.jsonl", account=mine)
    assert charged(intents, f"tok_paid{ISSUED_BY}{mine}")["status"] == "captured"
    with pytest.raises(ValueError, match="another account"):
        charged(intents, f"tok_paid{ISSUED_BY}{other}")

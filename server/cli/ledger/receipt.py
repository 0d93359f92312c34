"""`florin receipt verify`: checks that a receipt is genuine and unchanged. Works offline, with the published keys."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from core.errors import Unprocessable
from core.money import Money
from server.cli.groups import group
from server.cli.output import Output
from server.flows.ledger.receipt import read

app = group("Verify receipts offline.")
_console = Output()


class _KeySet(msgspec.Struct):
    keys: list[dict[str, str]]


@app.callback()
def receipts() -> None:
    """Verify receipts offline."""


@app.command("verify")
def verify(
    receipt: Annotated[Path, typer.Argument(help="The receipt from GET /v1/payments/{id}/receipt.")],
    keys: Annotated[Path, typer.Option(help="The keys from GET /v1/receipt-keys. Keep them: they verify old receipts.")],
) -> None:
    """Check the signature and hashes of a receipt and print its contents. Exit code 0 only if it is genuine."""
    try:
        key_set = msgspec.json.decode(keys.read_bytes(), type=_KeySet)
        text = receipt.read_text()
    except (OSError, UnicodeDecodeError, msgspec.DecodeError) as error:
        raise Unprocessable(f"cannot read the receipt or the keys: {error}") from error
    found = read(text, key_set.keys)
    _console.print(f"genuine: payment {found.payment['id']}, issued {found.issued_at:%Y-%m-%d %H:%M:%S %Z}")
    for entry in found.entries:
        money = Money(entry.amount_minor, entry.currency)
        _console.print(f"{entry.created_at:%Y-%m-%d %H:%M:%S}  no. {entry.seq}  {entry.kind}  {money}  {entry.account}")

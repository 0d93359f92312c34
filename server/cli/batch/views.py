"""`florin batch list | show | stop`: batches as their merchant sees them, through the API."""

import sys
from typing import Any

import httpx2
import msgspec
from rich.console import Console
from rich.table import Column, Table

from server.cli.batch.client import BatchFailed, BatchRefused

SECONDS = 30.0
_console = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)


def ask(url: str, api_key: str, method: str, path: str) -> dict[str, Any]:
    """Request something of the API. Raises `BatchFailed`, `BatchRefused`."""
    try:
        headers = {"authorization": f"Bearer {api_key}"}
        response = httpx2.request(method, f"{url}/v1/batches{path}", headers=headers, timeout=SECONDS, trust_env=False)
        document: dict[str, Any] = msgspec.json.decode(response.content)
    except (httpx2.HTTPError, msgspec.DecodeError) as error:
        raise BatchFailed(f"{url} cannot be reached: {error}. Check that it is running, and a Florin") from error
    if not response.is_success:
        raise BatchRefused(str(document.get("detail", f"the server answered {response.status_code}")))
    return document


def show_all(page: dict[str, Any]) -> None:
    """Print a list of batches."""
    if not page["data"]:
        _console.print("There are no batches.")
        return
    table = Table(Column("batch", no_wrap=True), "began", "status", "items", "outcomes", box=None, pad_edge=False)
    for batch in page["data"]:
        table.add_row(
            batch["id"], batch["started_at"][:19].replace("T", " "), batch["status"], str(batch["count"]), _outcomes(batch)
        )
    _console.print(table)


def show(batch: dict[str, Any]) -> None:
    """Print one batch."""
    _console.print(f"{batch['id']} is {batch['status']}: {_outcomes(batch)}")
    _console.print(f"started {batch['started_at'][:19]}, run {batch['run']}, deadline {batch['deadline_at'][:19]}", markup=False)
    if batch["resume_token"] is not None:
        _console.print(f"can be resumed: POST /v1/batches/{batch['id']}/resume with {batch['resume_token']}", markup=False)


def _outcomes(batch: dict[str, Any]) -> str:
    counts = {**batch["outcomes"], "unfinished": batch["unfinished"]}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing yet"

"""`florin batch list | show | stop`: batches as their merchant sees them, through the API."""

from typing import Any

import httpx2
import msgspec

from server.cli.batch.client import BatchFailed, BatchRefused
from server.cli.output import Output, Rows

SECONDS = 30.0
_console = Output()


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
    table = Rows("batch", "began", "status", "items", "outcomes")
    for batch in page["data"]:
        table.add(batch["id"], batch["started_at"][:19].replace("T", " "), batch["status"], str(batch["count"]), _outcomes(batch))
    _console.print(table)


def show(batch: dict[str, Any]) -> None:
    """Print one batch."""
    _console.print(f"{batch['id']} is {batch['status']}: {_outcomes(batch)}")
    _console.print(f"started {batch['started_at'][:19]}, run {batch['run']}, deadline {batch['deadline_at'][:19]}")
    if batch["resume_token"] is not None:
        _console.print(f"can be resumed: POST /v1/batches/{batch['id']}/resume with {batch['resume_token']}")


def _outcomes(batch: dict[str, Any]) -> str:
    counts = {**batch["outcomes"], "unfinished": batch["unfinished"]}
    return ", ".join(f"{count:,} {name}" for name, count in counts.items() if count) or "nothing yet"

"""`florin batch`: run a file of payments as one batch, on this machine's Florin or another one.

Nothing that was begun is lost: before the request is sent, its idempotency key is in a file beside the results. After Ctrl-C, a
lost connection or a deadline, `--resume` continues and charges nothing twice.
"""

import hashlib
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import trio
import typer

from core.batch import BATCH, CONCURRENCY_DEFAULT, CONCURRENCY_MAX, DEADLINE_SECONDS_DEFAULT, DEADLINE_SECONDS_MAX
from core.errors import FlorinError
from core.ids import decode_id, encode_id
from server.cli.batch import views
from server.cli.batch.client import BatchClient, BatchRefused, Follower
from server.cli.batch.files import (
    HEADING,
    NOT_KNOWN,
    NOT_STARTED,
    BadFile,
    Rows,
    errors_of,
    listed_errors,
    read_results,
    read_rows,
    write_results,
    write_whole,
)
from server.cli.batch.progress import Progress
from server.cli.events.listen import address
from server.cli.groups import group
from server.cli.options import DataDirectory
from server.cli.output import Output, shown
from server.credentials import merchant_of_key

ALL_SETTLED, SOME_DECLINED, DEADLINE_PASSED, INTERRUPTED = 0, 3, 4, 130
STATE_SUFFIX = ".batch.json"
BEGIN_SECONDS = 5.0
_console = Output()
_errors = Output(stderr=True)
app = group("Run a file of payments as a batch under one deadline, resume it, list and stop batches.")

BatchText = Annotated[str, typer.Argument(help="The batch's id, bat_….", metavar="BATCH")]
ApiUrl = Annotated[
    str | None, typer.Option("--api-url", help="Default: FLORIN_API_URL, else the running instance.", show_default=False)
]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Default: FLORIN_API_KEY, else the demo's.", show_default=False)]


class NotBegun(FlorinError):
    """The command cannot start; the text says what to do."""

    code = "not_begun"


class _State(msgspec.Struct):
    """The state of an unfinished run for a later one. `terms` are those with which the batch was started, under `key`."""

    sha256: str
    key: str
    api_url: str
    merchant: str
    terms: dict[str, int]
    batch_id: str | None = None


@app.command("run")
def run(
    file: Annotated[
        Path, typer.Argument(help="CSV with a header line, or NDJSON: one charge, verification, capture or refund per row.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="File for the results. Default: FILE.results.csv.", show_default=False)
    ] = None,
    deadline: Annotated[
        int,
        typer.Option("--deadline", min=1, max=DEADLINE_SECONDS_MAX, help="Seconds that the batch, or its resumption, may take."),
    ] = DEADLINE_SECONDS_DEFAULT,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=CONCURRENCY_MAX, help="Items under way at the same time.")
    ] = CONCURRENCY_DEFAULT,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an unfinished run of this file.")] = False,
    again: Annotated[
        bool,
        typer.Option("--again", help="Run a file again that was run before: CHARGES AGAIN. Earlier results are renamed."),
    ] = False,
    api_url: ApiUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDirectory = None,
) -> None:
    """Run every row of FILE as one batch, and write the results.

    Exits with 0 if all rows are settled, 3 if some are not (declined, failed, still open), 4 if the deadline passed or somebody
    stopped the batch, so that the rest can be resumed; 130 after Ctrl-C.
    """
    try:
        rows = read_rows(file)
        results_path = _results_path(file, out)
        state_path = results_path.with_name(results_path.name + STATE_SUFFIX)
        state = _state_to_go_on_with(state_path, rows) if resume else None
        if state is None:
            _require_nothing_there(results_path, state_path, again=again)
        if not rows.items:
            write_results(results_path, rows, {}, missing=NOT_STARTED)
            _errors.print(f"{shown(str(file))} has no rows: nothing to do")
            return
        url, key = address(api_url, api_key, data_dir)
        terms = {"deadline_seconds": deadline, "concurrency": concurrency}
        client = BatchClient(url, key)
        if state is None:
            _keep_earlier(results_path)
            state = _State(rows.sha256, str(uuid4()), url, _merchant(key), terms)
            write_whole(state_path, msgspec.json.encode(state), is_new=True)
        else:
            _require_same_place(state, url, key)
        job = _Job(rows, results_path, state_path, state, terms, is_resumed=resume)
        code = trio.run(job.run, client)
    except BadFile as error:
        _errors.print(f"florin: {error}")
        code = 1
    sys.exit(code)


@app.command("list")
def list_all(
    limit: Annotated[int, typer.Option(min=1, max=100)] = 20,
    api_url: ApiUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDirectory = None,
) -> None:
    """List the latest batches."""
    url, key = address(api_url, api_key, data_dir)
    views.show_all(views.ask(url, key, "GET", f"?limit={limit}"))


@app.command("show")
def show(batch: BatchText, api_url: ApiUrl = None, api_key: ApiKey = None, data_dir: DataDirectory = None) -> None:
    """Show the state of a batch."""
    url, key = address(api_url, api_key, data_dir)
    views.show(views.ask(url, key, "GET", f"/{_named(batch)}"))


@app.command("stop")
def stop(batch: BatchText, api_url: ApiUrl = None, api_key: ApiKey = None, data_dir: DataDirectory = None) -> None:
    """Start no more items of a batch; those under way are finished."""
    url, key = address(api_url, api_key, data_dir)
    views.show(views.ask(url, key, "POST", f"/{_named(batch)}/stop"))


def _named(text: str) -> str:
    return encode_id(BATCH, decode_id(BATCH, text))


def _keep_earlier(results_path: Path) -> None:
    """Rename the results of an earlier run, so that this one does not overwrite them."""
    if results_path.exists():
        results_path.replace(results_path.with_name(results_path.name + ".earlier"))


def _merchant(key: str) -> str:
    """The merchant of a key. Any key of the same merchant will do."""
    merchant_id = merchant_of_key(key)
    return merchant_id.hex if merchant_id is not None else hashlib.sha256(key.encode()).hexdigest()


def _results_path(file: Path, out: Path | None) -> Path:
    """The file for results: a link's target, and never a device, a directory or the input itself."""
    try:
        path = (out or file.with_name(file.name + ".results.csv")).resolve()
    except (OSError, RuntimeError) as error:
        raise NotBegun(f"--out cannot be used: {error}") from error
    if path == file.resolve():
        raise NotBegun("--out is the input file: choose another one")
    if not path.parent.is_dir():
        raise NotBegun(f"there is no directory {path.parent}")
    if path.exists() and not path.is_file():
        raise NotBegun(f"{path} is not a file: choose another --out")
    if not os.access(path.parent, os.W_OK):
        raise NotBegun(f"nothing can be written to {path.parent}: choose another --out")
    return path


def _state_to_go_on_with(path: Path, rows: Rows) -> _State:
    try:
        state = msgspec.json.decode(path.read_bytes(), type=_State)
    except FileNotFoundError:
        raise NotBegun(f"there is nothing to resume: {path} does not exist. Run without --resume") from None
    except (OSError, msgspec.DecodeError) as error:
        raise NotBegun(f"{path} cannot be read: {error}. It holds the key that prevents double charges: restore it") from error
    if state.sha256 != rows.sha256:
        raise NotBegun("the file has changed since the run to be resumed: restore it, or run the new one with another --out")
    return state


def _require_nothing_there(results_path: Path, state_path: Path, *, again: bool) -> None:
    if state_path.exists():
        raise NotBegun(
            f"a run with these results is unfinished: continue with --resume. (Deleting {state_path} and starting again would "
            "charge again what was charged before.)"
        )
    if not again and results_path.exists() and results_path.read_bytes().strip() != HEADING.encode():
        raise NotBegun(
            f"{results_path} exists, so this file was run before: with another --out or with --again, everything is charged AGAIN"
        )


def _require_same_place(state: _State, url: str, key: str) -> None:
    """Refuse or warn if the resumed run was begun elsewhere, where its items would be unknown and be carried out again."""
    if state.merchant != _merchant(key):
        raise NotBegun("this run was started with another merchant's API key: continue with that one")
    if state.batch_id is None and state.api_url != url:
        raise NotBegun(f"this run was started at {state.api_url}: continue there, with --api-url")
    if state.api_url != url:
        _errors.print(f"continuing at {shown(url)}; this run was started at {shown(state.api_url)}")


@dataclass(slots=True)
class _Job:
    """One run of the command."""

    rows: Rows
    results_path: Path
    state_path: Path
    state: _State
    terms: dict[str, int]
    is_resumed: bool
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    ended: dict[str, Any] | None = None
    """The batch as it was at its end."""
    _interrupts: int = 0

    async def run(self, client: BatchClient) -> int:
        """Run it and return the exit code. Raises `FlorinError`."""
        if self.is_resumed:
            self.results = read_results(self.results_path)
        body = {"items": self.rows.items, **self.state.terms}
        follower = Follower(client, self.state.key, body, self.state.batch_id, self.terms, is_resumed=self.is_resumed)
        failure: FlorinError | None = None
        async with client, trio.open_nursery() as nursery:
            with Progress(len(self.rows.items)) as progress:
                progress.begin_with({number: result["status"] for number, result in self.results.items()})
                nursery.start_soon(self._hear_signals, client, follower, nursery)
                try:
                    await follower.follow(lambda line: self._take(line, progress))
                except FlorinError as error:
                    failure = error
            nursery.cancel_scope.cancel()
        if isinstance(failure, BadFile | BatchRefused) and self.state.batch_id is None and not follower.may_be_begun:
            self.state_path.unlink(missing_ok=True)  # nothing was begun
            raise failure
        code = self._end()
        if failure is not None:
            raise failure
        return code

    def _take(self, line: dict[str, Any], progress: Progress) -> None:
        """Handle one line of the server's. Raises `BadFile`."""
        if "errors" in line:
            raise BadFile(listed_errors(self.rows.path, errors_of(self.rows, line["errors"])))
        kind = line.get("object")
        if kind == "batch_item":
            self.results[line["item"]] = line
            progress.count(line["item"], line["status"])
            return
        batch = line.get("batch") or line
        if self.state.batch_id is None:
            self.state.batch_id = batch["id"]
            write_whole(self.state_path, msgspec.json.encode(self.state))
            _errors.print(f"{batch['id']}: {batch['count']:,} items, {batch['deadline_seconds']} s")
        self.ended = batch if kind not in ("batch", "progress") and batch["status"] != "RUNNING" else None

    async def _hear_signals(self, client: BatchClient, follower: Follower, nursery: trio.Nursery) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for one in signals:
                self._interrupts += 1
                follower.may_resume = False
                if self._interrupts > 1 or one == signal.SIGTERM or follower.is_over:
                    nursery.cancel_scope.cancel()
                    return
                if self.state.batch_id is None:
                    nursery.start_soon(self._stop_when_begun, client, nursery.cancel_scope)
                    continue
                _errors.print("\nstopping: no more items are started, those under way are finished; Ctrl-C again stops waiting")
                nursery.start_soon(self._stop, client, self.state.batch_id)

    async def _stop_when_begun(self, client: BatchClient, scope: trio.CancelScope) -> None:
        """Stop a batch whose request is under way as soon as its id is known."""
        with trio.move_on_after(BEGIN_SECONDS):
            while self.state.batch_id is None:  # noqa: ASYNC110 - there is no event to wait for
                await trio.sleep(0.05)
            await self._stop(client, self.state.batch_id)
            return
        scope.cancel()

    async def _stop(self, client: BatchClient, batch_id: str) -> None:
        if not await client.stop(batch_id):
            _errors.print("the server could not be reached, so the batch keeps running; press Ctrl-C again to leave it")

    def _end(self) -> int:
        """Write the results, and print the summary."""
        missing = NOT_STARTED if self.ended is not None else NOT_KNOWN
        write_results(self.results_path, self.rows, self.results, missing=missing)
        statuses = [self.results.get(number, {}).get("status", missing) for number in range(1, len(self.rows.items) + 1)]
        counts = {status: statuses.count(status) for status in sorted(set(statuses))}
        said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        _console.print(f"{said}; results in {shown(str(self.results_path))}")
        if self.ended is not None and self.ended["resume_token"] is None:
            self.state_path.unlink(missing_ok=True)
        else:
            name = self.state.batch_id or "the batch, if it was started,"
            where = "can be resumed" if self.ended is not None else "is still running, or how it ended is not known"
            _errors.print(f"{name} {where}: the same command with --resume continues it")
        is_finished = self.ended is not None and self.ended["resume_token"] is None
        if is_finished and set(counts) <= {"SUCCEEDED"}:
            return ALL_SETTLED
        if self._interrupts:
            return INTERRUPTED
        if self.ended is not None and self.ended["status"] in ("TIMED_OUT", "STOPPED"):
            was_late = self.ended["status"] == "TIMED_OUT"
            _errors.print(f"the deadline of {self.ended['deadline_seconds']} s passed" if was_late else "it was stopped")
            return DEADLINE_PASSED
        return SOME_DECLINED

"""`florin batch`: carry out a file of payments as one batch, at this machine's Florin or at another one.

What is begun is never lost: before the request leaves, its idempotency key is in a file beside the results, and whatever happens
then, Ctrl-C, a lost connection, a deadline, `--resume` goes on and charges nothing twice.
"""

import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

import msgspec
import trio
import typer
from rich.console import Console
from rich.markup import escape

from core.batch import CONCURRENCY_DEFAULT, CONCURRENCY_MAX, DEADLINE_SECONDS_DEFAULT, DEADLINE_SECONDS_MAX
from core.errors import FlorinError
from server.cli.batch_client import BatchClient, BatchRefused, Follower
from server.cli.batch_files import BadFile, Rows, read_rows, told, write_results, write_whole
from server.cli.batch_progress import Progress
from server.cli.connect import DataDirectory
from server.cli.listen import address

ALL_SETTLED, SOME_DECLINED, DEADLINE_PASSED, INTERRUPTED = 0, 3, 4, 130
STATE_SUFFIX = ".batch.json"
_console = Console(highlight=False, soft_wrap=True)
_errors = Console(highlight=False, soft_wrap=True, stderr=True)
app = typer.Typer(help="Batches: carry out a file of payments under one deadline, and resume.", no_args_is_help=True)

ApiUrl = Annotated[str | None, typer.Option("--api-url", help="Default: the instance that runs.", show_default=False)]
ApiKey = Annotated[str | None, typer.Option("--api-key", help="Default: FLORIN_API_KEY, else the demo's.", show_default=False)]


class NotBegun(FlorinError):
    """The command cannot begin; the text says what to do."""

    code = "not_begun"


class _State(msgspec.Struct):
    """What a later run has to know of an unfinished one."""

    sha256: str
    key: str
    api_url: str
    batch_id: str | None = None


@app.command("run")
def run(
    file: Annotated[
        Path, typer.Argument(help="CSV with a heading, or NDJSON: what is to be charged, verified, captured, refunded.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Where results go. Default: FILE.results.csv.", show_default=False)
    ] = None,
    deadline: Annotated[
        int, typer.Option("--deadline", min=1, max=DEADLINE_SECONDS_MAX, help="Seconds that the batch may take.")
    ] = DEADLINE_SECONDS_DEFAULT,
    concurrency: Annotated[
        int, typer.Option("--concurrency", min=1, max=CONCURRENCY_MAX, help="Items at the same time.")
    ] = CONCURRENCY_DEFAULT,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run of this file that was not finished.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the results of an earlier run.")] = False,
    api_url: ApiUrl = None,
    api_key: ApiKey = None,
    data_dir: DataDirectory = None,
) -> None:
    """Carry out every row of FILE as one batch, and write what came of each.

    Ends with 0 where all are settled, 3 where some were declined or failed, 4 where the deadline has passed; 130 after Ctrl-C.
    """
    rows = read_rows(file)
    results_path = out or file.with_name(file.name + ".results.csv")
    state_path = results_path.with_name(results_path.name + STATE_SUFFIX)
    if results_path.resolve() == file.resolve():
        raise NotBegun("--out is the file itself: choose another")
    state = _state_to_go_on_with(state_path, rows) if resume else None
    if state is None:
        _require_nothing_there(results_path, state_path, force=force)
    if not rows.items:
        write_results(results_path, rows, {})
        _errors.print(f"{escape(str(file))} has no rows: nothing to do")
        return
    url, key = address(api_url, api_key, data_dir)
    if state is None:
        state = _State(rows.sha256, str(uuid4()), url)
    elif state.api_url != url:
        _errors.print(f"going on at {escape(url)}, which is not where this was begun: {escape(state.api_url)}")
    job = _Job(rows, results_path, state_path, state, {"deadline_seconds": deadline, "concurrency": concurrency})
    sys.exit(trio.run(job.run, BatchClient(url, key)))


def _state_to_go_on_with(path: Path, rows: Rows) -> _State:
    try:
        state = msgspec.json.decode(path.read_bytes(), type=_State)
    except (OSError, msgspec.DecodeError):
        raise NotBegun(f"there is nothing to resume: {path} is not there. Run it without --resume") from None
    if state.sha256 != rows.sha256:
        raise NotBegun(
            "the file has changed since the run that is to be resumed: restore it, or run the new one with another --out"
        )
    return state


def _require_nothing_there(results_path: Path, state_path: Path, *, force: bool) -> None:
    if state_path.exists():
        raise NotBegun(
            f"a run with these results was not finished: go on with --resume, or delete {state_path} to begin anew, "
            "which charges again what was charged already"
        )
    if results_path.exists() and not force:
        raise NotBegun(f"{results_path} exists: choose another --out, or overwrite it with --force")
    if not results_path.parent.is_dir():
        raise NotBegun(f"there is no directory {results_path.parent}")


@dataclass(slots=True)
class _Job:
    """One run of the command."""

    rows: Rows
    results_path: Path
    state_path: Path
    state: _State
    terms: dict[str, int]
    results: dict[int, dict[str, Any]] = field(default_factory=dict)
    last: dict[str, Any] = field(default_factory=dict)
    _interrupts: int = 0

    async def run(self, client: BatchClient) -> int:
        """Carry it out; the exit code."""
        self._keep_state()
        failure: FlorinError | None = None
        async with client, trio.open_nursery() as nursery:
            with Progress(len(self.rows.items)) as progress:
                nursery.start_soon(self._hear_signals, client, nursery.cancel_scope)
                try:
                    await self._follow(client, progress)
                except FlorinError as error:
                    failure = error
            nursery.cancel_scope.cancel()
        if isinstance(failure, BadFile | BatchRefused) and self.state.batch_id is None:
            self.state_path.unlink(missing_ok=True)  # nothing was begun
            raise failure
        code = self._end()
        if failure is not None:
            raise failure
        return code

    async def _follow(self, client: BatchClient, progress: Progress) -> None:
        follower = Follower(client, self.state.key, {"items": self.rows.items, **self.terms}, self.state.batch_id, self.terms)
        await follower.follow(lambda line: self._take(line, progress))

    def _take(self, line: dict[str, Any], progress: Progress) -> None:
        """One line of the server's. Raises `BadFile`."""
        if "errors" in line:
            raise BadFile(self._mistakes(line["errors"]))
        if line.get("object") == "batch_item":
            before = self.results.get(line["item"])
            self.results[line["item"]] = line
            progress.count(line["status"], before["status"] if before is not None else None)
            return
        self.last = line.get("batch") or line
        if self.state.batch_id is None:
            self.state.batch_id = self.last["id"]
            self._keep_state()

    def _mistakes(self, errors: list[dict[str, Any]]) -> str:
        return told(
            Path(self.results_path.name),
            [(self.rows.line(one["item"]), f"{one['path'].rpartition('.')[2]}: {one['detail']}") for one in errors],
        )

    async def _hear_signals(self, client: BatchClient, scope: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for one in signals:
                self._interrupts += 1
                if self._interrupts > 1 or one == signal.SIGTERM or self.state.batch_id is None:
                    scope.cancel()
                    return
                _errors.print(
                    "\nstopping: no further item is started, those under way come to their end; Ctrl-C again leaves them"
                )
                await client.stop(self.state.batch_id)

    def _keep_state(self) -> None:
        write_whole(self.state_path, msgspec.json.encode(self.state))

    def _end(self) -> int:
        """Write the results, and say what came of it all."""
        write_results(self.results_path, self.rows, self.results)
        statuses = [self.results.get(number, {}).get("status", "NOT_STARTED") for number in range(1, len(self.rows.items) + 1)]
        counts = {status: statuses.count(status) for status in dict.fromkeys(sorted(statuses))}
        said = ", ".join(f"{count:,} {status}" for status, count in counts.items())
        _console.print(f"{said}; results in {escape(str(self.results_path))}")
        is_over = self.last.get("status") not in (None, "RUNNING")
        if is_over and self.last.get("resume_token") is None:
            self.state_path.unlink(missing_ok=True)
        else:
            name = self.state.batch_id or "the batch, if it was begun,"
            where = "can be resumed" if is_over else "goes on at the server"
            _errors.print(f"{name} {where}: the same command with --resume goes on with it")
        if self._interrupts:
            return INTERRUPTED
        if self.last.get("status") == "TIMED_OUT":
            _errors.print(f"the deadline of {self.last['deadline_seconds']} s passed")
            return DEADLINE_PASSED
        return ALL_SETTLED if set(counts) <= {"SUCCEEDED"} else SOME_DECLINED

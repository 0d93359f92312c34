"""Child processes that cannot outlive their parent.

A child gets its own session, so that a terminal's Ctrl-C reaches only the parent, which then stops its children in order; and
PR_SET_PDEATHSIG, so that the kernel signals it when the parent dies of kill -9. Two rules of prctl(2) matter: the signal fires
when the *thread* that spawned the child ends, so children are spawned from the main thread; and changing the user clears it, so
it is set after that.
"""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any

import trio

KILL_SECONDS = 5.0
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class User:
    """An unprivileged user to run a child as. It must exist; nothing is ever added to the system."""

    uid: int
    gid: int


def spawn(
    command: Sequence[str],
    *,
    death_signal: signal.Signals,
    user: User | None = None,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
    stdout: int | IO[Any] | None = None,
    stderr: int | IO[Any] | None = None,
) -> subprocess.Popen[bytes]:
    """Start a child that gets `death_signal` when this process ends, however it ends."""
    assert threading.current_thread() is threading.main_thread(), "PR_SET_PDEATHSIG follows the spawning thread"
    parent = os.getpid()

    def become_child() -> None:
        if user is not None:
            os.setgroups([])
            os.setresgid(user.gid, user.gid, user.gid)
            os.setresuid(user.uid, user.uid, user.uid)
        _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)

    return subprocess.Popen(  # noqa: S603 - the callers' own commands
        command,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        pass_fds=pass_fds,
        env=environment,
        cwd="/" if user is not None else None,
        preexec_fn=become_child,
    )


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module of Florin with this interpreter."""
    # -P: a file in the current directory must not shadow one of our modules
    return [sys.executable, "-P", "-m", module, *arguments]


def allow_many_files() -> None:
    """Raise this process's limit of open files to its maximum: every connection is one."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def say_ready(descriptor: int) -> None:
    """Tell the parent, on the pipe that it has passed, that this process is ready."""
    os.write(descriptor, b"ready\n")
    os.close(descriptor)


async def is_ready(descriptor: int, *, seconds: float) -> bool:
    """Wait until the child is ready. Returns False if it ends before, or the time is over. Closes the pipe."""
    async with trio.lowlevel.FdStream(descriptor) as pipe:
        with trio.move_on_after(seconds):
            return bool(await pipe.receive_some(64))
    return False


async def wait(child: subprocess.Popen[bytes]) -> int:
    """Wait until the child has ended, and return its exit code."""
    try:
        descriptor = os.pidfd_open(child.pid)
    except ProcessLookupError:
        return child.wait()
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    return child.wait()


@asynccontextmanager
async def stopped_at_the_end(
    child: subprocess.Popen[bytes], *, first: signal.Signals, seconds: float
) -> AsyncIterator[subprocess.Popen[bytes]]:
    """A block at whose end the child is asked to stop, and killed after `seconds`. Cancellation does not shorten that."""
    try:
        yield child
    finally:
        with trio.move_on_after(seconds + KILL_SECONDS, shield=True):
            await stop(child, first=first, seconds=seconds)


async def stop(child: subprocess.Popen[bytes], *, first: signal.Signals, seconds: float) -> None:
    """Ask a child to stop, and kill it after `seconds`."""
    if child.poll() is not None:
        return
    child.send_signal(first)
    with trio.move_on_after(seconds):
        await wait(child)
        return
    child.kill()
    await wait(child)

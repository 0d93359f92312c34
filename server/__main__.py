"""The entry point of the command `florin`, and of `python -m server`. Ctrl-C ends it quietly from its first moment to its last.

Imports take most of a second, and a traceback would be the answer to a Ctrl-C meanwhile.
"""

import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130


def _leave(_number: int, _frame: FrameType | None) -> None:
    os._exit(INTERRUPTED)  # nothing has begun


_IS_IGNORED = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
"""As behind nohup."""

if not _IS_IGNORED:  # when this module is imported, because that is the first moment that is ours
    signal.signal(signal.SIGINT, _leave)


def main() -> None:
    """Run the command of the command line. Exits with 130 after Ctrl-C, unless the command has said otherwise."""
    from server.cli import main as run

    try:
        if not _IS_IGNORED:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()

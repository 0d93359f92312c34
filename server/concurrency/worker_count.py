"""The number of workers, and this one's place among them, by which they divide limits. The job that reports this worker's life
keeps it up to date.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class WorkerCount:
    """`count` includes this worker; `rank` is its place among them, from 0. `clock_seconds` is the time of the clock that they
    share when trio's is 0.
    """

    count: int = 1
    rank: int = 0
    clock_seconds: float = 0.0

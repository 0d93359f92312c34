"""How many workers there are, for what they divide among themselves. Kept up to date by the job that reports this one's life."""

from dataclasses import dataclass


@dataclass(slots=True)
class WorkerCount:
    """`count` includes this one."""

    count: int = 1

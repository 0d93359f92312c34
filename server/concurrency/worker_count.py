"""The number of workers, by which they divide limits among themselves. The job that reports this worker's life keeps it up to
date.
"""

from dataclasses import dataclass


@dataclass(slots=True)
class WorkerCount:
    """`count` includes this worker."""

    count: int = 1

"""Long-running tasks of a worker, one file each. Each is started by the worker, claims bounded pieces of work under a lease,
and can be cancelled at any point: what it had claimed comes back when the lease ends.
"""

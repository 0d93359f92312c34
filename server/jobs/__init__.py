"""Long-running tasks of a worker, one file each.

The worker starts them. Each claims bounded pieces of work under a lease and can be canceled at any point: claimed work comes
back when the lease ends.
"""

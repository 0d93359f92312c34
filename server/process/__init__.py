"""The processes: a worker, the supervisor of workers, and all of `florin up`."""

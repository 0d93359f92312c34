"""The processes: a worker, the supervisor of workers, and the whole of `florin up`."""

"""Load on a Florin of one's own, on this machine only: bounded in count and time, with the cost of each part in CPU time."""

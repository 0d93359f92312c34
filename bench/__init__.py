"""Load tests against a Florin on this machine, bounded in count and time, with the CPU cost of each part."""

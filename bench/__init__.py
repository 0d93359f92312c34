"""Load tests against a Florin on this machine, bounded in count and time, with the CPU cost of each part."""

INSTALL = "install it from the checkout: .venv/bin/pip install -c constraints.txt -e '.[bench]'"
"""The way to get the packages that only the laboratory needs."""

"""The laboratory: runs, measurements, reports and comparisons."""

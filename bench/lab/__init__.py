"""The laboratory: runs, what is measured, reports and comparisons."""

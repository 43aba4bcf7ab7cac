"""The report of a run: its numbers, plots and page."""

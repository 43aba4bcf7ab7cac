"""Reproduces the GKD paper's comparisons on the embedded tasks. Not in the wheel."""

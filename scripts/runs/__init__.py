"""The work of the commands train, evaluate and generate, and the files that a run writes."""

"""The settings of a run: their schema, the paths in them, their documentation."""

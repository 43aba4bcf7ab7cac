"""Builds the embedded models from nothing. Not in the wheel."""

"""Trains a grid of runs, measures them on the same prompts, and says what the comparison shows."""

"""What the commands do: train, evaluate, generate, and what a run writes meanwhile."""

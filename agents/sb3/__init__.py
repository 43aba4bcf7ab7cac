"""What stock Stable-Baselines3 needs of a language model, and what our agents take from its environments."""

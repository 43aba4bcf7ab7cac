"""Wrappers that put a teacher into the reward, for any RL library."""

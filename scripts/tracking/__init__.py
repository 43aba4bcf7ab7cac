"""Trackers of experiments: wandb, trackio, MLflow or a class of one's own, each in a process of its own."""

"""Draw a run's reward and divergence over tokens: `python examples/figure.py RUN CURVE.png`."""

import csv
import sys
from pathlib import Path

import matplotlib.pyplot as plt


def draw(run: Path, picture: Path, window: int = 5) -> None:
    """Write the picture of a run: means of `window` updates, the reward of the student's own texts alone."""
    with (run / "progress.csv").open() as file:
        rows = list(csv.DictReader(file))
    tokens = [float(row["time/total_timesteps"]) / 1000 for row in rows]
    curves = {"reward": "rollout/ep_rew_mean", "divergence, nats a token": "train/divergence"}
    figure, axes = plt.subplots(1, 2, figsize=(7, 2.4), layout="constrained")
    for axis, (title, column), colour in zip(axes, curves.items(), ("#0072b2", "#d55e00"), strict=True):
        known = [row[column] and (float(row["rollout/student"]) > 0 or title != "reward") for row in rows]
        values = [float(row[column]) if there else float("nan") for row, there in zip(rows, known, strict=True)]
        means = [sum(values[max(0, end - window) : end]) / min(window, end) for end in range(1, len(values) + 1)]
        axis.plot(tokens, means, color=colour)
        axis.set_xlim(0, tokens[-1])
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("thousand tokens")
        axis.grid(alpha=0.3)
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))

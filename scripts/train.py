"""`python scripts/train.py ...` is `rlgkd train ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("train")

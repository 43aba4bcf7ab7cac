"""`python scripts/evaluate.py ...` is `rlgkd evaluate ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("evaluate")

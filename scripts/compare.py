"""`python scripts/compare.py ...` is `rlgkd compare ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("compare")

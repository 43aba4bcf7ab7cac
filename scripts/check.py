"""`python scripts/check.py ...` is `rlgkd check ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("check")

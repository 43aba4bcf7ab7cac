"""`python scripts/list.py ...` is `rlgkd list ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("list")

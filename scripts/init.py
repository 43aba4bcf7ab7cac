"""`python scripts/init.py ...` is `rlgkd init ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("init")

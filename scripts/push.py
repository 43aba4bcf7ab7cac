"""`python scripts/push.py ...` is `rlgkd push ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("push")

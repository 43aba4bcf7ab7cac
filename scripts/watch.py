"""`python scripts/watch.py ...` is `rlgkd watch ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("watch")

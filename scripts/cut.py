"""`python scripts/cut.py ...` is `rlgkd cut ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("cut")

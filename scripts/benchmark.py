"""`python scripts/benchmark.py ...` is `rlgkd benchmark ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("benchmark")

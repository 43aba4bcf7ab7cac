"""`python scripts/generate.py ...` is `rlgkd generate ...`."""

from rlgkd.scripts.cli import run

if __name__ == "__main__":
    run("generate")

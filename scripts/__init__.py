"""Train, evaluate, compare, generate, benchmark: the command line over environments and agents."""

if __name__ != "rlgkd.scripts":  # someone wrote `import scripts` with a checkout's root on sys.path
    raise ImportError(f"this is the package rlgkd.scripts: write `import rlgkd.scripts`, not `import {__name__}`")

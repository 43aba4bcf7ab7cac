"""Gymnasium environments whose state is a text so far and whose action is one token; rewards and prompt data."""

if __name__ != "rlgkd.envs":  # someone wrote `import envs` with a checkout's root on sys.path
    raise ImportError(f"this is the package rlgkd.envs: write `import rlgkd.envs`, not `import {__name__}`")

"""`python -m rlgkd.scripts COMMAND`, the same as `rlgkd COMMAND`."""

from rlgkd.scripts.cli import main

main()

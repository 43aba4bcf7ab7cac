"""Builds the embedded models from nothing."""

from rlgkd.scripts.assets.build import main

if __name__ == "__main__":
    main()

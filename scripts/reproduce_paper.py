"""Runs the GKD paper's comparisons on the embedded tasks and writes docs/paper."""

from rlgkd.scripts.paper.reproduce import main

if __name__ == "__main__":
    main()

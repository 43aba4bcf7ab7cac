"""`python scripts/reproduce_paper.py` reruns the GKD paper's comparisons; the wheel leaves `scripts/paper` out."""

if __name__ == "__main__":
    # Imported here, so that in an installed wheel this module still imports.
    from rlgkd.scripts.paper.reproduce import main

    main()

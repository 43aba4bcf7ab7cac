"""`python scripts/reproduce_compression.py` makes a smaller model that keeps its task; not in the wheel."""

if __name__ == "__main__":
    # Imported here, so that in an installed wheel this module still imports.
    from rlgkd.scripts.compression.reproduce import main

    main()

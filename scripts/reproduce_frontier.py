"""`python scripts/reproduce_frontier.py` compares where, when and from whom to distil; not in the wheel's commands."""

if __name__ == "__main__":
    # Imported here, so that in an installed wheel this module still imports.
    from rlgkd.scripts.frontier.reproduce import main

    main()

"""`python scripts/build_assets.py` builds the embedded models; the wheel leaves `scripts/assets` out."""

if __name__ == "__main__":
    # Imported here, so that in an installed wheel this module still imports.
    from rlgkd.scripts.assets.build import main

    main()

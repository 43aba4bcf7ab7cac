"""`python scripts/reproduce_rl_gkd.py` compares RL, distillation and mixtures on a pretrained model."""

if __name__ == "__main__":
    # Imported here, so that in an installed wheel this module still imports.
    from rlgkd.scripts.rl_gkd.reproduce import main

    main()

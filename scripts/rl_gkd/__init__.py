"""RL, distillation and their mixtures on a pretrained model whose reward can be exploited: reproduce_rl_gkd.py."""

"""Texts that are sampled elsewhere: a vLLM server generates them, and gets the student's weights before it does.

Token ids go there and come back, never text. The weights that the server samples with are checked on a fixed text after
each time they were sent (`canary`), and what its log-probabilities differ from the student's is measured on every text.
"""

from rlgkd.samplers.served import ServedSampler
from rlgkd.samplers.texts import PendingTexts

__all__ = ["PendingTexts", "ServedSampler"]

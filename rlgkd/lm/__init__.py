"""Language models: loading, log-probabilities, decoding with a KV cache, the fused head and loss."""

from rlgkd.lm.encoder_decoder import language_model, open_by_name
from rlgkd.lm.fused_loss import fused_sum
from rlgkd.lm.generate import Completion, decode
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.model_names import model_names
from rlgkd.lm.saving import save
from rlgkd.lm.vocabulary import check_same_vocabulary, shared_vocabulary

__all__ = [
    "Completion",
    "LanguageModel",
    "check_same_vocabulary",
    "decode",
    "fused_sum",
    "language_model",
    "load",
    "load_tokenizer",
    "model_names",
    "open_by_name",
    "save",
    "shared_vocabulary",
]

"""Writes a model's folder in which the head has weights of its own, for servers on CPUs.

    python -m rlgkd.samplers.untied MODEL FOLDER

A server that takes weights while it runs may leave the head of tied embeddings as it was (vLLM 0.32 on a CPU does).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import ModelError
from rlgkd.lm.loading import load, load_tokenizer
from rlgkd.lm.saving import save


def save_untied(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: str | Path) -> None:
    """Write a folder as `rlgkd.lm.saving.save` does, with the head's weights in it even where they are the embeddings'.

    Raises: ModelError for a model whose head is no parameter `lm_head.weight`.
    """
    state = module.state_dict()
    if "lm_head.weight" not in state:
        raise ModelError("model", module.config.model_type, "its head is no lm_head; serve its own folder")
    save(module, tokenizer, folder)
    config = copy.deepcopy(module.config)
    config.tie_word_embeddings = False
    config.get_text_config().tie_word_embeddings = False
    config.save_pretrained(folder)
    for file in Path(folder).glob("model*.safetensors*"):
        file.unlink()
    weights: dict[str, torch.Tensor] = {name: tensor.detach().cpu().clone() for name, tensor in state.items()}
    save_file(weights, Path(folder) / "model.safetensors", {"format": "pt"})


def main(arguments: Sequence[str]) -> int:
    """Run the command."""
    if len(arguments) != 2:
        print("python -m rlgkd.samplers.untied MODEL FOLDER", file=sys.stderr)
        return 2
    model, folder = arguments
    try:
        save_untied(load(model), load_tokenizer(model), folder)
    except ModelError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"vllm serve {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Size and speed of two models in plain transformers: its own `generate`, on a CPU, in pairs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

ROWS = (1, 8)
"""Texts at the same time."""


def speed(
    models: Mapping[str, str], prompts: Sequence[Sequence[int]], *, new_tokens: int, pairs: int, threads: int = 1
) -> dict[str, Any]:
    """Return parameters, bytes and tokens a second of each model, and the first's tokens a second over the last's.

    All texts have `new_tokens` new ones, the likeliest; prompts are cut to the shortest, so that no row is padded. The
    models take turns, and a ratio is the median over pairs of neighbours in time.

    Args:
        models: Name -> folder.
        prompts: Token ids, as many as the most of ROWS.
        new_tokens: New tokens of each text.
        pairs: How often each model writes; once more before, untimed.
        threads: Threads of torch.
    """
    torch.set_num_threads(threads)
    opened = {
        name: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for name, folder in models.items()
    }
    sizes = {
        name: {
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "bytes": sum(file.stat().st_size for file in Path(models[name]).glob("*.safetensors")),
        }
        for name, model in opened.items()
    }
    length = min(map(len, prompts))
    by_rows = []
    for rows in ROWS:
        ids = torch.tensor([list(prompt[:length]) for prompt in prompts[:rows]])
        for model in opened.values():
            _seconds(model, ids, new_tokens)
        seconds = [[_seconds(model, ids, new_tokens) for model in opened.values()] for _ in range(pairs)]
        by_rows.append(
            {
                "rows": rows,
                "tokens_per_second": {
                    name: round(rows * new_tokens / statistics.median(column), 1)
                    for name, column in zip(opened, zip(*seconds, strict=True), strict=True)
                },
                "ratios": sorted(round(pair[-1] / pair[0], 3) for pair in seconds),
                "times_as_fast": round(statistics.median(pair[-1] / pair[0] for pair in seconds), 2),
            }
        )
    return {"models": sizes, "new_tokens": new_tokens, "threads": threads, "speed": by_rows}


@torch.inference_mode()
def _seconds(model: PreTrainedModel, ids: torch.Tensor, new_tokens: int) -> float:
    began = time.perf_counter()
    limits = {"min_new_tokens": new_tokens, "max_new_tokens": new_tokens, "pad_token_id": 0}
    written = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, **limits)  # type: ignore[operator]
    assert written.shape[1] == ids.shape[1] + new_tokens
    return time.perf_counter() - began

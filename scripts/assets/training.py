"""Fitting, saving and describing an embedded model: what all stages of `build_assets` share."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from rlgkd.scripts.assets.packing import Packed

SEED = 2024
"""Seed of the items that the models learn from; training runs use other seeds."""
PAD, END = "<|pad|>", "<|end|>"
WARMUP_STEPS = 100
LOWEST_RATE = 0.02
"""Share of the learning rate that is left at the end."""
CURVE_STEPS = 100
"""Steps that a point of the curve averages."""


def llama(tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int) -> LlamaForCausalLM:
    """Return a fresh model with the tokenizer's vocabulary and context."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            intermediate_size=hidden * 8 // 3 // 32 * 32,
            max_position_embeddings=tokenizer.model_max_length,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fit_generator(
    model: LlamaForCausalLM, batches: Iterator[Packed], steps: int, *, hold: float = 0.3
) -> list[dict[str, float]]:
    """Teach a model the sentences of each passage, end token included; return the losses as `minimise` does."""

    def losses() -> dict[str, Tensor]:
        packed = next(batches)
        states_BTH = model.model(**packed.inputs, use_cache=False).last_hidden_state
        targets = packed.tokens_of(torch.ones_like(packed.row_S))
        logits_NV = model.lm_head(states_BTH[targets.row_N, targets.before_N])
        return {"next token": functional.cross_entropy(logits_NV, targets.ids(packed))}

    return minimise([(dict(model.named_parameters()), 3e-3)], losses, steps, hold=hold)


def minimise(
    groups: Sequence[tuple[dict[str, nn.Parameter], float]],
    losses: Callable[[], dict[str, Tensor]],
    steps: int,
    *,
    hold: float,
) -> list[dict[str, float]]:
    """Minimise the sum of the losses; return their means over each CURVE_STEPS steps.

    Muon takes the matrices of the layers, AdamW the other parameters. Each group is (parameters, learning rate). The
    rate rises for WARMUP_STEPS, holds until `hold` of all steps (1: to the end), and falls to LOWEST_RATE.
    """
    parameters = [p for named, _ in groups for p in named.values()]
    matrix_groups = []
    other_groups = []
    for named, rate in groups:
        matrices = {name: p for name, p in named.items() if ".layers." in name and p.ndim == 2}
        matrix_groups.append({"params": [*matrices.values()], "peak": rate})
        other_groups.append({"params": [p for name, p in named.items() if name not in matrices], "peak": rate})
    optimizers = [
        torch.optim.Muon(matrix_groups, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(other_groups, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    history: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    for step in range(steps):
        decay = min(1.0, (1 - step / steps) / max(1 - hold, 1e-9))
        share = min(1.0, (step + 1) / WARMUP_STEPS) * max(LOWEST_RATE, decay)
        parts = losses()
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
            optimizer.zero_grad()
        history.append({name: part.item() for name, part in parts.items()})
        if (step + 1) % CURVE_STEPS == 0 or step + 1 == steps:
            newest = history[CURVE_STEPS * len(curve) :]
            curve.append({name: float(np.mean([row[name] for row in newest])) for name in parts})
            print(f"step {step + 1}/{steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in curve[-1].items()), flush=True)
    return curve


def save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write the tokenizer and the weights in float16, which is half the size; scores are measured on the written ones.

    Returns the folder.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    return folder


def write_card(
    folder: Path,
    model: nn.Module,
    *,
    title: str,
    data: str,
    steps: str,
    seconds: float,
    curve: list[dict[str, float]],
    scores: dict[str, Any],
    scored_on: str,
) -> None:
    """Write the model's card: what it is, what it learnt from, how long, and how well it does."""
    parameters = sum(p.numel() for p in model.parameters())
    losses = "\n".join(f"- {name}: {', '.join(f'{row[name]:.3f}' for row in curve)}" for name in curve[0])
    threads = torch.get_num_threads()
    spent = f"{seconds / 60:.0f} minutes" if seconds > 120 else f"{seconds:.0f} seconds"
    text = f"""# {folder.name}

{title}: a Llama of {parameters:,} parameters, weights in float16.

- Data: {data}, split `train`, seed {SEED}.
- Steps: {steps}, {spent} on {threads} thread{"s" if threads > 1 else ""}, float32.
- Rebuilt by `python scripts/build_assets.py --only {folder.name}`.

Scores of the weights as saved, on {scored_on}:

```json
{json.dumps(scores, indent=2)}
```

Mean losses (nats) of each hundred steps:

{losses}
"""
    (folder / "README.md").write_text(text)
    print(folder.name, json.dumps(scores), flush=True)

"""Builds the embedded models of GroundedSummary from nothing: tokenizer, teacher, student, entailment classifier.

    python scripts/build_assets.py [--only STAGE] [--out rlgkd/assets]

Everything is drawn from the procedural world with fixed seeds; each model gets a card (README.md) with its data,
steps, time and scores. The writers begin with random tokens written twice, then passages of one event: copying is the
skill they lack, and on full passages it appears only after a long plateau. The classifier begins as the teacher.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Callable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlgkd.envs.grounded.env import prompt_of
from rlgkd.envs.grounded.oracle import judge
from rlgkd.envs.grounded.pairs import pair
from rlgkd.envs.grounded.world import story, vocabulary
from rlgkd.envs.reward_models import Entailment
from rlgkd.lm.decoding import decode
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.sampling import uniforms
from rlgkd.scripts.packing import judged, summaries, twice

SEED = 2024
"""Of the items that the models learn from; training runs use other seeds."""
PAD, END = "<|pad|>", "<|end|>"
CONTEXT = 256
PASSAGES = 32
"""In each step."""
EXPECTED = math.log(0.02)
"""The log-probability at which a token is as much expected as not, to the classifier."""
WORDINGS, SENTENCES = 3, 4
"""Of a summary for the writers, and pairs for the classifier, that each passage carries."""


def main() -> None:
    """Build all stages in order, or one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=STAGES, help="build this stage alone")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent.parent / "rlgkd" / "assets")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of steps, for a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name, stage in STAGES.items():
        if arguments.only in (None, name):
            torch.manual_seed(SEED)
            stage(arguments.out, arguments.scale)


def build_teacher(out: Path, scale: float) -> None:
    """The teacher, and the tokenizer that all models share."""
    tokenizer = build_tokenizer()
    model = _llama(tokenizer, hidden=160, layers=4)
    _build_writer(model, tokenizer, out / "grounded-teacher", "teacher", int(1800 * scale))


def build_student(out: Path, scale: float) -> None:
    """The student: a tenth of the teacher, stopped early."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    model = _llama(tokenizer, hidden=64, layers=2)
    _build_writer(model, tokenizer, out / "grounded-student", "student", int(650 * scale))


def _build_writer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, role: str, steps: int
) -> None:
    """Fit a model to reference summaries of fresh stories, save it, write its card."""
    began = time.perf_counter()
    batches = chain(
        islice(twice(tokenizer, 2 * PASSAGES, seed=SEED), 100),
        islice(summaries(tokenizer, PASSAGES, seed=SEED, wordings=WORDINGS, others=0), 150),
        summaries(tokenizer, PASSAGES, seed=SEED, wordings=WORDINGS),
    )

    def loss() -> dict[str, Tensor]:
        packed = next(batches)
        states_BTH = model.model(**packed.inputs, use_cache=False).last_hidden_state
        learnt = packed.tokens_of(torch.ones_like(packed.row_S))
        logits_NV = model.lm_head(states_BTH[learnt.row_N, learnt.before_N])
        return {"next token": functional.cross_entropy(logits_NV, learnt.ids(packed))}

    curve = _fit([(dict(model.named_parameters()), 3e-3)], loss, steps, hold=0.3)
    seconds = time.perf_counter() - began
    saved = _save(model, tokenizer, folder)
    scores = {split: _writer_scores(saved, tokenizer, split) for split in ("train", "test")}
    _card(saved, role, model, steps, f"{WORDINGS} sentences", seconds, curve, scores)


def build_classifier(out: Path, scale: float) -> None:
    """The entailment classifier: the teacher's body and two layers more.

    Losses, each a layer above the other: the body goes on predicting true sentences (of any event, not the main one
    alone); the first new layer tells of every token whether the body expected it; the second gathers what was not
    expected into a verdict on the sentence so far, which is read at the end token. The verdict alone teaches nothing,
    and neither does the one wrong token of a false sentence: comparing is learnt from another token tried in the
    place of every true one, and from how likely the body finds it.
    """
    began = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    teacher = LlamaForCausalLM.from_pretrained(out / "grounded-teacher", dtype=torch.float32)
    depth, labels = teacher.config.num_hidden_layers, ("not_entailment", "entailment")
    model = LlamaForSequenceClassification(
        LlamaConfig(**{
            **teacher.config.to_dict(), "num_hidden_layers": depth + 2,
            "id2label": dict(enumerate(labels)), "label2id": {label: n for n, label in enumerate(labels)},
            "pair_template": f"{prompt_of('{premise}')} {{hypothesis}}{END}",
        })
    )  # fmt: skip
    model.model.load_state_dict(teacher.model.state_dict(), strict=False)
    # Heads of the first two losses, gone after training. The norm above the body is the body's own.
    predict = teacher.model.norm
    spot = nn.Sequential(nn.RMSNorm(teacher.config.hidden_size), nn.Linear(teacher.config.hidden_size, 1))
    batches = judged(tokenizer, PASSAGES, seed=SEED, sentences=SENTENCES)

    def loss() -> dict[str, Tensor]:
        batch = next(batches)
        packed = batch.packed
        states = model.model(**packed.inputs, use_cache=False, output_hidden_states=True)
        body_BTH, spotter_BTH = states.hidden_states[depth : depth + 2]
        verdicts_BTC = model.score(states.last_hidden_state)
        spotted, unexpected, verdicts = [], [], []
        for tokens in (batch.true, batch.tried, batch.read):
            logits_NV = predict(body_BTH[tokens.row_N, tokens.before_N]) @ model.model.embed_tokens.weight.T
            if tokens is batch.true:
                next_token = functional.cross_entropy(logits_NV, tokens.ids(packed))
            log_p_N = logits_NV.detach().log_softmax(-1).gather(1, tokens.ids(packed)[:, None])[:, 0]
            spotted.append(spot(spotter_BTH[tokens.row_N, tokens.column_N])[:, 0])
            unexpected.append((2 * (EXPECTED - log_p_N)).sigmoid())
            verdicts.append(verdicts_BTC[tokens.row_N, tokens.column_N])
        # Nothing of a passage is unexpected: else what the last layer averages over would drown a sentence's tokens.
        quiet = spot(spotter_BTH[packed.passage_BT])[:, 0]
        unexpected_N = torch.cat(unexpected)
        judged_so_far = batch.verdict_BT >= 0
        return {
            "next token": next_token,
            "unexpected token": functional.binary_cross_entropy_with_logits(torch.cat(spotted), unexpected_N),
            "passage": functional.binary_cross_entropy_with_logits(quiet, torch.zeros_like(quiet)),
            "verdict here": functional.cross_entropy(
                torch.cat(verdicts), torch.stack([unexpected_N, 1 - unexpected_N], dim=-1)
            ),
            "verdict so far": functional.cross_entropy(verdicts_BTC[judged_so_far], batch.verdict_BT[judged_so_far]),
            "verdict": functional.cross_entropy(verdicts_BTC[packed.row_S, packed.end_S - 1], batch.entailed_S),
        }

    named = {**dict(model.named_parameters()), "predict": predict.weight, **dict(spot.named_parameters())}
    learnt = {f"model.{name}" for name, _ in teacher.model.named_parameters()} - {"model.norm.weight"} | {"predict"}
    body = {name: p for name, p in named.items() if name in learnt}
    fresh = {name: p for name, p in named.items() if name not in learnt}
    steps = int(3300 * scale)
    curve = _fit([(body, 1.5e-3), (fresh, 3e-3)], loss, steps, hold=0.6)
    seconds = time.perf_counter() - began
    folder = _save(model, tokenizer, out / "grounded-nli")
    _card(
        folder, "entailment classifier", model, steps, f"{SENTENCES} sentences", seconds, curve,
        _classifier_scores(folder),
    )  # fmt: skip


STAGES: dict[str, Callable[[Path, float], None]] = {
    "teacher": build_teacher,
    "student": build_student,
    "classifier": build_classifier,
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's words; names stay cut into their syllables."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=[PAD, END], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bpe.train_from_iterator(vocabulary(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )


def _llama(tokenizer: PreTrainedTokenizerFast, *, hidden: int, layers: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // 32,
            intermediate_size=hidden * 8 // 3 // 32 * 32,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def _fit(
    groups: Sequence[tuple[dict[str, nn.Parameter], float]], loss: Callable[[], dict[str, Tensor]], steps: int, *,
    hold: float,
) -> list[dict[str, float]]:  # fmt: skip
    """Muon for the layers' matrices, AdamW for the rest; returns the mean losses of each hundred steps.

    Each group is (parameters, learning rate). The rate rises for 100 steps, holds until `hold` of all, and falls to
    almost nothing.
    """
    parameters = [p for named, _ in groups for p in named.values()]
    inner, outer = [], []
    for named, rate in groups:
        matrices = {name: p for name, p in named.items() if ".layers." in name and p.ndim == 2}
        inner.append({"params": [*matrices.values()], "peak": rate})
        outer.append({"params": [p for name, p in named.items() if name not in matrices], "peak": rate})
    optimizers = [
        torch.optim.Muon(inner, weight_decay=0.01, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(outer, betas=(0.9, 0.98), weight_decay=0.01),
    ]
    losses: list[dict[str, float]] = []
    curve: list[dict[str, float]] = []
    for step in range(steps):
        share = min(1.0, (step + 1) / 100) * max(0.02, min(1.0, (1 - step / steps) / (1 - hold)))
        parts = loss()
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share
            optimizer.step()
            optimizer.zero_grad()
        losses.append({name: part.item() for name, part in parts.items()})
        if (step + 1) % 100 == 0 or step + 1 == steps:
            curve.append({name: float(np.mean([row[name] for row in losses[100 * len(curve) :]])) for name in parts})
            print(f"step {step + 1}/{steps}  " + "  ".join(f"{k} {v:.4f}" for k, v in curve[-1].items()), flush=True)
    return curve


def _writer_scores(folder: Path, tokenizer: PreTrainedTokenizerFast, split: str, number: int = 512) -> dict[str, float]:
    """Oracle verdicts on samples at temperature 1 for items that the models never learnt from."""
    lm = LanguageModel(LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer)
    stories = [story(split, SEED + 1, index) for index in range(number)]
    prompts = tokenizer([prompt_of(s.passage) for s in stories])["input_ids"]
    draws = np.stack([uniforms(SEED, f"{split}/{index}", 0, 32) for index in range(number)])
    completions = decode(lm, prompts, uniforms_BT=draws, max_new_tokens=32)
    texts = [str(tokenizer.decode(c.ids, skip_special_tokens=True)).strip() for c in completions]
    verdicts = [judge(text, s.events) for text, s in zip(texts, stories, strict=True)]
    return {
        "truth": float(np.mean([v.true for v in verdicts])),
        "parsable": float(np.mean([v.parsable for v in verdicts])),
        "coverage": float(np.mean([v.coverage for v in verdicts])),
    }


def _classifier_scores(folder: Path, number: int = 4096) -> dict[str, Any]:
    """Accuracy on pairs of the test split, over all and by kind."""
    pairs = [pair("test", SEED, index) for index in range(number)]
    given = Entailment(folder, batch_size=256)([p.premise for p in pairs], [p.hypothesis for p in pairs])
    right = (np.asarray(given, dtype=float) > 0.5) == [p.entailed for p in pairs]
    kinds = sorted({p.kind for p in pairs})
    by_kind = {k: float(np.mean([r for r, p in zip(right, pairs, strict=True) if p.kind == k])) for k in kinds}
    return {"accuracy": float(np.mean(right)), "by kind": by_kind}


def _save(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write weights in float16 (half the size; scores are measured on what was written) and the tokenizer."""
    shutil.rmtree(folder, ignore_errors=True)
    model.half().save_pretrained(folder)
    model.float()
    tokenizer.save_pretrained(folder)
    return folder


def _card(
    folder: Path, role: str, model: nn.Module, steps: int, carried: str, seconds: float, curve: list[dict[str, float]],
    scores: dict[str, Any],
) -> None:  # fmt: skip
    """Write the model's card: what it is, what it learnt from, how long, and how well it does."""
    parameters = sum(p.numel() for p in model.parameters())
    losses = "\n".join(f"- {name}: {', '.join(f'{row[name]:.3f}' for row in curve)}" for name in curve[0])
    text = f"""# {folder.name}

The {role} of GroundedSummary: a Llama of {parameters:,} parameters, weights in float16.

- Data: fresh items of the procedural world, split `train`, seed {SEED}.
- Steps: {steps} of {PASSAGES} passages with {carried} each, {seconds / 60:.0f} minutes on
  {torch.get_num_threads()} threads, float32.
- Rebuilt by `python scripts/build_assets.py`.

Scores of the weights as saved, on items of other seeds (samples at temperature 1, the exact oracle's verdict) or
pairs of the test split:

```json
{json.dumps(scores, indent=2)}
```

Mean losses (nats) of each hundred steps:

{losses}
"""
    (folder / "README.md").write_text(text)
    print(folder.name, json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()

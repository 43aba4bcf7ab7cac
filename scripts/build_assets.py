"""Builds the embedded models of GroundedSummary from nothing: tokenizer, teacher, student, entailment classifier.

    python scripts/build_assets.py [--only STAGE] [--out rlgkd/assets]

Everything is drawn from the procedural world with fixed seeds; each model gets a card (README.md) with its data,
steps, time and scores. They begin with random tokens written twice or tokens replaced, then with passages of one event:
copying and comparing are the skills they lack, and on full passages these appear only after a long plateau.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlgkd.envs.grounded.env import encode_pairs, prompt_of
from rlgkd.envs.grounded.oracle import first_error, judge
from rlgkd.envs.grounded.pairs import Pair, pair
from rlgkd.envs.grounded.world import story, vocabulary
from rlgkd.lm.decoding import decode
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.sampling import uniforms

SEED = 2024
"""Of the items that the models learn from; training runs use other seeds."""
PAD, END = "<|pad|>", "<|end|>"
CONTEXT = 256

Batch = tuple[Tensor, Tensor]
"""Token ids [B, T] and the mask of those that are learnt."""


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
    model = _llama(tokenizer, hidden=160, layers=3)
    folder = out / "grounded-teacher"
    _build_writer(model, tokenizer, folder, "teacher", scale, rounds=((2000, 1.5e-3),), warmup=150)


def build_student(out: Path, scale: float) -> None:
    """The student: a tenth of the teacher, stopped early."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    model = _llama(tokenizer, hidden=64, layers=2)
    folder = out / "grounded-student"
    _build_writer(model, tokenizer, folder, "student", scale, rounds=((1500, 3e-3),), warmup=250)


def build_classifier(out: Path, scale: float) -> None:
    """The entailment classifier: the teacher's body and one layer more, which learns to judge a sentence.

    It learns the verdict at every token (is what stands so far still true of one event?) and is used at the last one.
    """
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    body = LlamaForCausalLM.from_pretrained(out / "grounded-teacher", dtype=torch.float32).model
    labels = {0: "not_entailment", 1: "entailment"}
    names = {name: label for label, name in labels.items()}
    shape = {**body.config.to_dict(), "num_hidden_layers": body.config.num_hidden_layers + 1}
    model = LlamaForSequenceClassification(
        LlamaConfig(**{**shape, "num_labels": 2, "id2label": labels, "label2id": names})
    )
    model.model.load_state_dict(body.state_dict(), strict=False)
    steps, warmup, size, began = int(650 * scale), int(240 * scale), 64, time.perf_counter()
    easy, batches = _judged_pairs(tokenizer, size, others=0), _judged_pairs(tokenizer, size)
    altered = _altered(tokenizer, size)

    def loss_of(step: int) -> Tensor:
        ids, verdicts_BT = next(altered if step < warmup else easy if step < 1.5 * warmup else batches)
        judged = verdicts_BT >= 0
        states_NH = model.model(input_ids=ids).last_hidden_state[judged]
        return torch.nn.functional.cross_entropy(model.score(states_NH), verdicts_BT[judged])

    curve = _fit(model, loss_of, steps, rate=1e-3)
    folder = _save(model, tokenizer, out / "grounded-nli")
    scores = _classifier_scores(folder, tokenizer)
    _card(folder, "entailment classifier", model, steps, size, time.perf_counter() - began, curve, scores)


def _altered(tokenizer: PreTrainedTokenizerFast, size: int) -> Iterator[Batch]:
    """Passages of one event with summaries, in half of which tokens come from other sentences; learnt is which do not.

    The task of ELECTRA (Clark et al. 2020, arXiv 2003.10555). At the end token the verdict is on the whole sentence.
    """
    rng = np.random.default_rng(SEED)
    for ids, learnt in _summaries(tokenizer, size, others=0):
        end = ids == tokenizer.eos_token_id
        strange = torch.from_numpy(rng.choice(ids[learnt & ~end].numpy(), tuple(ids.shape)))
        touched = torch.from_numpy(rng.random((size, 1)) < 0.5) & torch.from_numpy(rng.random(tuple(ids.shape)) < 0.15)
        given = torch.where(learnt & ~end & touched, strange, ids)
        right = given == ids
        yield given, torch.where(learnt, torch.where(end, right.all(1, keepdim=True), right).long(), -1)


def _judged_pairs(tokenizer: PreTrainedTokenizerFast, size: int, others: int | None = None) -> Iterator[Batch]:
    """Token ids and verdicts of fresh pairs, cut into batches of like length."""
    index = 0
    while True:
        pairs = [pair("train", SEED, index + n, others=others) for n in range(8 * size)]
        index += len(pairs)
        pairs.sort(key=lambda p: len(p.premise) + len(p.hypothesis))
        batches = [pairs[n : n + size] for n in range(0, len(pairs), size)]
        random.Random(index).shuffle(batches)
        for batch in batches:
            ids, _ = encode_pairs(tokenizer, [p.premise for p in batch], [p.hypothesis for p in batch])
            yield ids, _verdicts(tokenizer, batch, ids.shape[1])


def _verdicts(tokenizer: PreTrainedTokenizerFast, pairs: list[Pair], width: int) -> Tensor:
    """[B, T] 1 at the hypothesis's tokens while it is true, 0 at its first error, -1 where nothing is to learn.

    At the end token the verdict is on the whole sentence; of a broken one that is all that is learnt.
    """
    verdicts_BT = torch.full((len(pairs), width), -1)
    for row, p in enumerate(pairs):
        premise = prompt_of(p.premise)
        offsets = tokenizer(f"{premise} {p.hypothesis}", return_offsets_mapping=True)["offset_mapping"]
        begin = len(tokenizer(premise)["input_ids"])
        if p.kind != "broken":
            end = len(premise) + 1 + (len(p.hypothesis) + 1 if p.entailed else first_error(p.hypothesis, p.events))
            for column in range(begin, len(offsets)):
                if offsets[column][1] <= end:
                    verdicts_BT[row, column] = int(offsets[column][1] < end)
        verdicts_BT[row, len(offsets)] = int(p.entailed)
    return verdicts_BT


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


def _build_writer(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, role: str, scale: float, *,
    rounds: tuple[tuple[int, float], ...], warmup: int, size: int = 64,
) -> None:  # fmt: skip
    """Fit a model to reference summaries of fresh stories, save it, write its card.

    Each round is (steps, learning rate); a learning rate that falls and rises again leaves a plateau sooner than one
    long fall does.
    """
    began = time.perf_counter()
    easy, batches = _summaries(tokenizer, size, others=0), _summaries(tokenizer, size)
    words = _words(tokenizer)

    def first_loss(step: int) -> Tensor:
        if step < warmup:
            return _next_token_loss(model, *_twice(words, step, size))
        return _next_token_loss(model, *next(easy if step < 2 * warmup else batches))

    curve: list[float] = []
    for number, (steps, rate) in enumerate(rounds):
        loss_of = first_loss if number == 0 else lambda _: _next_token_loss(model, *next(batches))
        curve += _fit(model, loss_of, int(steps * scale), rate=rate)
    saved = _save(model, tokenizer, folder)
    scores = {split: _writer_scores(saved, tokenizer, split) for split in ("train", "test")}
    total = sum(int(steps * scale) for steps, _ in rounds)
    _card(saved, role, model, total, size, time.perf_counter() - began, curve, scores)


def _fit(model: torch.nn.Module, loss_of: Callable[[int], Tensor], steps: int, *, rate: float) -> list[float]:
    """AdamW, 100 steps of warm-up, a constant half, a linear decay; returns the mean loss of each hundred steps."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True)
    losses: list[float] = []
    model.train()
    for step in range(steps):
        decay = min(1.0, 2 * (steps - step) / steps)
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 100) * max(0.02, decay)
        loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1}/{steps}  loss {np.mean(losses[-100:]):.4f}", flush=True)
    model.eval()
    return [float(np.mean(losses[n : n + 100])) for n in range(0, steps, 100)]


def _next_token_loss(model: LlamaForCausalLM, ids: Tensor, learnt: Tensor) -> Tensor:
    states = model.model(input_ids=ids).last_hidden_state[:, :-1][learnt[:, 1:]]
    return torch.nn.functional.cross_entropy(model.lm_head(states), ids[:, 1:][learnt[:, 1:]])


def _words(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """The tokens that the world's words are made of."""
    return sorted({token for word in vocabulary() for token in tokenizer(word)["input_ids"]})


def _twice(words: list[int], step: int, size: int, length: int = 24) -> Batch:
    """Random tokens, then the same again; the second time is learnt."""
    once = np.random.default_rng([SEED, step]).choice(words, (size, length))
    ids = torch.from_numpy(np.concatenate([once, once], axis=1))
    learnt = torch.zeros_like(ids, dtype=torch.bool)
    learnt[:, length + 1 :] = True
    return ids, learnt


def _summaries(tokenizer: PreTrainedTokenizerFast, size: int, others: int | None = None) -> Iterator[Batch]:
    """Passages with their reference summaries, cut into batches of like length."""
    index = 0
    while True:
        stories = [story("train", SEED, index + n, others=others) for n in range(8 * size)]
        index += len(stories)
        prompts = tokenizer([prompt_of(s.passage) for s in stories])["input_ids"]
        endings = tokenizer([f" {s.reference}{END}" for s in stories])["input_ids"]
        rows = sorted(zip(prompts, endings, strict=True), key=lambda row: len(row[0]) + len(row[1]))
        batches = [rows[n : n + size] for n in range(0, len(rows), size)]
        random.Random(index).shuffle(batches)
        for batch in batches:
            width = max(len(prompt) + len(ending) for prompt, ending in batch)
            ids = torch.full((size, width), int(tokenizer.pad_token_id))
            learnt = torch.zeros(size, width, dtype=torch.bool)
            for row, (prompt, ending) in enumerate(batch):
                total = len(prompt) + len(ending)
                ids[row, :total], learnt[row, len(prompt) : total] = torch.tensor(prompt + ending), True
            yield ids, learnt


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


@torch.inference_mode()
def _classifier_scores(folder: Path, tokenizer: PreTrainedTokenizerFast, number: int = 4096) -> dict[str, Any]:
    """Accuracy on pairs of the test split, over all and by kind."""
    model = LlamaForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    pairs = [pair("test", SEED, index) for index in range(number)]
    right: list[bool] = []
    for start in range(0, number, 256):
        some = pairs[start : start + 256]
        ids, mask = encode_pairs(tokenizer, [p.premise for p in some], [p.hypothesis for p in some])
        guesses = model(input_ids=ids, attention_mask=mask).logits.argmax(-1).tolist()
        right += [bool(guess) == p.entailed for guess, p in zip(guesses, some, strict=True)]
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
    folder: Path, role: str, model: torch.nn.Module, steps: int, size: int, seconds: float, curve: list[float],
    scores: dict[str, Any],
) -> None:  # fmt: skip
    """Write the model's card: what it is, what it learnt from, how long, and how well it does."""
    parameters = sum(p.numel() for p in model.parameters())
    text = f"""# {folder.name}

The {role} of GroundedSummary: a Llama of {parameters:,} parameters, weights in float16.

- Data: fresh items of the procedural world, split `train`, seed {SEED}; none is seen twice.
- Steps: {steps} of {size} items, {seconds / 60:.0f} minutes on {torch.get_num_threads()} threads, float32.
- Rebuilt by `python scripts/build_assets.py`.

Scores of the weights as saved, on items of other seeds (samples at temperature 1, the exact oracle's verdict) or
pairs of the test split:

```json
{json.dumps(scores, indent=2)}
```

Mean loss (nats) of each hundred steps: {", ".join(f"{value:.3f}" for value in curve)}
"""
    (folder / "README.md").write_text(text)
    print(folder.name, json.dumps(scores), flush=True)


if __name__ == "__main__":
    main()

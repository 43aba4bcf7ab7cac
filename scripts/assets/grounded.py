"""The stages of GroundedSummary: the tokenizer that its models share, teacher, student, entailment classifier.

The generators begin with random tokens that are repeated, then passages of one event: copying is the skill that they
lack, and on full passages it appears only after a long plateau. The classifier begins as the teacher.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from rlgkd.envs.rewards import Entailment
from rlgkd.envs.tasks.grounded.env import prompt_of
from rlgkd.envs.tasks.grounded.oracle import judge
from rlgkd.envs.tasks.grounded.pairs import pair
from rlgkd.envs.tasks.grounded.world import story, vocabulary
from rlgkd.lm.generate import decode
from rlgkd.lm.model import LanguageModel
from rlgkd.ops.sampling import uniforms
from rlgkd.scripts.assets.packing import judged, repeated_tokens, summaries
from rlgkd.scripts.assets.training import END, PAD, SEED, fit_generator, llama, minimise, save, write_card

CONTEXT = 256
PASSAGES = 32
"""Passages of one step."""
EXPECTED_LOGP = math.log(0.02)
"""Log-probability at which the classifier's target calls a token expected by one half."""
WORDINGS, SENTENCES = 3, 4
"""Wordings of the reference, for the generators, and pairs, for the classifier, of each passage."""
DATA = "fresh items of the procedural world"
SCORED_ON = "items of other seeds (samples at temperature 1, the exact oracle's verdict)"
LABELS = ("not_entailment", "entailment")


def build_teacher(out: Path, scale: float) -> None:
    """Build the teacher, and the tokenizer that all models share."""
    tokenizer = build_tokenizer()
    model = llama(tokenizer, hidden=160, layers=4)
    _build_generator(model, tokenizer, out / "grounded-teacher", "teacher", int(1800 * scale))


def build_student(out: Path, scale: float) -> None:
    """Build the student: a tenth of the teacher, stopped early."""
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    model = llama(tokenizer, hidden=64, layers=2)
    _build_generator(model, tokenizer, out / "grounded-student", "student", int(650 * scale))


def _build_generator(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, role: str, steps: int
) -> None:
    """Fit a model to reference summaries of fresh stories, save it, write its card."""
    start = time.perf_counter()
    batches = chain(
        islice(repeated_tokens(tokenizer, 2 * PASSAGES, seed=SEED), 100),
        islice(summaries(tokenizer, PASSAGES, seed=SEED, wordings=WORDINGS, others=0), 150),
        summaries(tokenizer, PASSAGES, seed=SEED, wordings=WORDINGS),
    )
    curve = fit_generator(model, batches, steps)
    seconds = time.perf_counter() - start
    save(model, tokenizer, folder)
    write_card(
        folder,
        model,
        title=f"The {role} of GroundedSummary",
        data=DATA,
        steps=f"{steps} of {PASSAGES} passages with {WORDINGS} sentences each",
        seconds=seconds,
        curve=curve,
        scores={split: _generator_scores(folder, tokenizer, split) for split in ("train", "test")},
        scored_on=SCORED_ON,
    )


def build_classifier(out: Path, scale: float) -> None:
    """Build the entailment classifier: the teacher's body and two layers more, trained by `_classifier_losses`."""
    start = time.perf_counter()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "grounded-teacher")
    teacher = LlamaForCausalLM.from_pretrained(out / "grounded-teacher", dtype=torch.float32)
    depth = teacher.config.num_hidden_layers
    config = {
        **teacher.config.to_dict(),
        "num_hidden_layers": depth + 2,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {label: number for number, label in enumerate(LABELS)},
        "pair_template": f"{prompt_of('{premise}')} {{hypothesis}}{END}",
    }
    model = LlamaForSequenceClassification(LlamaConfig(**config))
    model.model.load_state_dict(teacher.model.state_dict(), strict=False)
    # Heads of the first two losses, gone after training. The norm above the body is the body's own.
    predict = teacher.model.norm
    spot = nn.Sequential(nn.RMSNorm(teacher.config.hidden_size), nn.Linear(teacher.config.hidden_size, 1))
    named = {**dict(model.named_parameters()), "predict": predict.weight, **dict(spot.named_parameters())}
    learnt = {f"model.{name}" for name, _ in teacher.model.named_parameters()} - {"model.norm.weight"} | {"predict"}
    body = {name: p for name, p in named.items() if name in learnt}
    fresh = {name: p for name, p in named.items() if name not in learnt}
    steps = int(3300 * scale)
    losses = _classifier_losses(model, tokenizer, predict, spot, depth)
    curve = minimise([(body, 1.5e-3), (fresh, 3e-3)], losses, steps, hold=0.6)
    seconds = time.perf_counter() - start
    folder = save(model, tokenizer, out / "grounded-nli")
    write_card(
        folder,
        model,
        title="The entailment classifier of GroundedSummary",
        data=DATA,
        steps=f"{steps} of {PASSAGES} passages with {SENTENCES} sentences each",
        seconds=seconds,
        curve=curve,
        scores=_classifier_scores(folder),
        scored_on="pairs of the test split",
    )


def _classifier_losses(
    model: LlamaForSequenceClassification,
    tokenizer: PreTrainedTokenizerFast,
    predict: nn.Module,
    spot: nn.Module,
    depth: int,
) -> Callable[[], dict[str, Tensor]]:
    """Return a function that draws a batch and returns its losses, each on a layer above the one before.

    The body, of `depth` layers, goes on predicting true sentences (of any event, not the main one alone). The first new
    layer says of every token whether the body expected it. The second gathers the unexpected tokens into a verdict on
    the sentence so far, which is taken at the end token.

    The verdict alone teaches nothing, and neither does the one wrong token of a false sentence: comparing is learnt
    from alternatives tried in the place of every true token, and from how likely the body finds them.
    """
    batches = judged(tokenizer, PASSAGES, seed=SEED, sentences=SENTENCES)

    def losses() -> dict[str, Tensor]:
        batch = next(batches)
        packed = batch.packed
        states = model.model(**packed.inputs, use_cache=False, output_hidden_states=True)
        body_BTH, spotter_BTH = states.hidden_states[depth : depth + 2]
        verdicts_BTC = model.score(states.last_hidden_state)
        spotted = []
        unexpected = []
        verdicts = []
        for tokens in (batch.true, batch.tried, batch.read):
            logits_NV = predict(body_BTH[tokens.row_N, tokens.before_N]) @ model.model.embed_tokens.weight.T
            if tokens is batch.true:
                next_token = functional.cross_entropy(logits_NV, tokens.ids(packed))
            logp_N = logits_NV.detach().log_softmax(-1).gather(1, tokens.ids(packed)[:, None])[:, 0]
            spotted.append(spot(spotter_BTH[tokens.row_N, tokens.column_N])[:, 0])
            unexpected.append((2 * (EXPECTED_LOGP - logp_N)).sigmoid())
            verdicts.append(verdicts_BTC[tokens.row_N, tokens.column_N])
        # No token of a passage is unexpected: else what the last layer averages over would drown a sentence's tokens.
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

    return losses


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Return byte-level BPE over the world's words; names stay cut into their syllables."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1024,
        special_tokens=[PAD, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(vocabulary(), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, pad_token=PAD, eos_token=END, model_max_length=CONTEXT, clean_up_tokenization_spaces=False
    )


def _generator_scores(
    folder: Path, tokenizer: PreTrainedTokenizerFast, split: str, number: int = 512
) -> dict[str, float]:
    """Return the oracle's verdicts on samples at temperature 1, for items that the models never learnt from."""
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
    """Return the accuracy on pairs of the test split, over all and by kind."""
    pairs = [pair("test", SEED, index) for index in range(number)]
    probabilities = Entailment(folder, batch_size=256)([p.premise for p in pairs], [p.hypothesis for p in pairs])
    right = (np.asarray(probabilities, dtype=float) > 0.5) == [p.entailed for p in pairs]
    by_kind: dict[str, list[bool]] = {kind: [] for kind in sorted({p.kind for p in pairs})}
    for p, is_right in zip(pairs, right, strict=True):
        by_kind[p.kind].append(is_right)
    return {
        "accuracy": float(np.mean(right)),
        "by kind": {kind: float(np.mean(found)) for kind, found in by_kind.items()},
    }

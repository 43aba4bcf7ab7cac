"""The stages of Arithmetic and Translate: for each a tokenizer of its own words, a teacher, a student.

A tokenizer has no merges: a text is cut where a pattern says, a piece that the task's items are made of is one token,
and any other is spelled in bytes. So every digit is a token, and so is every part of a number's name wherever it
stands (`drei`, `und`, `zwanzig`): what is learnt of it in one number holds in the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.arithmetic import arithmetic
from rlgkd.envs.tasks.translate import DE_ONES, DE_ORDINALS, DE_TENS, EN_ONES, EN_ORDINALS, EN_TENS, translate
from rlgkd.evaluation import evaluate
from rlgkd.lm.loading import load
from rlgkd.lm.model import LanguageModel
from rlgkd.scripts.assets.packing import Packed, TokenizedPassage, of_similar_length, pack
from rlgkd.scripts.assets.training import END, PAD, SEED, fit_generator, llama, save, write_card

NUMBER_PARTS = sorted(
    {*EN_ONES, *EN_TENS, *EN_ORDINALS.values(), *DE_ONES, *DE_TENS, *DE_ORDINALS.values(), "hundert", "tausend", "und"}
    - {""},
    key=lambda part: (-len(part), part),
)
"""Parts of the names of numbers, each after all longer ones that begin with it."""
CARD_MEASURES = ("reward", "exact", "ended")
HOLD = {"teacher": 0.3, "student": 1.0}
"""Share of the steps at the full learning rate. A student stops there: once its rate has fallen, a low one gains it no
more and a high one loses what the fall gained (Arithmetic, 100,000 tokens of RL + GKD at the best of six settings: 2
points more of exact answers, where a student that was stopped gained 10).
"""
TOKENIZER_ITEMS = 20_000
"""Items that a tokenizer takes its words from."""


@dataclass(frozen=True, kw_only=True)
class Procedural:
    """The settings of one task's stages."""

    make: Callable[..., TextTask]
    hardest: dict[str, int]
    """The setting whose items give the words."""
    pattern: str
    """The pieces of a text that may become tokens, as a regular expression."""
    context: int
    """Tokens of the longest prompt and completion of the hardest setting, rounded up."""
    size: int
    """Items of each step."""
    teacher: tuple[int, int, int]
    """Hidden size, layers, steps."""
    student: tuple[int, int, int]


TASKS = {
    "arithmetic": Procedural(
        make=arithmetic,
        hardest={"steps": 8},
        pattern=r"\n\p{L}+| ?(?:\p{L}+|#+|\d|[^\p{L}\d])",
        context=192,
        size=64,
        teacher=(160, 4, 2200),
        student=(64, 2, 800),
    ),
    "translate": Procedural(
        make=translate,
        hardest={"digits": 6},
        pattern=rf"[\n -]?(?:{'|'.join(NUMBER_PARTS)}|\p{{L}}+)|[^\p{{L}}]",
        context=64,
        size=64,
        teacher=(128, 4, 1500),
        student=(48, 2, 350),
    ),
}


def build(name: str, role: str, out: Path, scale: float) -> None:
    """Fit a model to the references of fresh items, save it, write its card."""
    start = time.perf_counter()
    recipe = TASKS[name]
    tokenizer = build_tokenizer(recipe)
    hidden, layers, full_steps = recipe.teacher if role == "teacher" else recipe.student
    steps = int(full_steps * scale)
    model = llama(tokenizer, hidden=hidden, layers=layers)
    task = recipe.make(tokenizer=tokenizer)
    curve = fit_generator(model, solutions(task, recipe.size, seed=SEED), steps, hold=HOLD[role])
    seconds = time.perf_counter() - start
    folder = save(model, tokenizer, out / f"{name}-{role}")
    lm = LanguageModel(load(folder), tokenizer)
    write_card(
        folder,
        model,
        title=f"The {role} of {task.name}",
        data=f"fresh items of {task.name}",
        steps=f"{steps} of {recipe.size} items",
        seconds=seconds,
        curve=curve,
        scores={split: _scores(lm, task, split) for split in ("train", "test")},
        scored_on="items of another seed (samples at temperature 1)",
    )


def _scores(lm: LanguageModel, task: TextTask, split: str) -> dict[str, float]:
    scores = evaluate(lm, None, task, split=split, prompts=1024, seed=SEED + 1).scores()
    return {measure: score.mean for measure, score in scores.items() if measure in CARD_MEASURES}


def build_tokenizer(recipe: Procedural) -> PreTrainedTokenizerFast:
    """Return a byte-level tokenizer with the pieces of many items' texts as whole tokens."""
    bare = _tokenizer(recipe, [])
    pre_tokenizer = bare.backend_tokenizer.pre_tokenizer
    task = recipe.make(**recipe.hardest, tokenizer=bare)
    pieces: set[str] = set()
    for index in range(TOKENIZER_ITEMS):
        item = task.item("train", SEED, index)
        pieces.update(piece for piece, _ in pre_tokenizer.pre_tokenize_str(f"{item.prompt} {item.reference}"))
    return _tokenizer(recipe, sorted(pieces))


def _tokenizer(recipe: Procedural, pieces: list[str]) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(dict.fromkeys([PAD, END, *letters, *pieces]))}
    bpe = Tokenizer(models.BPE(vocabulary, [], ignore_merges=True))
    split = pre_tokenizers.Split(Regex(recipe.pattern), "isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([PAD, END])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        model_max_length=recipe.context,
        clean_up_tokenization_spaces=False,
    )


def solutions(task: TextTask, size: int, *, seed: int) -> Iterator[Packed]:
    """Yield prompts with their references, `size` at a time."""

    def row(index: int) -> TokenizedPassage:
        item = task.item("train", seed, index)
        return task.encode_prompt(item), [task.encode_completion(item.reference)]

    for batch in of_similar_length(row, lambda drawn: len(drawn[0]) + len(drawn[1][0]), size):
        yield pack(batch, pad=int(task.tokenizer.pad_token_id))

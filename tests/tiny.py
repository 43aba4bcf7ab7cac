"""Small scripted fakes that the tests share: tokenizers of words or bytes, random models of two layers, tasks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from stable_baselines3.common.logger import KVWriter
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rlgkd.lm import LanguageModel
from rlgkd.rollout import reference_episodes, replay_episodes, score_episodes
from rlgkd.types import Item, Score

CONTEXT = 64


def word_tokenizer(*words: str, unknown: str = "<end>") -> PreTrainedTokenizerFast:
    """A tokenizer of words: token 0 is end token and padding, as in GPT-2; then the words; others are `unknown`."""
    vocabulary = {word: n for n, word in enumerate(("<end>", *words))}
    core = Tokenizer(WordLevel(vocabulary, unk_token=unknown))
    core.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", pad_token="<end>")


def byte_tokenizer(*pieces: bytes) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer, as GPT-2's: token 0 is the end token; pieces may be halves of characters."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in plain else next(others)) for byte in range(256)]
    vocabulary = {"".join(letters[byte] for byte in piece): n for n, piece in enumerate(pieces, 1)}
    core = Tokenizer(BPE(vocab={"<end>": 0, **vocabulary}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", clean_up_tokenization_spaces=False)


def bpe_tokenizer(*merges: tuple[bytes, bytes], pieces: bool = False, special: str = "<end>"):
    """A tokenizer of all bytes and these merges, whose token 0 is the end; `pieces` is SentencePiece's kind."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    letters = [chr(byte if byte in plain else next(others)) for byte in range(256)]
    if pieces:
        tokens = [f"<0x{byte:02X}>" for byte in range(256)] + [chr(n) for n in range(33, 127)] + ["\u2581"]
    else:
        tokens = list(letters)

    def token(piece: bytes) -> str:
        return piece.decode().replace(" ", "\u2581") if pieces else "".join(letters[byte] for byte in piece)

    pairs = [(token(left), token(right)) for left, right in merges]
    vocabulary = {special: 0}
    for name in (*tokens, *(left + right for left, right in pairs)):
        vocabulary.setdefault(name, len(vocabulary))
    if pieces:
        core = Tokenizer(BPE(vocab=vocabulary, merges=pairs, byte_fallback=True, fuse_unk=False))
        core.normalizer = normalizers.Replace(" ", "\u2581")
        core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    else:
        core = Tokenizer(BPE(vocab=vocabulary, merges=pairs))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token=special, clean_up_tokenization_spaces=False)


def model(
    kind: str = "llama", *, vocabulary: int, seed: int = 0, layers: int = 2, scale: float = 0.3
) -> PreTrainedModel:
    """A random model; `scale` is the weights' standard deviation, large enough for distributions far from uniform."""
    special = {"vocab_size": vocabulary, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": layers, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if kind == "gpt2":
            config = GPT2Config(
                n_embd=16, n_layer=layers, n_head=2, n_positions=CONTEXT, initializer_range=scale, **special
            )
            return GPT2LMHeadModel(config).eval()
        if kind.endswith("t5"):
            config = AutoConfig.for_model(
                kind,
                d_model=16,
                d_kv=8,
                d_ff=32,
                num_layers=layers,
                num_heads=2,
                initializer_factor=4 * scale,
                decoder_start_token_id=0,
                **special,
            )
            return AutoModelForSeq2SeqLM.from_config(config).eval()
        config_class, model_class = {
            "llama": (LlamaConfig, LlamaForCausalLM),
            "qwen2": (Qwen2Config, Qwen2ForCausalLM),
        }[kind]
        settings = {"num_key_value_heads": 1, "max_position_embeddings": CONTEXT, "initializer_range": scale}
        return model_class(config_class(**special, **sizes, **settings, tie_word_embeddings=kind == "qwen2")).eval()


def family(
    kind: str,
    tokenizer: PreTrainedTokenizerFast,
    *,
    rows_at_once: int | None = None,
    compile_decoding: bool = False,
    **settings: object,
) -> LanguageModel:
    """A random causal model of any transformers family, with two query heads to a key head where it has such."""
    shape = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 8,
        "num_key_value_heads": 2,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": CONTEXT,
        "initializer_range": 0.3,
        "sliding_window": None,
        "layer_types": None,
    }
    if kind == "gpt_neox":
        del shape["head_dim"], shape["num_key_value_heads"]
    if kind == "gpt2":
        shape = {
            "n_embd": 16,
            "n_layer": 2,
            "n_head": 2,
            "n_positions": CONTEXT,
            "vocab_size": len(tokenizer),
            "initializer_range": 0.3,
        }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(kind, **(shape | settings))
        module = AutoModelForCausalLM.from_config(config).eval()
        return LanguageModel(module, tokenizer, rows_at_once=rows_at_once, compile_decoding=compile_decoding)


class Rows(KVWriter):
    """A logger's output kept in memory: `Logger(None, [rows])`, then `rows.rows`."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, key_values, key_excluded, step=0) -> None:
        self.rows.append(dict(key_values))

    def close(self) -> None:
        pass


def set_distribution(lm: LanguageModel, prompt: Sequence[int], probabilities: Sequence[float]) -> None:
    """Set the head so that these are the probabilities of the token after `prompt`."""
    with torch.no_grad():
        state_H = lm.body(input_ids=torch.tensor([prompt])).last_hidden_state[0, -1]
        logp_V = torch.tensor(probabilities, dtype=state_H.dtype).log()
        lm.head.weight.copy_(torch.outer(logp_V, state_H) / state_H.dot(state_H))


class WordTask:
    """Prompts of words and a reward of the completion's text; every item's key is its number, in every split."""

    name, at_limit = "words", "terminate"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        reward: Callable[[str], float],
        *,
        prompts: Sequence[str] = ("A",),
        references: Sequence[str] = (),
        max_new_tokens: int = 3,
    ) -> None:
        self.tokenizer, self.reward = tokenizer, reward
        self.items = [
            Item(key=str(n), prompt=prompt, reference=references[n] if references else "")
            for n, prompt in enumerate(prompts)
        ]
        self.max_prompt_tokens = max(len(prompt.split()) for prompt in prompts)
        self.max_new_tokens = max_new_tokens

    def size(self, split: str) -> int:
        return len(self.items)

    def item(self, split: str, seed: int, index: int) -> Item:
        return self.items[index % len(self.items)]

    def encode_prompt(self, item: Item) -> list[int]:
        return list(self.tokenizer(item.prompt)["input_ids"])

    def encode_completion(self, text: str) -> list[int]:
        return [*self.tokenizer(text)["input_ids"], 0]

    def decode_completion(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        return None

    def encode_reply(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def score(self, items: Sequence[Item], completions: Sequence[str], **more: object) -> list[Score]:
        rewards = [self.reward(text) for text in completions]
        return [Score(reward=reward, parts={"word": reward}) for reward in rewards]

    def quality(self, items: Sequence[Item], completions: Sequence[str]) -> list[dict[str, float]]:
        return [{} for _ in items]


def replayed(lm, task, items, ids, *, source):
    """Existing completions as trajectories."""
    return score_episodes(task, replay_episodes(lm, task, items, ids, source=source))


def references(lm, task, items):
    """The items' references as trajectories."""
    return score_episodes(task, reference_episodes(lm, task, items))

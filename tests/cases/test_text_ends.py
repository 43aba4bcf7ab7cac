"""Where texts end and what of them is shown: end tokens by name, special tokens as stop strings and in texts."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny
from chat_models import FEW, LIMITS, folder, model, no_reward, tokenizer
from transformers import AddedToken, PreTrainedTokenizerFast

from rlgkd.agents import Distill, Reinforce
from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.errors import SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import load, load_tokenizer
from rlgkd.lm.encoder_decoder import EncoderDecoderModel
from rlgkd.lm.model import LanguageModel
from rlgkd.rollout import rollout
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.generate import complete
from rlgkd.types import Source


def own_tokenizer() -> PreTrainedTokenizerFast:
    """With a named special token `<call>` and one that was only added, `<x>`."""
    own = tokenizer("<eos>", "<|im_start|>", "<|im_end|>", "<call>")
    own.add_tokens([AddedToken("<x>", special=True)])
    return own


OWN = own_tokenizer()
EOS, CALL, X = OWN.convert_tokens_to_ids(["<eos>", "<call>", "<x>"])


def env(**settings) -> TextGenerationEnv:
    given = {"prompts": ["hi"], "reward": no_reward, "tokenizer": OWN, **LIMITS, **settings}
    return TextGenerationEnv(**given)


def says(*tokens: str) -> list[int]:
    return OWN.convert_tokens_to_ids(list(tokens))


# Stop strings that are special tokens


@pytest.mark.parametrize("token", ["<call>", "<x>", "<eos>"])
@pytest.mark.parametrize("skip", [True, False])
def test_a_special_token_ends_a_turn_as_a_stop_string(token: str, skip: bool) -> None:
    made = env(stop=["no", token], skip_special_tokens=skip)
    agent = Reinforce(model(OWN, writes=token), made, tokenizer=OWN, alpha=0.0, **FEW).learn(4)
    assert [(t.length, str(t.stop), t.text) for t in agent.trajectories] == [(1, "end", "")] * 4
    made.reset(seed=0)
    made.step(says("a")[0])
    _, _, terminated, _, info = made.step(says(token)[0])
    assert terminated and info["stop"] == "end" and info["text"] == "a"
    assert list(made.task.stops.truncate(says("a", token, "b"))) == says("a", token)


def test_more_than_a_special_token_is_found_only_where_special_tokens_are_shown() -> None:
    with pytest.raises(SettingError, match=r"stop: 'a<x>' .* '<x>'; give that token alone, or set skip_special_tokens"):
        env(stop="a<x>")
    made = env(stop="a<x>", skip_special_tokens=False)
    made.reset(seed=0)
    steps = [made.step(id_)[2] for id_ in says("<x>", "a", "<x>")]
    assert steps == [False, False, True] and made.task.decode_completion(says("<x>", "a", "<x>")) == "<x>"


# End tokens by name


@pytest.mark.parametrize("token", ["<call>", "a"])
def test_end_tokens_by_name_end_texts_everywhere_and_are_saved(token: str, tmp_path) -> None:
    module = model(OWN, writes=token)
    name = folder(module, OWN, tmp_path / "m")
    settings = {"tokenizer": name, "end_tokens": [token, "<|im_end|>"], "chat": True}
    agent = Reinforce(name, env(**settings), alpha=0.0, **FEW).learn(4)
    ids = set(says(token, "<|im_end|>"))
    assert [(t.length, str(t.stop), t.text) for t in agent.trajectories] == [(1, "end", "")] * 4
    assert agent.generate(["hi"]) == [""]
    made = env(**settings)
    assert made.task.end_ids == agent.student.end_ids == ids
    measured = evaluate(LanguageModel(module, OWN), None, made.task, prompts=1).measures
    assert measured["length"].tolist() == [1.0] and measured["ended"].tolist() == [1.0]
    vec = TextVectorEnv(num_envs=2, prompts=["hi"], reward=no_reward, **settings, **LIMITS)
    vec.reset(seed=0)
    assert not vec.step(np.full(2, EOS))[2].any() and vec.step(np.full(2, says(token)[0]))[2].all()
    # The template's end of an answer is one of them; without a template the first one is put.
    assert made.task.encode_completion("b") == says("b", "<|im_end|>")
    assert env(end_tokens=[token, "<|im_end|>"]).task.encode_completion("b")[-1] == says(token)[0]
    agent.save(tmp_path / "saved")
    assert set(load(tmp_path / "saved").generation_config.eos_token_id) == ids


def test_an_end_token_that_the_tokenizer_lacks_is_refused_and_none_is_the_models_own() -> None:
    with pytest.raises(SettingError, match=r"end_tokens: '<stop>' .* no such token; its end token is '<eos>'"):
        env(end_tokens=["<stop>"])
    assert env().task.end_ids == env(end_tokens="<eos>").task.end_ids == {EOS}
    texts = []
    for end_tokens in ((), ["<eos>", "<call>"]):
        module = model(OWN)
        module.generation_config.eos_token_id = [EOS, CALL]
        agent = Reinforce(module, env(end_tokens=end_tokens), tokenizer=OWN, alpha=0.0, **FEW)
        texts.append([t.tokens_T.tolist() for t in agent.learn(24).trajectories])
    assert texts[0] == texts[1]


# Special tokens in texts


def shown(completions: list[str], turns: list[list[str]], tokens: list[list[str]]) -> list[float]:
    seen.append((completions[0], turns[0], tokens[0]))
    return [float("<call>" in text) for text in completions]


seen: list[tuple] = []


@pytest.mark.parametrize("skip", [True, False])
def test_rewards_replies_and_turns_see_special_tokens_if_they_are_not_skipped(skip: bool) -> None:
    heard: list[str] = []

    def reply(item, turns) -> str | None:
        heard.append(turns[-1])
        return "b" if len(turns) < 3 else None

    seen.clear()
    made = env(reward=shown, reply=reply, skip_special_tokens=skip, max_new_tokens=8)
    made.reset(seed=0)
    for id_ in says("<call>", "a", "<eos>", "<x>", "<eos>"):
        _, reward, terminated, _, info = made.step(id_)
    call, x = ("", "") if skip else ("<call>", "<x>")
    assert terminated and reward == 0.0 and heard == [f"{call}a", x]
    assert seen == [(x, [f"{call}a", "b", x], ["<call>", "a", "<eos>", "<x>", "<eos>"])]
    assert info["turns"] == [f"{call}a", "b", x]


def test_an_encoder_decoders_special_tokens_are_shown_too() -> None:
    words = tiny.word_tokenizer("A", "<call>")
    words.add_special_tokens({"additional_special_tokens": ["<call>"]})
    lm = EncoderDecoderModel(tiny.model("t5", vocabulary=3, scale=0.02), words)
    texts = {}
    for skip in (True, False):
        given = {"prompts": ["A"], "reward": no_reward, "tokenizer": words, "skip_special_tokens": skip}
        task = TextTask(max_prompt_tokens=2, max_new_tokens=8, **given)
        texts[skip] = [t.text for t in rollout(lm, task, [task.item("test", 0, 0)], group=8)]
    assert any("<call>" in text for text in texts[False])
    assert [text.replace("<call>", "").split() for text in texts[False]] == [text.split() for text in texts[True]]


def test_a_run_writes_what_its_policy_wrote_and_its_model_generates_with_the_same_ends(tmp_path) -> None:
    name = folder(model(OWN, writes="<call>"), OWN, tmp_path / "m")
    (tmp_path / "t.jsonl").write_text('{"prompt": "Say N."}\n' * 4)
    (tmp_path / "t.yaml").write_text(
        "env: rlgkd/Dataset-v0\n"
        "env_settings: {data: t.jsonl, split_shares: null, reward: {name: length, words: 2}, end_tokens: ['<x>'], "
        "skip_special_tokens: false, max_new_tokens: 3, max_prompt_tokens: 16}\n"
        f"student: {name}\nteacher: null\nalpha: 0\ntokens: 12\neval_prompts: 1\nprompts_per_update: 2\ngroup_size: 2\n"
    )
    train.start(read(tmp_path / "t.yaml"), tmp_path / "run", quiet=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    assert {line["completion"] for line in lines} == {"<call>" * 3} and {line["stop"] for line in lines} == {"length"}
    given = {"max_new_tokens": 2, "temperature": 1.0, "greedy": True, "seed": 0, "stop": (), "filters": None}
    assert complete(str(tmp_path / "run"), ["Q"], chat=False, **given) == ["<call>" * 2]
    assert load(tmp_path / "run").generation_config.eos_token_id == X
    assert load_tokenizer(tmp_path / "run").eos_token_id == EOS


def test_a_teachers_texts_end_with_the_named_tokens_alone(tmp_path) -> None:
    name = folder(model(OWN, writes="<call>"), OWN, tmp_path / "m")
    settings = {"off_policy": "teacher", "student_fraction": 0.0, "prompts_per_update": 2}
    agent = Distill(name, env(tokenizer=name, end_tokens=["<call>"]), teacher=name, **settings).learn(2)
    assert [(t.source, t.length) for t in agent.trajectories] == [(Source.TEACHER, 1)] * 2

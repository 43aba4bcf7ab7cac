"""Every end id of a model ends a text: in decoding, dialogues, replayed texts, environments and evaluation."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3.common.evaluation import evaluate_policy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from rlgkd.agents import Distill, Reinforce
from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.evaluation import evaluate
from rlgkd.lm import load, load_tokenizer, open_by_name, save
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.text_format import model_end_ids
from rlgkd.rollout import replay_episodes
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import evaluate as command
from rlgkd.scripts.runs import train
from rlgkd.scripts.runs.generate import complete
from rlgkd.scripts.runs.rollouts import records
from rlgkd.types import Source
from tests.tiny import word_tokenizer

WORDS = ("<end_of_turn>", "<user>", "hi", "yes", "no", ":")
END, TURN_END, YES = 0, 1, 4
TEMPLATE = "{% for m in messages %}<user> {{ m['content'] }} <end_of_turn>{% endfor %}"
FEW = {"prompts_per_update": 2, "group_size": 2, "alpha": 0.0}
LIMITS = {"max_prompt_tokens": 8, "max_new_tokens": 6}


def lengths(completions: list[str]) -> list[float]:
    return [float(len(text)) for text in completions]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """With an end of a turn next to its end token."""
    words = word_tokenizer(*WORDS)
    words.add_special_tokens({"additional_special_tokens": ["<end_of_turn>", "<user>"]})
    words.chat_template = TEMPLATE
    return words


def writes(token: int, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """A model that writes one token, whatever stands before it."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=32,
        bos_token_id=None,
        eos_token_id=END,
        pad_token_id=END,
        tie_word_embeddings=False,
    )
    module = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        # The state is made (c, 0, ..., 0), by an embedding of ones in the first unit and layers that add nothing.
        for parameter in module.parameters():
            parameter.zero_()
        module.get_input_embeddings().weight[:, 0] = 1.0
        module.base_model.norm.weight.fill_(1.0)
        module.lm_head.weight[token, 0] = 100.0
    return module


@pytest.fixture
def module(tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    ended = writes(TURN_END, tokenizer)
    ended.generation_config.eos_token_id = [END, TURN_END]
    return ended


def env_of(tokenizer: PreTrainedTokenizerFast | str, **settings: object) -> TextGenerationEnv:
    return TextGenerationEnv(prompts=["hi"], reward=lengths, tokenizer=tokenizer, **{**LIMITS, **settings})


@pytest.mark.parametrize("where", ["config", "generation_config"])
def test_an_end_id_of_either_configuration_ends_a_text_of_an_agent_and_of_its_environment(
    tokenizer: PreTrainedTokenizerFast, where: str
) -> None:
    module = writes(TURN_END, tokenizer)
    getattr(module, where).eos_token_id = [END, TURN_END]
    env = env_of(tokenizer)
    agent = Reinforce(module, env, tokenizer=tokenizer, **FEW).learn(4)
    assert [(t.length, str(t.stop), t.text) for t in agent.trajectories] == [(1, "end", "")] * 4
    assert agent.generate(["hi"]) == [""]
    env.reset(seed=0)
    _, _, terminated, _, info = env.step(TURN_END)
    assert terminated and info["stop"] == "end"
    assert evaluate_policy(agent, env, n_eval_episodes=2, return_episode_rewards=True, warn=False)[1] == [1, 1]


def test_a_folder_is_ended_by_all_its_end_ids_in_evaluation_generation_and_environments(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel, tmp_path: Path
) -> None:
    save(module, tokenizer, tmp_path)
    name = str(tmp_path)
    for given in (name, load_tokenizer(name)):
        task = env_of(given, chat=True).task
        measured = evaluate(open_by_name(name), None, task, prompts=1)
        assert measured.measures["length"].tolist() == [1.0] and measured.measures["ended"].tolist() == [1.0]
        vec = TextVectorEnv(num_envs=2, prompts=["hi"], reward=lengths, tokenizer=given, **LIMITS)
        vec.reset(seed=0)
        assert vec.step(np.full(2, TURN_END))[2].all()
    settings = {"max_new_tokens": 4, "temperature": 1.0, "seed": 0, "stop": (), "filters": None}
    assert complete(name, ["hi"], greedy=False, chat=True, **settings) == [""]


def test_replayed_texts_and_references_end_where_a_turn_does(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel
) -> None:
    lm = LanguageModel(module, tokenizer)
    task = TextTask(prompts=["hi"], reward=lengths, tokenizer=tokenizer, chat=True, **LIMITS)
    task.add_end_ids(lm.end_ids)
    item = task.item("test", 0, 0)
    (episode,) = replay_episodes(lm, task, [item], [[YES, TURN_END, YES]], source=Source.DATA)
    assert episode.tokens_T[episode.action_mask_T].tolist() == [YES, TURN_END] and episode.stop == "end"
    # Of a chat's end tokens, a reference has the one that the template puts.
    assert task.encode_completion("yes") == [YES, TURN_END]


def test_a_reply_follows_a_turn_that_the_end_of_a_turn_closed_without_a_second_one(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel
) -> None:
    task = TextTask(
        prompts=["hi"], reward=lengths, tokenizer=tokenizer, chat=True, reply=lambda item, turns: "no", **LIMITS
    )
    trajectory = evaluate(LanguageModel(module, tokenizer), None, task, prompts=1).trajectories[0]
    assert tokenizer.decode(trajectory.tokens_T) == (
        "<user> hi <end_of_turn> <end_of_turn> <user> no <end_of_turn> <end_of_turn>"
    )


def test_an_ordinary_token_that_a_configuration_names_ends_no_text_and_is_reported(
    tokenizer: PreTrainedTokenizerFast, caplog: pytest.LogCaptureFixture
) -> None:
    module = writes(YES, tokenizer)
    module.generation_config.eos_token_id = [END, YES, 50256]
    with caplog.at_level(logging.WARNING):
        assert model_end_ids(module, tokenizer) == {END}
    assert "end id 4, which its tokenizer has as the ordinary token 'yes'" in caplog.text


def test_a_teacher_that_ends_or_formats_texts_otherwise_is_reported_with_both_names(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student, teacher = str(tmp_path / "student"), str(tmp_path / "teacher")
    save(writes(END, tokenizer), tokenizer, student)
    tokenizer.chat_template = TEMPLATE.replace(" <end_of_turn>", ":")
    save(module, tokenizer, teacher)
    env = env_of(student, chat=True)
    few = {"prompts_per_update": 2}
    with caplog.at_level(logging.WARNING, "rlgkd.lm.own_format"):
        Distill(student, env, teacher=student, **few)
        assert not caplog.messages
        Distill(student, env, teacher=teacher, **few)
    own = "it reads prompts as '<user>...:', the student as '<user>...<end_of_turn>'"
    assert caplog.messages == [f"the teacher has a format of its own: {own}"]
    caplog.clear()
    rows = tmp_path / "t.jsonl"
    rows.write_text('{"prompt": "hi"}\n')
    how = {"split": "test", "prompts": 1, "temperature": 1.0, "greedy": False, "seed": 0}
    filters = {"top_k": None, "top_p": None, "min_p": None}
    settings = {"data": rows, "split_shares": "null", "reward": f"{__file__}:lengths", "chat": "true", **LIMITS}
    overrides = [f"env_settings.{name}={value}" for name, value in settings.items()]
    with caplog.at_level(logging.WARNING, "rlgkd.lm.own_format"):
        command.show(student, overrides, env="rlgkd/Dataset-v0", teacher=teacher, **how, **filters)
    assert caplog.messages == [f"the teacher has a format of its own: {own.replace('student', 'model')}"]


def test_a_saved_folder_has_the_template_and_the_end_ids_that_training_had(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel, tmp_path: Path
) -> None:
    old, new = str(tmp_path / "old"), tmp_path / "new"
    save(writes(END, tokenizer), tokenizer, old)
    mine = load_tokenizer(old)
    mine.chat_template = TEMPLATE.replace("<user>", "no")
    agent = Reinforce(old, env_of(mine, chat=True), **FEW)
    agent.save(new)
    assert load_tokenizer(new).chat_template == mine.chat_template
    assert load(new).generation_config.eos_token_id == END
    # A teacher that follows the student is saved with the student's, in which it reads.
    following = {**FEW, "teacher": old, "alpha": 0.5, "teacher_decay": 0.9}
    Reinforce(old, env_of(mine, chat=True), **following).save(new)
    assert load_tokenizer(new / "teacher").chat_template == mine.chat_template
    Reinforce.load(new, env=env_of(load_tokenizer(new), chat=True))
    mine.eos_token = "<end_of_turn>"
    Reinforce(old, env_of(mine), tokenizer=mine, **FEW).save(new)
    assert load_tokenizer(new).eos_token_id == TURN_END
    assert load(new).generation_config.eos_token_id == [TURN_END, END]


@pytest.mark.parametrize("skip", [True, False])
def test_a_teacher_with_another_end_next_to_the_students_changes_neither_task_nor_evaluation(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel, skip: bool
) -> None:
    env = env_of(tokenizer, skip_special_tokens=skip, chat=True, reply=lambda item, turns: "no")
    settings = {"off_policy": "teacher", "student_fraction": 0.0, "prompts_per_update": 2}
    agent = Distill(writes(YES, tokenizer), env, teacher=module, tokenizer=tokenizer, **settings)
    before = evaluate(agent.student, agent.teacher, agent.task, prompts=1)
    (taught,) = evaluate(agent.teacher, agent.teacher, agent.task, prompts=1).trajectories
    assert agent.task.end_ids == agent.student.end_ids == {END} and agent.teacher.end_ids == {END, TURN_END}
    after = evaluate(agent.student, agent.teacher, agent.task, prompts=1)
    assert after.trajectories[0].tokens_T.tolist() == before.trajectories[0].tokens_T.tolist()
    # The teacher's own end closes its turns, in evaluation as in training, and is not shown.
    for text in (taught, *agent.learn(1).trajectories):
        assert {*text.turns[::2]} == {""}
        assert tokenizer.decode(text.tokens_T) == (
            "<user> hi <end_of_turn> <end_of_turn> <user> no <end_of_turn> <end_of_turn>"
        )
    assert agent.task.end_ids == {END}


def test_a_run_whose_teacher_has_another_end_goes_on(
    tokenizer: PreTrainedTokenizerFast, module: PreTrainedModel, tmp_path: Path
) -> None:
    save(writes(END, tokenizer), tokenizer, tmp_path / "student")
    save(module, tokenizer, tmp_path / "teacher")
    (tmp_path / "t.jsonl").write_text('{"prompt": "hi"}\n' * 4)
    (tmp_path / "t.yaml").write_text(
        "env: rlgkd/Dataset-v0\n"
        "env_settings: {data: t.jsonl, split_shares: null, reward: {name: length, words: 2}, max_new_tokens: 4, "
        "max_prompt_tokens: 8}\n"
        f"student: {tmp_path}/student\nteacher: {tmp_path}/teacher\nalpha: 0.5\ntokens: 4\neval_prompts: 1\n"
        "prompts_per_update: 2\ngroup_size: 2\ncheckpoint_every: 1\n"
    )
    train.start(read(tmp_path / "t.yaml"), tmp_path / "run", quiet=True)
    train.resume(tmp_path / "run", ["tokens=8"], quiet=True)
    assert (
        read(tmp_path / "run" / "config.yaml").tokens == 8 and len([*records(tmp_path / "run" / "rollouts.jsonl")]) == 8
    )

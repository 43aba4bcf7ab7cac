"""Episodes of several turns: rollouts and environments agree on them, and what the task says is no action."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from stable_baselines3 import PPO as StockPPO

from rlgkd.agents import PPO, Distill, LanguageModelActorCritic, Reinforce
from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv, make_sb3_vec_env
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.envs.tasks.guess import guess
from rlgkd.errors import SettingError
from rlgkd.lm import LanguageModel
from rlgkd.rollout import rollout
from rlgkd.types import Source, StopReason

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def policy(seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny.model(vocabulary=4, scale=0.1, seed=seed), TOKENIZER)


def answer(item, turns) -> str | None:
    """Say C C behind a turn that ends with B, twice at most."""
    return "C C" if turns[-1].endswith("B") and len(turns) < 5 else None


def talk(**settings) -> TextTask:
    return TextTask(
        **{
            "prompts": ["A", "B C", "C A B"],
            "tokenizer": TOKENIZER,
            "max_new_tokens": 12,
            "max_prompt_tokens": 4,
            "reply": answer,
            "reward": lambda turns: [len(said) + said[-1].count("A") / 10 for said in turns],
            **settings,
        }
    )


def items(task):
    return [task.item("train", 0, n) for n in range(3)]


def test_stepping_the_environment_with_the_same_actions_yields_the_same_turns():
    task = talk()
    trajectories = rollout(policy(), task, items(task), group=24)
    assert {len(t.turns) for t in trajectories} == {0, 3, 5} and {"end", "length"} == {t.stop for t in trajectories}
    env = TextGenerationEnv(task)
    for n, t in enumerate(trajectories):
        env.reset(seed=0, options={"index": n // 24})
        steps = [env.step(np.int64(token)) for token in t.tokens_T[t.action_mask_T]]
        observation, reward, terminated, truncated, info = steps[-1]
        assert terminated and not truncated and not any(step[2] for step in steps[:-1])
        assert observation[observation >= 0].tolist() == t.tokens_T.tolist()
        assert (reward, info["text"], info["stop"]) == (t.score.reward, t.text, str(t.stop))
        assert tuple(info.get("turns", ())) == t.turns


def test_what_the_task_says_is_no_action_and_has_neither_logp_nor_entropy():
    task = talk()
    for t in rollout(policy(), task, items(task), group=16):
        said = TOKENIZER("C C")["input_ids"]
        assert [*t.tokens_T[~t.action_mask_T][len(task.encode_prompt(t.item)) :]] == said * (len(t.turns) // 2)
        assert (t.logp_T[~t.action_mask_T] == 0).all() and (t.logp_T[t.action_mask_T] < 0).all()
        assert (t.entropy_T[~t.action_mask_T] == 0).all() and (t.entropy_T[t.action_mask_T] > 0).all()
        assert len(t.tokens_T) - len(task.encode_prompt(t.item)) <= 12


def test_the_recorded_logp_is_that_of_the_whole_prefix():
    task, lm = talk(), policy()
    for t in rollout(lm, task, items(task), group=8):
        logits_TV = lm.module(torch.from_numpy(t.tokens_T)[None]).logits[0].detach().log_softmax(-1)
        plain = [logits_TV[at - 1, t.tokens_T[at]].item() for at in np.flatnonzero(t.action_mask_T)]
        assert t.logp_T[t.action_mask_T] == pytest.approx(plain, abs=1e-4)


def test_a_sample_of_several_turns_does_not_depend_on_its_batch():
    task, lm = talk(), policy()
    whole = rollout(lm, task, items(task), group=12)
    assert any(len(t.turns) == 5 for t in whole[12:24])
    alone = rollout(lm, task, items(task)[1:2], group=12)
    assert [t.tokens_T.tolist() for t in alone] == [t.tokens_T.tolist() for t in whole[12:24]]


def test_texts_that_are_there_already_are_answered_as_they_were():
    task, lm = talk(), policy()
    drawn = rollout(lm, task, items(task), group=8)
    again = tiny.replayed(
        lm, task, [t.item for t in drawn], [t.tokens_T[t.action_mask_T].tolist() for t in drawn], source=Source.TEACHER
    )
    assert [t.tokens_T.tolist() for t in again] == [t.tokens_T.tolist() for t in drawn]
    assert [t.action_mask_T.tolist() for t in again] == [t.action_mask_T.tolist() for t in drawn]
    assert [t.score for t in again] == [t.score for t in drawn]


def test_a_reference_is_one_turn_and_nobody_answers_it():
    task = talk()
    (t,) = tiny.replayed(policy(), task, items(task)[:1], [task.encode_completion("A B")], source=Source.DATA)
    assert t.stop is StopReason.END and t.text == "A B" and not t.turns
    assert t.tokens_T.tolist() == [*task.encode_prompt(t.item), *task.encode_completion("A B")]


def test_vector_forms_agree_with_the_scalar_one():
    task, rng = talk(), np.random.default_rng(0)
    scalars = [TextGenerationEnv(task) for _ in range(3)]
    vector, vec = TextVectorEnv(task, num_envs=3, autoreset_mode="SameStep"), TextVecEnv(task, num_envs=3)
    vec.seed(4)
    seen = [np.stack([env.reset(seed=4 + n)[0] for n, env in enumerate(scalars)]), vector.reset(seed=4)[0], vec.reset()]
    turns = 0
    for _ in range(120):
        assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])
        actions = rng.choice(4, size=3, p=(0.4, 0.1, 0.4, 0.1))
        steps = [env.step(action) for env, action in zip(scalars, actions, strict=True)]
        rows = [env.reset()[0] if step[2] else step[0] for env, step in zip(scalars, steps, strict=True)]
        own, sb3 = vector.step(actions), vec.step(actions)
        assert [step[1] for step in steps] == own[1].tolist() == pytest.approx(sb3[1].tolist())
        assert [step[2] for step in steps] == own[2].tolist() == sb3[2].tolist()
        turns += sum(len(info.get("turns", ())) > 1 for info in sb3[3])
        seen = [np.stack(rows), own[0], sb3[0]]
    assert turns > 5


@pytest.mark.parametrize("form", [TextGenerationEnv, TextVectorEnv, TextVecEnv])
def test_at_the_limit_a_text_is_scored_or_cut(form):
    for at_limit, reward in (("terminate", 1.3), ("truncate", 0.0)):
        env = form(talk(at_limit=at_limit, max_new_tokens=3))
        env.reset()
        for _ in range(3):
            step = env.step(np.int64(1) if form is TextGenerationEnv else np.array([1]))
        if form is TextVecEnv:
            assert step[2][0] and step[1][0] == pytest.approx(reward)
            assert step[3][0]["TimeLimit.truncated"] == (at_limit == "truncate")
        else:
            assert (np.ravel(step[1])[0], np.ravel(step[2])[0], np.ravel(step[3])[0]) == (
                pytest.approx(reward),
                at_limit == "terminate",
                at_limit == "truncate",
            )


def test_a_reward_that_failed_is_shown_as_a_truncation():
    def broken(completions):
        raise RuntimeError("no")

    env = TextGenerationEnv(talk(reward=broken, max_failed_rewards=1.0))
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(np.int64(0))
    assert (reward, terminated, truncated, info["reward_failed"], info["stop"]) == (0.0, False, True, True, "end")


def test_a_text_that_was_cut_has_no_policy_term_and_its_reward_is_not_asked_for():
    seen: list[str] = []

    def reward(completions):
        seen.extend(completions)
        return [1.0] * len(completions)

    task = talk(at_limit="truncate", max_new_tokens=2, reply=None, reward=reward)
    agent = Reinforce(policy().module, TextVecEnv(task), alpha=0.0, prompts_per_update=8, group_size=4)
    agent.train = lambda: None
    agent.learn(1)
    cut = [t.stop is StopReason.TRUNCATED for t in agent.trajectories]
    assert any(cut) and not all(cut) and len(seen) == cut.count(False)
    assert (~agent.credit(agent.rollout).valid_B).tolist() == cut
    assert task.grader.failed == 0
    agent.dump_logs()
    assert agent.last_metrics["rollout/reward_failed"] == 0.0
    assert agent.last_metrics["rollout/truncated"] == pytest.approx(cut.count(True) / len(cut))


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (lambda item, turns: {}["answer"], r"it raised KeyError: 'answer' \(.*_turns.py:\d+, in <lambda>\); return a"),
        (lambda item, turns: 3, "it returned 3; return a text, or None"),
        (lambda item, turns: ["A"], r"it returned \['A'\]; return a text, or None"),
    ],
)
def test_a_reply_that_raises_or_is_no_text_is_one_line_that_says_where(said, words):
    task = talk(reply=said)
    with pytest.raises(SettingError, match=f"reply: '<lambda>' does not work; {words}") as caught:
        rollout(policy(), task, items(task), group=4)
    assert "\n" not in str(caught.value)


def test_a_reply_that_could_never_fit_is_told_once_and_ends_the_episode(caplog):
    task = talk(reply=lambda item, turns: "C " * 20)
    stops = {t.stop for t in rollout(policy(), task, items(task), group=8)}
    assert stops == {StopReason.LENGTH}
    (record,) = caplog.records
    assert "has 20 tokens and never fits" in record.getMessage() and "max_new_tokens, now 12" in record.getMessage()


def test_an_unknown_limit_is_refused():
    with pytest.raises(SettingError, match="at_limit"):
        talk(at_limit="cut")


NUMBERS = [str(n) for n in range(1, 17)]


def game(**settings) -> TextTask:
    words = ["Guess", "a", "number", "from", "to", *NUMBERS, *(f"{n}." for n in NUMBERS), "higher", "lower"]
    return guess(
        **{"largest": 16, "guesses": 5, "tokenizer": tiny.word_tokenizer(*words), "max_new_tokens": 16, **settings}
    )


def halving(task: TextTask, n: int) -> tuple[float, int]:
    """Play item n by halving its range; returns the reward and the number of guesses."""
    env = TextGenerationEnv(task, split="test")
    _, info = env.reset(seed=0, options={"index": n})
    low, high = (int(word.rstrip(".")) for word in info["prompt"].split() if word[0].isdigit())
    for guesses in range(1, 9):
        middle = (low + high) // 2
        for token in task.encode_completion(str(middle)):
            observation, reward, over, _, info = env.step(np.int64(token))
        if over:
            return reward, guesses
        said = task.tokenizer.decode([observation[observation >= 0][-1]])
        low, high = (middle + 1, high) if said == "higher" else (low, middle - 1)
    raise AssertionError("halving did not find it")


def test_halving_finds_every_number_and_earns_by_its_guesses():
    task = game()
    for n in range(200):
        reward, guesses = halving(task, n)
        assert reward == (5 - guesses + 1) / 5


def test_the_gold_guess_earns_all_and_a_wrong_one_nothing():
    task = guess()
    some = [task.item("test", 0, n) for n in range(1000)]
    assert {s.reward for s in task.score(some, [item.reference for item in some])} == {1.0}
    wrong = [str(item.columns["number"] + 1) for item in some]
    for texts in (wrong, [""] * 1000, [f"{item.reference} or so" for item in some], ["³"] * 1000):
        assert not any(s.reward for s in task.score(some, texts))
    assert {q["found"] for q in task.quality(some, wrong)} == {0.0}


def beginner(task: TextTask) -> LanguageModel:
    """Taught the numbers themselves, it guesses any of the range, and does not know what to make of an answer."""
    model = tiny.model(vocabulary=len(task.tokenizer), scale=0.1)
    taught = Distill(
        model,
        TextVecEnv(task),
        divergence="forward_kl",
        estimator="sampled",
        student_fraction=0.0,
        prompts_per_update=64,
        learning_rate=0.01,
    )
    return taught.learn(20_000).student


def score(task: TextTask, lm: LanguageModel) -> float:
    some = [task.item("test", 0, n) for n in range(200)]
    return float(np.mean([t.score.reward for t in rollout(lm, task, some)]))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "more"),
    # The gradient is divided by the limit of 16 tokens, and profits here from being clipped: so is its largest norm.
    [(Reinforce, {"max_grad_norm": 1 / 16}), (PPO, {"epochs": 2})],
    ids=["Reinforce", "PPO"],
)
def test_own_agents_learn_to_use_the_answers(make, more):
    task = game()
    lm = beginner(task)
    before = score(task, lm)
    make(
        lm.module, TextVecEnv(task), alpha=0.0, prompts_per_update=32, group_size=4, learning_rate=0.003, **more
    ).learn(30_000)
    assert score(task, lm) > before + 0.1


@pytest.mark.slow
def test_stock_ppo_learns_to_use_the_answers():
    task = game()
    lm = beginner(task)
    before = score(task, lm)
    StockPPO(
        LanguageModelActorCritic,
        TextVecEnv(task, num_envs=64),
        n_steps=32,
        batch_size=2048,
        n_epochs=4,
        learning_rate=3e-3,
        gamma=1.0,
        gae_lambda=1.0,
        seed=0,
        device="cpu",
        policy_kwargs={"model": lm.module, "tokenizer": task.tokenizer},
    ).learn(16_000)
    assert score(task, lm) > before + 0.1


def test_distillation_learns_the_teachers_turns():
    task = talk()
    teacher, student = policy(1), policy(0)
    agent = Distill(
        student.module, TextVecEnv(task), teacher=teacher.module, prompts_per_update=3, group_size=8, learning_rate=0.01
    )
    agent.learn(300)
    first = agent.last_metrics["train/divergence"]
    agent.learn(4000, reset_num_timesteps=False)
    assert any(len(t.turns) > 1 for t in agent.trajectories) and agent.last_metrics["train/divergence"] < 0.3 * first


def test_the_game_is_registered():
    vec = make_sb3_vec_env("rlgkd/Guess-v0", num_envs=2)
    assert vec.task.reply(vec.task.item("test", 0, 0), ["no number"]) is None

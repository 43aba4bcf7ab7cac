"""Stock Stable-Baselines3 and plain loops train on the environments; what they arrive at is what theory says."""

from __future__ import annotations

import copy
import itertools

import gymnasium as gym
import numpy as np
import pytest
import tiny
import torch
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from rlgkd.agents import EntropyReward, LanguageModelActorCritic
from rlgkd.envs import TeacherReward, TeacherRewardVecEnv, TextGenerationEnv, TextVecEnv
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm import LanguageModel
from rlgkd.lm.top_k_mask import top_k_mask
from rlgkd.ops.token_masks import allowed

TOKENIZER = tiny.word_tokenizer("A", "B", "C")


def environment(rows: int = 16, reward=lambda text: float(text.startswith("B")), **settings) -> TextVecEnv:
    return TextVecEnv(tiny.WordTask(TOKENIZER, reward, **settings), num_envs=rows)


def learner(algorithm, env, *, policy=None, **settings):
    module = tiny.model(vocabulary=4)
    given = {"model": module, "tokenizer": TOKENIZER, **(policy or {})}
    return algorithm(LanguageModelActorCritic, env, policy_kwargs=given, seed=0, device="cpu", **settings)


def distribution(agent, prefix=(1,)) -> torch.Tensor:
    """[V], the policy's own, by a pass without any of its caches."""
    lm = agent.policy.language_model
    with torch.no_grad():
        return lm.logits(lm.body(input_ids=torch.tensor([prefix])).last_hidden_state[0, -1]).double().softmax(-1)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(PPO, {"n_steps": 8, "batch_size": 128, "n_epochs": 4}), (A2C, {"n_steps": 8})],
    ids=["PPO", "A2C"],
)
def test_stock_sb3_learns_which_word_to_write_first(algorithm, settings):
    agent = learner(algorithm, environment(), learning_rate=1e-2, **settings)
    assert evaluate_policy(agent, environment(), n_eval_episodes=200, deterministic=False)[0] < 0.5
    agent.learn(5000)
    assert evaluate_policy(agent, environment(), n_eval_episodes=200, deterministic=False)[0] > 0.9


def rows(*tokens, width: int = 6) -> torch.Tensor:
    return torch.tensor([[*row, *[-1] * (width - len(row))] for row in tokens])


def policy(env=None, **settings) -> LanguageModelActorCritic:
    return learner(A2C, environment() if env is None else env, policy=settings).policy


def test_what_is_sampled_is_what_is_evaluated_step_by_step():
    env, actor = environment(5, prompts=("A", "B C", "C A B")), policy(temperature=0.7)
    observations, seen = env.reset(), []
    for _ in range(12):
        obs = torch.from_numpy(observations)
        with torch.no_grad():
            seen.append((obs, *actor(obs)))
        observations, *_ = env.step(seen[-1][1].numpy())
    obs, actions, values, logp = (torch.cat(part) for part in zip(*seen, strict=True))
    torch.testing.assert_close(actor.evaluate_actions(obs, actions)[:2], (values, logp), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(actor.predict_values(obs), values, atol=1e-4, rtol=1e-4)


def test_its_distribution_is_the_models_at_its_temperature():
    actor, obs = policy(temperature=0.7), rows([1], [3, 2])
    distribution = actor.get_distribution(obs).distribution
    logits = [actor.module(torch.tensor([row])).logits[0, -1] for row in ([1], [3, 2])]
    torch.testing.assert_close(distribution.probs, (torch.stack(logits) / 0.7).softmax(-1), atol=1e-5, rtol=1e-4)
    _, _, entropy = actor.evaluate_actions(obs, torch.tensor([0, 0]))
    torch.testing.assert_close(entropy, -(distribution.probs * distribution.probs.log()).sum(-1))
    assert actor.predict_values(obs).tolist() == [[0.0], [0.0]], "the value head begins at 0"


def test_the_memo_goes_when_the_weights_change():
    agent = learner(A2C, environment(4), n_steps=4, learning_rate=0.3)
    observations = agent.env.reset()
    agent.predict(observations)
    assert agent.policy.reader.cached is not None
    agent.learn(16)
    assert agent.policy.reader.cached is None
    agent.predict(observations)
    agent.set_parameters(agent.get_parameters())
    assert agent.policy.reader.cached is None


def test_dropout_is_off_in_training_too():
    actor = policy()
    actor.set_training_mode(True)
    assert not any(part.training for part in actor.modules())


def test_the_optimizer_is_the_one_that_sb3_asks_for():
    frozen = tiny.model(vocabulary=4)
    frozen.get_input_embeddings().requires_grad_(False)
    assert isinstance(policy().optimizer, torch.optim.RMSprop)  # A2C's own
    chosen = learner(
        PPO,
        environment(2),
        n_steps=4,
        batch_size=8,
        learning_rate=0.125,
        policy={"model": frozen, "optimizer_class": torch.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.5}},
    ).policy.optimizer
    (group,) = chosen.param_groups
    assert isinstance(chosen, torch.optim.AdamW) and (group["lr"], group["weight_decay"]) == (0.125, 0.5)
    assert len(group["params"]) == len(list(frozen.parameters())) - 1 + 2


def test_sb3s_callbacks_and_other_vec_envs_do():
    env = DummyVecEnv([lambda: TextGenerationEnv(environment().task)] * 2)
    agent = learner(PPO, env, n_steps=4, batch_size=8, n_epochs=1)
    watch = EvalCallback(
        DummyVecEnv([lambda: Monitor(TextGenerationEnv(environment().task))]), eval_freq=4, n_eval_episodes=4, verbose=0
    )
    agent.learn(32, callback=watch)
    assert 0 <= watch.last_mean_reward <= 1


def test_sb3s_own_files_keep_it_for_those_who_made_them(tmp_path):
    agent = learner(A2C, environment(4), n_steps=4).learn(32)
    agent.save(tmp_path / "agent")
    again = A2C.load(tmp_path / "agent", env=environment(4), device="cpu")
    torch.testing.assert_close(distribution(again), distribution(agent))
    again.learn(16)
    agent.policy.save(tmp_path / "policy")
    alone = LanguageModelActorCritic.load(tmp_path / "policy", device="cpu")
    torch.testing.assert_close(alone.predict_values(rows([1])), agent.policy.predict_values(rows([1])))


def test_a_mask_holds_in_sampling_and_evaluation_alike():
    frozen = copy.deepcopy(tiny.model(vocabulary=4)).requires_grad_(False)
    for mask in (allowed([2], vocabulary=4, end=0), top_k_mask(frozen, 2, tokenizer=TOKENIZER)):
        env = environment(8, max_new_tokens=4)
        agent = learner(PPO, env, policy={"mask": mask}, n_steps=8, batch_size=64, learning_rate=3e-2)
        agent.learn(256)
        buffer = agent.rollout_buffer
        obs = torch.from_numpy(buffer.observations.reshape(-1, buffer.observations.shape[-1]))
        actions = torch.from_numpy(buffer.actions.reshape(-1)).long()
        assert mask(obs).gather(1, actions[:, None]).all()
        _, logp, entropy = agent.policy.evaluate_actions(obs, actions)
        assert logp.isfinite().all() and entropy.isfinite().all() and entropy.max() < np.log(3)
        assert all(p.isfinite().all() for p in agent.policy.parameters())


def test_what_was_sampled_stays_possible_when_a_mask_by_a_model_changes_its_mind_by_rounding():
    actor = policy(mask=lambda tokens: torch.tensor([[True, False, True, False]]).expand(len(tokens), 4))
    _, logp, _ = actor.evaluate_actions(rows([1]), torch.tensor([3]))
    assert logp.isfinite().all()


def test_without_a_model_it_is_told_where_to_name_it():
    with pytest.raises(SettingError, match=r'model: None does not work; name it: policy_kwargs=\{"model": "'):
        PPO(LanguageModelActorCritic, environment(), device="cpu")


def test_what_does_not_fit_is_refused():
    module, env = tiny.model(vocabulary=4), environment()
    with pytest.raises(SettingError, match="tokenizer"):
        policy(tokenizer=None)
    with pytest.raises(ModelError, match="frozen"):
        policy(model=copy.deepcopy(module).requires_grad_(False))
    with pytest.raises(ModelError, match="give a causal model"):
        policy(model=tiny.model("t5", vocabulary=4))
    with pytest.raises(ModelError, match="its tokenizer has 3 tokens, the environment 4"):
        policy(tokenizer=tiny.word_tokenizer("A", "B"))
    with pytest.raises(ModelError, match="context of 64 tokens is shorter than the environment's 101"):
        policy(environment(max_new_tokens=100))
    with pytest.raises(SettingError, match="a text environment"):
        learner(A2C, gym.make("CartPole-v1"))
    assert env is not None


# The teacher in the reward: what stock SB3 arrives at.

ALPHA = 0.3
REWARD = {"B": 1.0, "C": 0.5}


def score(text: str) -> float:
    return sum(REWARD.get(word, 0.0) for word in text.split()) / 2


def every_text(length: int) -> list[tuple[int, ...]]:
    texts = itertools.product(range(4), repeat=length)
    return list(dict.fromkeys(text[: (*text, 0).index(0) + 1] for text in texts))


def in_order(probabilities, length: int) -> torch.Tensor:
    """The probability of every text, by the distributions of the next token."""
    return torch.stack(
        [
            torch.stack([probabilities((1, *text[:n]))[token] for n, token in enumerate(text)]).prod()
            for text in every_text(length)
        ]
    )


def rewards(length: int) -> torch.Tensor:
    return torch.tensor([score(TOKENIZER.decode([t for t in text if t])) for text in every_text(length)]).double()


def total_variation(p: torch.Tensor, q: torch.Tensor) -> float:
    return float((p - q).abs().sum() / 2)


def teacher_distributions(module):
    lm = LanguageModel(module, TOKENIZER)

    @torch.no_grad()
    def probabilities(prefix):
        return lm.logits(lm.body(input_ids=torch.tensor([prefix])).last_hidden_state[0, -1]).double().softmax(-1)

    return probabilities


def with_entropy_in_the_return(probabilities, length: int) -> torch.Tensor:
    """p_T exp((1-alpha) r / alpha) / Z, of every text."""
    p = in_order(probabilities, length) * ((1 - ALPHA) / ALPHA * rewards(length)).exp()
    return p / p.sum()


def with_entropy_in_the_loss(probabilities, length: int) -> torch.Tensor:
    """Where each token has the entropy of its own distribution as a bonus and answers for no later one's.

    From the last token back: pi(a|s) is in proportion to p_T(a|s) exp(E[what comes later] / alpha), without entropies.
    """
    pi: dict[tuple[int, ...], torch.Tensor] = {}

    def value(prefix: tuple[int, ...]) -> float:
        written = prefix[1:]
        if written and (written[-1] == 0 or len(written) == length):
            return (1 - ALPHA) * score(TOKENIZER.decode([t for t in written if t]))
        later_V = torch.tensor([value((*prefix, token)) for token in range(4)]).double()
        earned_V = ALPHA * probabilities(prefix).log() + later_V
        pi[prefix] = (earned_V / ALPHA).softmax(-1)
        return float(pi[prefix] @ earned_V)

    value((1,))
    return in_order(pi.__getitem__, length)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("algorithm", "length", "ent_coef", "optimum", "learning_rate", "updates"),
    [
        (A2C, 1, ALPHA, with_entropy_in_the_return, 3e-2, 100),
        (A2C, 2, 0.0, with_entropy_in_the_return, 2e-2, 200),
        (PPO, 2, 0.0, with_entropy_in_the_return, 3e-2, 100),
        (A2C, 2, ALPHA, with_entropy_in_the_loss, 3e-2, 100),
    ],
)
def test_the_teachers_reward_and_entropy_arrive_at_their_closed_form(
    algorithm, length, ent_coef, optimum, learning_rate, updates
):
    # GPT-2, since a Llama without absolute places cannot tell A from A A, of which one is a beginning here.
    module, student = (tiny.model("gpt2", vocabulary=4, seed=seed) for seed in (4, 0))
    env = TeacherRewardVecEnv(environment(64, score, max_new_tokens=length), teacher=copy.deepcopy(module), alpha=ALPHA)
    settings = {"n_epochs": 2, "batch_size": 512, "normalize_advantage": False} if algorithm is PPO else {}
    agent = learner(
        algorithm,
        env,
        n_steps=8,
        gamma=1.0,
        gae_lambda=1.0,
        ent_coef=ent_coef,
        learning_rate=lambda remaining: learning_rate * remaining,
        **settings,
        policy={"model": student, "optimizer_class": torch.optim.Adam},
    )
    teacher = teacher_distributions(module)
    expected = optimum(teacher, length)
    assert total_variation(in_order(lambda prefix: distribution(agent, prefix), length), expected) > 0.2
    agent.learn(updates * 512, callback=None if ent_coef else EntropyReward(ALPHA))
    reached = in_order(lambda prefix: distribution(agent, prefix), length)
    if optimum is with_entropy_in_the_return:
        assert total_variation(reached, expected) < 0.03
    else:  # another place than the optimum of Eq. 5; its advantages do not vanish there, so more noise is left
        assert total_variation(reached, expected) < 0.05
        assert total_variation(reached, with_entropy_in_the_return(teacher, length)) > 0.2


def test_an_entropy_bonus_in_the_loss_shuns_prefixes_behind_which_the_teacher_is_undecided():
    def undecided_behind_a(prefix):
        first, behind_a, else_ = [1e-9, 0.5, 0.5, 1e-9], [0.25] * 4, [1.0, 1e-9, 1e-9, 1e-9]
        return torch.tensor({(1,): first, (1, 1): behind_a}.get(prefix, else_)).double()

    shares = [
        float(sum(p for text, p in zip(every_text(2), optimum(undecided_behind_a, 2), strict=True) if text[0] == 1))
        for optimum in (with_entropy_in_the_loss, with_entropy_in_the_return)
    ]
    assert shares[0] < 0.5 * shares[1]


def test_the_weight_of_the_entropy_is_checked():
    with pytest.raises(SettingError, match="alpha: -1"):
        EntropyReward(-1.0)


THEORY = {"gamma": 1.0, "gae_lambda": 1.0, "normalize_advantage": False}


def guided(kind: str, alpha: float):
    """Stock SB3's environment with a teacher in the reward, in each of the two places."""
    if kind == "vector":
        return TeacherRewardVecEnv(environment(4), teacher=tiny.model(vocabulary=4), alpha=alpha)
    alone = TextGenerationEnv(environment().task)
    return DummyVecEnv([lambda: Monitor(TeacherReward(alone, teacher=tiny.model(vocabulary=4), alpha=alpha))])


@pytest.mark.parametrize("kind", ["vector", "scalar"])
def test_two_weights_of_the_teacher_are_refused_before_training(kind):
    agent = learner(A2C, guided(kind, 0.3), n_steps=4, **THEORY)
    with pytest.raises(SettingError, match=r"alpha: 0\.2 does not work; the environment.s TeacherReward has 0\.3"):
        agent.learn(4, callback=EntropyReward(0.2))
    assert agent.num_timesteps == 0
    agent.learn(4, callback=EntropyReward(0.3))  # without a warning, which would be an error here


@pytest.mark.parametrize(
    ("name", "value"), [("gamma", 0.99), ("gae_lambda", 0.95), ("normalize_advantage", True), ("ent_coef", 0.1)]
)
def test_what_is_off_the_theory_of_the_entropys_place_is_said(name, value):
    agent = learner(PPO, guided("vector", 0.3), n_steps=4, batch_size=16, n_epochs=1, **THEORY | {name: value})
    with pytest.warns(UserWarning, match=f"^{name}: {value} is off the theory of EntropyReward; .*: set it to") as said:
        agent.learn(4, callback=EntropyReward(0.3))
    assert len(said) == 1


# Who knows nothing but Gymnasium.


def test_a_plain_policy_gradient_loop_learns_from_an_id_alone():
    settings = {"task": tiny.WordTask(TOKENIZER, lambda text: float(text == "B A"), prompts=("A", "C"))}
    gym.register(
        id="tiny/Words-v0",
        entry_point="rlgkd.envs.text_env:TextGenerationEnv",
        vector_entry_point="rlgkd.envs.vector_env:TextVectorEnv",
        kwargs=settings,
        order_enforce=False,
    )
    env = gym.make_vec("tiny/Words-v0", num_envs=32)
    generator = torch.Generator().manual_seed(0)
    width, vocabulary = env.single_observation_space.shape[0], int(env.single_action_space.n)
    table = torch.zeros(width + 1, vocabulary, vocabulary, requires_grad=True)  # by length and last token
    optimizer = torch.optim.Adam([table], lr=0.1)

    means: list[float] = []
    for _ in range(60):
        observations, _ = env.reset(seed=0 if not means else None)
        writing_N, logp_N, reward_N = torch.ones(32), torch.zeros(32), torch.zeros(32)
        while writing_N.any():
            tokens = torch.from_numpy(observations)
            length = (tokens >= 0).sum(1)
            next_token = torch.distributions.Categorical(logits=table[length, tokens[torch.arange(32), length - 1]])
            actions = torch.multinomial(next_token.probs, 1, generator=generator)[:, 0]
            observations, rewards, over, _, _ = env.step(actions.numpy())
            logp_N = logp_N + writing_N * next_token.log_prob(actions)
            reward_N += writing_N * torch.from_numpy(rewards)
            writing_N = writing_N * torch.from_numpy(~over)  # what comes behind belongs to the next text
        optimizer.zero_grad()
        (-(reward_N - reward_N.mean()) * logp_N).mean().backward()
        optimizer.step()
        means.append(float(reward_N.mean()))
    assert means[0] < 0.1 and np.mean(means[-5:]) > 0.9

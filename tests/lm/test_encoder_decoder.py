"""T5 as a policy: the same values as its own forward pass and `generate`, and training by every agent."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tiny
import torch
from gradients import accumulate
from transformers import BartConfig, BartForConditionalGeneration

from rlgkd.agents import GRPO, PPO, Distill, Reinforce
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import DataError, ModelError
from rlgkd.lm import decode, language_model, load
from rlgkd.lm.model import LanguageModel
from rlgkd.objective import Objective
from rlgkd.ops.sampling import uniforms
from rlgkd.rollout import rollout
from rlgkd.types import Batch

TOKENIZER = tiny.word_tokenizer("A", "B", "C")
PROMPTS = ("A", "B C", "C A B A", "B")
END = 0


def t5(seed: int = 0, **settings):
    return tiny.model("t5", vocabulary=4, seed=seed, **settings)


def policy(seed: int = 0, temperature: float = 1.0, **settings) -> LanguageModel:
    return language_model(t5(seed, **settings), TOKENIZER, temperature=temperature)


def task(**settings) -> tiny.WordTask:
    settings = {"prompts": PROMPTS, "references": ("B A",) * 4, "max_new_tokens": 5, **settings}
    return tiny.WordTask(TOKENIZER, lambda text: float(text.startswith("B")), **settings)


def trajectories(lm: LanguageModel, **settings):
    words = task()
    return rollout(lm, words, [words.item("train", 0, n) for n in range(4)], **settings)


def own_logp(lm: LanguageModel, t) -> torch.Tensor:
    """[L, V], by the module's own forward pass, one text at a time."""
    prompt, completion = t.tokens_T[~t.action_mask_T].tolist(), t.tokens_T[t.action_mask_T].tolist()
    output = lm.module(
        input_ids=torch.tensor([[*prompt, END]]), decoder_input_ids=torch.tensor([[0, *completion[:-1]]])
    )
    return (output.logits[0] / lm.temperature).log_softmax(-1)


@pytest.mark.parametrize(("kind", "tied"), [("t5", True), ("t5", False), ("mt5", True), ("umt5", True)])
def test_sampled_and_scored_log_probabilities_equal_the_modules_own(kind, tied):
    module = tiny.model(kind, vocabulary=4)
    if not tied:  # as Flan-T5: a separate head, and no scaling
        module.config.tie_word_embeddings = module.config.scale_decoder_outputs = False
        module.lm_head.weight = torch.nn.Parameter(0.3 * torch.randn(4, 16, generator=torch.Generator().manual_seed(1)))
    lm = language_model(module, TOKENIZER, temperature=1.3)
    texts = trajectories(lm, group=3, seed=1)
    assert (kind, tied) != ("t5", True) or len({t.length for t in texts}) > 2
    batch = Batch.collate(texts, pad=0)
    with torch.no_grad():
        logp_NV = lm.logits(lm.states(batch)).log_softmax(-1)
        unknown_NV = lm.logits(lm.states(dataclasses.replace(batch, layouts_B=()))).log_softmax(-1)
        assert torch.equal(logp_NV, unknown_NV)
        expected_NV = torch.cat([own_logp(lm, t) for t in texts])
    torch.testing.assert_close(logp_NV, expected_NV, atol=1e-5, rtol=1e-5)
    scored_N = expected_NV.gather(1, lm.actions(batch)[:, None])[:, 0]
    torch.testing.assert_close(batch.logp_BT[batch.action_mask_BT], scored_N, atol=1e-5, rtol=1e-5)


def test_greedy_decoding_equals_generate_and_a_sample_does_not_depend_on_its_batch():
    lm, prompts = policy(), [TOKENIZER(prompt)["input_ids"] for prompt in PROMPTS]
    together = decode(lm, prompts, uniforms_BT=None, max_new_tokens=6)
    for prompt, completion in zip(prompts, together, strict=True):
        ids = lm.module.generate(torch.tensor([[*prompt, END]]), max_new_tokens=6, do_sample=False)
        expected = ids[0, 1:].tolist()
        assert completion.ids == expected
    u_BT = np.stack([uniforms(0, prompt, g, 6) for prompt in PROMPTS for g in range(2)])
    grouped = decode(lm, prompts, uniforms_BT=u_BT, group=2, max_new_tokens=6)
    for row, completion in enumerate(grouped):
        (alone,) = decode(lm, [prompts[row // 2]], uniforms_BT=u_BT[row : row + 1], max_new_tokens=6)
        assert completion.ids == alone.ids
        np.testing.assert_allclose(completion.logp, alone.logp, atol=1e-5)


def test_prefill_with_completions_continues_as_token_by_token():
    lm, prompts = policy(), [[1], [2, 3, 1], [3]]
    completions = [[2, 2], [], [1]]
    states_BH, state = lm.prefill(prompts, completions)
    next_BH = lm.advance(torch.tensor([1, 2, 3]), state)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        with torch.no_grad():
            alone, own_state = lm.prefill([prompt])
            for token in completion:
                alone = lm.advance(torch.tensor([token]), own_state)
            torch.testing.assert_close(states_BH[row], alone[0], atol=1e-5, rtol=1e-5)
            alone = lm.advance(torch.tensor([row + 1]), own_state)
            torch.testing.assert_close(next_BH[row], alone[0], atol=1e-5, rtol=1e-5)


def test_the_gradient_follows_the_formula_and_does_not_depend_on_micro_batches():
    student, teacher = (language_model(t5(seed).double(), TOKENIZER) for seed in (0, 1))
    texts = trajectories(student, group=2)
    objective = Objective(alpha=0.3, divergence_reduction="token_mean", policy_reduction="token_mean")
    advantages_B1 = torch.arange(8.0)[:, None] - 3

    def gradient(token_budget: int) -> torch.Tensor:
        student.module.zero_grad()
        accumulate(objective, student, teacher, texts, advantages_B1, token_budget=token_budget)
        return torch.cat([p.grad.flatten() for p in student.module.parameters()])

    whole = gradient(10**6)
    torch.testing.assert_close(gradient(12), whole, atol=1e-9, rtol=1e-6)
    loss, tokens = 0.0, sum(t.length for t in texts)
    for t, advantage in zip(texts, advantages_B1[:, 0].tolist(), strict=True):
        log_q, log_p = own_logp(student, t), own_logp(teacher, t).detach()
        chosen = torch.from_numpy(t.tokens_T[t.action_mask_T])[:, None]
        loss = loss - 0.7 * advantage * log_q.gather(1, chosen).sum() / tokens
        loss = loss + 0.3 * (log_q.exp() * (log_q - log_p)).sum() / tokens
    student.module.zero_grad()
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in student.module.parameters()])
    torch.testing.assert_close(whole, expected, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize(
    ("algorithm", "settings"),
    [(Reinforce, {}), (GRPO, {"epochs": 2}), (PPO, {"epochs": 2}), (Distill, {"alpha": None, "student_fraction": 0.5})],
)
def test_every_agent_trains_t5_under_t5(algorithm, settings, tmp_path):
    agent = algorithm(
        t5(), TextVecEnv(task(), num_envs=2), **{"teacher": t5(1), "alpha": 0.2, "learning_rate": 1e-2, **settings}
    )
    agent.learn(6000)
    texts = rollout(agent.student, agent.task, [agent.task.item("train", 0, 0)], group=64)
    if algorithm is Distill:
        batch = Batch.collate(texts, pad=0)
        with torch.no_grad():
            log_q, log_p = (lm.logits(lm.states(batch)).log_softmax(-1) for lm in (agent.student, agent.teacher))
        assert (log_q.exp() * (log_q - log_p)).sum(-1).mean() < 0.1
    else:
        assert np.mean([t.score.reward for t in texts]) > 0.8
    agent.save(tmp_path / "agent")
    opened = load(tmp_path / "agent")
    assert opened.config.model_type == "t5"
    again = algorithm.load(tmp_path / "agent", env=TextVecEnv(task(), num_envs=2), teacher=t5(1))
    assert again.generate(["A", "B C"]) == agent.generate(["A", "B C"])


def test_predict_knows_where_each_rows_prompt_ended_while_others_restart():
    env = TextVecEnv(task(max_new_tokens=4), num_envs=3)
    agent = Reinforce(t5(), env, alpha=0.0)
    env.seed(0)
    observations = env.reset()
    prompts = [row[row >= 0].tolist() for row in observations]
    mixed = 0
    for step in range(12):
        texts = [row[row >= 0].tolist() for row in observations]
        completions = [text[len(prompt) :] for prompt, text in zip(prompts, texts, strict=True)]
        mixed += len({len(completion) for completion in completions}) > 1
        alone = [agent.student.prefill([p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
        with torch.no_grad():
            expected = agent.student.logits(torch.cat(alone)).argmax(-1).tolist()
        actions, _ = agent.predict(observations, deterministic=True)
        assert actions.tolist() == expected
        observations, _, dones, _ = env.step(np.where(np.arange(3) == step % 3, END, np.maximum(actions, 1)))
        for row in np.flatnonzero(dones):
            prompts[row] = observations[row][observations[row] >= 0].tolist()
    assert mixed > 4


def test_several_turns_and_other_families_are_refused():
    lm = policy()
    (t, *_) = trajectories(lm)
    gap = np.array([*t.action_mask_T, False, True])
    longer = dataclasses.replace(
        t,
        tokens_T=np.array([*t.tokens_T, 1, 2]),
        action_mask_T=gap,
        logp_T=np.zeros(len(gap)),
        entropy_T=np.zeros(len(gap)),
    )
    with pytest.raises(DataError, match="turns"):
        lm.states(Batch.collate([longer], pad=0))
    shape = {"vocab_size": 4, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16}
    config = BartConfig(
        **shape,
        decoder_ffn_dim=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        pad_token_id=0,
        bos_token_id=0,
        eos_token_id=0,
        decoder_start_token_id=0,
        forced_eos_token_id=None,
    )
    bart = BartForConditionalGeneration(config)
    with pytest.raises(ModelError, match="t5"):
        language_model(bart, TOKENIZER)

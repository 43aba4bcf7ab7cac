"""Reinforcement learning with distillation in the objective: the whole method in one file, to be read from the top.

The objective is Eq. 5 of GKD (Agarwal et al., ICLR 2024, arXiv 2306.13649), on texts y that the student samples:

    J(theta) = E_x [ (1-alpha) E_{y~p_S} r(x,y)  -  alpha E_{y~p_S} D(p_T || p_S)(y|x) ]

Each update samples a group of texts for each of some prompts, scores them, and takes one step down

    L = (1-alpha) sum_n w_n (-A_n log p_S(y_n))  +  alpha sum_n v_n D_n

over the actions n, which are the sampled tokens of all B texts. A_n is the text's reward minus the mean reward of the
other texts of its group (RLOO, Ahmadian et al. 2024, arXiv 2402.14740), D_n the divergence between teacher and student
over the whole vocabulary, w_n = 1/B and v_n = 1/(B L) for a text of L actions.

    python examples/from_scratch.py    # 20 updates of the embedded models, some 12 seconds on one core

The updates equal those of `rlgkd.agents.Reinforce` with the same settings (tests/test_from_scratch.py). Left out are:

- Micro-batches and the head fused with the loss. They save memory and change no number beyond rounding; here the logits
  of all actions are in memory at once.
- Off-policy texts, sampled divergences, schedules, an entropy bonus: further terms and estimators of the same loss.
- Several steps on the same texts, and so importance ratios, which are all 1 in the first step.
- Rewards that fail, wait for a server or score single tokens, and episodes of several turns: the method is the same.
- Devices, mixed precision, logging, checkpoints and the interface of Stable-Baselines3.

Tensor names end with their dimensions: P prompt, G sample of a group, B text, T token, N action, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlgkd.lm import LanguageModel, decode, language_model, load, load_tokenizer
from rlgkd.ops import divergence, policy_loss, reduction, returns
from rlgkd.ops.sampling import uniforms
from rlgkd.types import Batch, Task


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Names and defaults are those of `Reinforce`, but for a learning rate at which 20 updates show an effect."""

    env: str = "rlgkd/GroundedSummary-v0"
    student: str = "embedded:grounded-student"
    teacher: str = "embedded:grounded-teacher"
    alpha: float = 0.5
    divergence: str = "reverse_kl"
    updates: int = 20
    prompts_per_update: int = 16
    group_size: int = 4
    learning_rate: float = 1e-3
    max_grad_norm: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Update:
    """The texts of one update, its loss, and their mean divergence (in nats) and reward."""

    texts: list[str]
    loss: float
    divergence: float
    reward: float


def train(settings: Settings, task: Task, student: LanguageModel, teacher: LanguageModel) -> Iterator[Update]:
    """Train the student in place; yields after each step of the optimizer."""
    limit = task.max_new_tokens
    group = settings.group_size
    weights = list(student.module.parameters())
    optimizer = torch.optim.AdamW(weights, lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
    for update in range(settings.updates):
        # 1. Take the next prompts from the stream of items, whose order belongs to the seed.
        indices = range(update * settings.prompts_per_update, (update + 1) * settings.prompts_per_update)
        items = [task.item("train", settings.seed, index) for index in indices]
        prompts = [task.encode_prompt(item) for item in items]

        # 2. Sample a group of texts for each prompt. The random numbers belong to the seed, the stream index and key of
        # the item, and the number of the sample, so a text does not depend on what else is sampled with it.
        streams = [f"{index}/{item.key}" for index, item in zip(indices, items, strict=True)]
        uniforms_BT = np.stack([uniforms(settings.seed, stream, g, limit) for stream in streams for g in range(group)])
        completions = decode(student, prompts, uniforms_BT=uniforms_BT, group=group, max_new_tokens=limit)

        # 3. Score the texts, and compare each with the others of its group.
        texts = [task.decode_completion(completion.ids) for completion in completions]
        scores = task.score([item for item in items for _ in range(group)], texts)
        reward_PG = torch.tensor([score.reward for score in scores], dtype=torch.float64).view(-1, group)
        advantage_PG = returns.leave_one_out(reward_PG, torch.ones_like(reward_PG, dtype=torch.bool))

        # 4. Form the loss of Eq. 5, and take one step down its gradient.
        batch = collate([prompt for prompt in prompts for _ in range(group)], [c.ids for c in completions], student.pad)
        loss, mean_divergence = eq5_loss(settings, student, teacher, batch, advantage_PG.flatten().float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, settings.max_grad_norm, error_if_nonfinite=True)
        optimizer.step()
        optimizer.zero_grad()
        yield Update(texts, loss.item(), mean_divergence.item(), reward_PG.mean().item())


def eq5_loss(
    settings: Settings, student: LanguageModel, teacher: LanguageModel, batch: Batch, advantage_B: Tensor
) -> tuple[Tensor, Tensor]:
    """The loss L of the file's head, and the mean divergence of the texts in nats."""
    student_logp_NV = student.logits(student.states(batch)).log_softmax(-1)
    with torch.no_grad():
        teacher_logp_NV = teacher.logits(teacher.states(batch)).log_softmax(-1)
    logp_N = student_logp_NV.gather(1, student.actions(batch)[:, None])[:, 0]
    divergence_N = divergence.get(settings.divergence)(teacher_logp_NV, student_logp_NV)

    # The gradient of E[r] sums over a text's actions, the paper's divergence averages over them.
    lengths_B = batch.action_mask_BT.sum(1)
    sequences, tokens = reduction.totals(lengths_B)
    w_B = reduction.weights("sequence_sum", lengths_B, total_sequences=sequences, total_tokens=tokens)
    v_B = reduction.weights("sequence_mean", lengths_B, total_sequences=sequences, total_tokens=tokens)
    text_N = torch.arange(len(lengths_B)).repeat_interleave(lengths_B)  # the row of each action
    policy = (w_B[text_N] * policy_loss.reinforce(logp_N, advantage_B[text_N])).sum()
    distillation = (v_B[text_N] * divergence_N).sum()
    return (1 - settings.alpha) * policy + settings.alpha * distillation, distillation.detach()


def collate(prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]], pad: int) -> Batch:
    """Put prompts and completions into right-padded rows; the actions are the completions' tokens."""
    rows = [torch.tensor([*prompt, *ids]) for prompt, ids in zip(prompts, completions, strict=True)]
    tokens_BT = pad_sequence(rows, batch_first=True, padding_value=pad)
    column_T = torch.arange(tokens_BT.shape[1])
    text_BT = column_T < torch.tensor([[len(row)] for row in rows])
    action_BT = text_BT & (column_T >= torch.tensor([[len(prompt)] for prompt in prompts]))
    logp_BT = torch.zeros(tokens_BT.shape)  # those of sampling, which only importance ratios need
    return Batch(tokens_BT=tokens_BT, attention_mask_BT=text_BT.long(), action_mask_BT=action_BT, logp_BT=logp_BT)


def main(settings: Settings) -> None:
    """Open task, student and teacher, train, and print each update."""
    task: Task = gym.make(settings.env).get_wrapper_attr("task")  # any import from rlgkd registers its environments
    student = language_model(load(settings.student), load_tokenizer(settings.student))
    teacher = language_model(load(settings.teacher).requires_grad_(False), load_tokenizer(settings.teacher))
    print("update     loss  divergence  reward")
    for number, update in enumerate(train(settings, task, student, teacher), start=1):
        print(f"{number:6}  {update.loss:7.4f}  {update.divergence:10.4f}  {update.reward:6.3f}")


if __name__ == "__main__":
    main(Settings())

"""Every setting of the agents, once: its type and range, its default, and the sentence under it.

From these classes follow the constructors' signatures and `Args:` (agents/_signature.py), docs/settings.md, and what a
YAML file and the command line take. The knobs of Eq. 5 are in rlgkd/objective.py, those of a sampler that is elsewhere
in sampler_settings.py, and an algorithm's own in its own file (grpo.py, ppo.py, ...).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BeforeValidator

from rlgkd.agents.sampler_settings import SamplerSettings
from rlgkd.objective import Fraction, Objective
from rlgkd.ops import behaviour_policy, gate
from rlgkd.ops.returns import ADVANTAGES, Advantage, check_advantage
from rlgkd.ops.schedule import Schedule
from rlgkd.ops.teacher_mixture import Mix
from rlgkd.settings import Moving, Registered, Scheduled, Settings, Variant, span
from rlgkd.sharding import How


def _advantage(name: str) -> Advantage:
    check_advantage(name, 2, 2)
    return ADVANTAGES[name]


SPANNED = ("sampled", "k2", "k3")
"""Estimators that see a teacher by the log-probability of what was written alone."""
ADVANTAGE = Registered("advantage", ADVANTAGES, _advantage)
BEHAVIOUR = Registered("behaviour", behaviour_policy.BEHAVIOURS, behaviour_policy.get)
Count = Annotated[int, Ge(1)]
Positive = Annotated[float, Gt(0)]
PathText = Annotated[str, BeforeValidator(lambda path: str(path) if isinstance(path, Path) else path)]


class SamplingSettings(Settings):
    """Which texts an update is made of, and how they are decoded."""

    prompts_per_update: Count = 16
    """Prompts of one update."""
    group_size: Count = 4
    """Samples of each prompt; for larger models chosen by the job, if not given (docs/defaults.md)."""
    train_prompts: Count | None = None
    """Train on this many prompts alone, again and again; null takes as many as come."""
    prompts_by: Literal["order", "pass_rate"] = "order"
    """Which prompts are drawn: all in their order, or more often those whose texts are right sometimes (pass_rate)."""
    passed_from: float = 0.5
    """The reward from which a text is right for prompts_by."""
    pass_rate_floor: Annotated[float, Ge(0.01), Le(1)] = 0.1
    """The least chance of a prompt to be drawn by prompts_by when it comes; 1 draws all."""
    temperature: Positive = 1.0
    """The student's, in sampling and scoring alike."""
    teacher_temperature: Positive = 1.0
    """The teacher's, in scoring and where it generates."""
    mixture: Literal["batch", "prompt"] = "batch"
    """Granularity at which on-policy or off-policy texts are drawn: for each batch (the paper's) or each prompt."""
    off_policy: Literal["references", "teacher"] = "references"
    """What the off-policy texts are: the references, or texts that the teacher generates."""
    off_policy_from: float | None = None
    """The reward from which an off-policy text is learned from, and others are left out; null learns from all."""
    teacher_texts: PathText | None = None
    """File that keeps the teacher's texts, one for each prompt; null generates them again each time."""
    behaviour: Annotated[Variant | None, BEHAVIOUR] = None
    """Who samples together with the student (rlgkd list behaviours); null is the student alone."""
    rows_at_once: Count | None = None
    """Texts that are decoded at a time: bounds the KV cache and changes nothing else; null is all of an update."""
    replay_size: Annotated[int, Ge(0)] = 0
    """Prompts whose texts are kept, the newest ones, to be learned from again; 0 keeps none."""
    replay_prompts: Count = 4
    """How many of them join each update."""
    replay_terms: Literal["divergence", "both"] = "divergence"
    """What is learned from their texts: the divergence, or the policy term too, by importance ratios (both)."""
    compile_decoding: bool = False
    """Compile the decode step of the Llama family's models with torch.compile, on CUDA as a graph."""


class RewardSettings(Settings):
    """How task rewards become advantages."""

    advantage: Annotated[Variant, ADVANTAGE] = ADVANTAGE("leave_one_out")
    """What rewards become (rlgkd list advantages)."""
    drop_even_groups: bool | Literal["resample"] = False
    """Leave a prompt whose samples all earned the same out of the policy term's mean; resample draws another one."""
    resample_rounds: Count = 4
    """How often at most an update draws other prompts for those that resample discards."""
    distil_even_groups: bool = False
    """Whether the texts that resample discards are distilled still."""
    overlong_buffer: Annotated[int, Ge(0)] = 0
    """Last tokens before the length limit, over which a penalty grows to 1; 0 is none."""
    normalise_rewards: bool = False
    """Divide rewards by the standard deviation of all that were seen so far."""
    combination: Literal["in_loss", "in_reward"] = "in_loss"
    """Where the divergence joins the reward: as a term of the loss, or as a cost in the reward, as RLHF has it."""


class TeacherSettings(Settings):
    """How the teacher is opened, and how it and its weight change by themselves."""

    teacher_dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    """Precision of the teacher's weights; auto leaves that of its files, or of a given module."""
    teacher_quantization: Literal["8bit", "4bit"] | None = None
    """Bits of the weights of a teacher that is opened by name, by bitsandbytes; null is those of teacher_dtype."""
    teacher_tokens: Literal["same", "spans", "map"] = "same"
    """The teacher's tokens: the student's, or others, compared over spans of the same bytes or by a map."""
    teacher_map: PathText | None = None
    """File of the map of teacher_tokens, as rlgkd align writes it; null makes the map at the start."""
    teacher_device: str | None = None
    """Where the teacher is, such as cuda:1 or cpu; auto spreads it over all devices; null is where the student is."""
    divergence_target: Positive | None = None
    """Nats at which the divergence is held by steering alpha; null leaves alpha alone."""
    alpha_rate: Positive = 0.1
    """The most that the log-odds of a steered alpha move at an update."""
    teacher_decay: Fraction | None = None
    """Share of the teacher that stays at each step, the rest becomes the student's; null leaves the teacher alone."""
    teacher_prompt: Annotated[str, MinLen(1)] | None = None
    """Prompt of a teacher that sees more, a column or "{prompt} {hint}"; sibling: with a right text of the group."""
    teacher_column: Annotated[str, MinLen(1)] = "source"
    """The column of an item that names its teacher, where teacher is a mapping of names to models."""
    teacher_mix: Mix | None = None
    """Make one teacher of all in the mapping, for every text: a product or a sum of theirs; null: each text has one."""
    teacher_weights: dict[str, float] | None = None
    """Exponents in the product, or shares in the sum, by name; null: all count alike."""
    reference_model: str | None = None
    """A third model R: the teacher is then p_T^l p_R^(1-l), normalised, with l the extrapolation; self is the start."""
    extrapolation: Positive = 1.25
    """How far the teacher is followed away from reference_model: 1 is the teacher itself, more goes beyond it."""
    sibling_from: float = 0.5
    """The reward from which a text is right, and teacher_prompt shows it to the teacher of its group's other texts."""
    teacher_probes: Count = 3
    """How often the teacher answers a prompt by itself, for a gate that asks how good its answers are."""
    agreement_every: Annotated[int, Ge(0)] = 10
    """Updates between two looks at where student and teacher agree (docs/runs.md); 0 is never."""
    teacher_timeout: Positive = 60.0
    """Seconds for a served teacher's answer for one text, in each try."""
    teacher_retries: Annotated[int, Ge(0)] = 3
    """Further tries if a served teacher does not answer: after 1 s, then 2 s, 4 s, and so on."""
    teacher_requests: Count = 16
    """Texts that a served teacher is asked for at once."""
    max_failed_teacher: Fraction = 0.1
    """Share of the texts for which a served teacher may fail before the run stops; each of them has no divergence."""


class OptimizerSettings(Settings):
    """The steps of AdamW."""

    learning_rate: Positive | Callable[[float], float] = 1e-4
    """AdamW's; for larger models chosen if not given (docs/defaults.md). In Python also a function of the progress."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Weight decay of matrices; biases and norms have none."""
    max_grad_norm: Positive = 1.0
    """The gradient is scaled down to this norm."""
    epochs: Count = 1
    """Steps of the optimizer on each rollout."""
    token_budget: Count = 16384
    """Tokens of one micro-batch, padding included: bounds the memory and changes nothing else (docs/defaults.md)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is mixed precision, which larger models take on accelerators if it is not given (docs/defaults.md)."""
    gradient_norms_every: Annotated[int, Ge(0)] = 50
    """Updates between two measurements of both terms' gradient norms, at the cost of two passes; 0 is never."""


class ModelSettings(Settings):
    """Which weights of the student are trained, and how they are kept."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of the student's weights; adapters are in float32 in either."""
    saved_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Precision of the weights in saved folders (checkpoints stay exact); null is that of `dtype`."""
    student_layers: tuple[Annotated[int, Ge(0)], ...] | Count = ()
    """Keep only these layers of the student, or so many, chosen as `rlgkd cut` does; all where empty."""
    lora_rank: Annotated[int, Ge(0)] = 0
    """Train LoRA adapters of this rank and leave the model frozen; 0 trains the whole student."""
    lora_alpha: Count | None = None
    """The adapters are scaled by lora_alpha / lora_rank; null is twice the rank."""
    save_adapter: bool = False
    """Save the adapter also by itself, as peft does, in the folder `adapter` next to the merged weights."""
    sharding: How = "none"
    """Each of several processes holds a share of weights and optimizer: full, or hybrid, within its machine; or all."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: a third more work in an update, for much less memory."""


class AgentSettings(Settings):
    """The settings of an agent, and what follows from them; `AlgorithmConfig` refuses combinations that do not work."""

    alpha: Annotated[Moving, Scheduled()] = Schedule(Objective.model_fields["alpha"].default)
    """Weight of the divergence in Eq. 5: 0 is pure reinforcement learning, 1 pure distillation."""
    student_fraction: Annotated[Moving, Scheduled()] = Schedule(Objective.model_fields["student_fraction"].default)
    """The paper's lambda: probability that a batch is sampled from the student; else it comes from data."""
    objective: Objective = Objective()
    reward: RewardSettings = RewardSettings()
    teacher: TeacherSettings = TeacherSettings()
    sampling: SamplingSettings = SamplingSettings()
    served: SamplerSettings = SamplerSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    model: ModelSettings = ModelSettings()

    def objective_at(
        self, remaining: float, *, alpha: float | None = None, student_fraction: float | None = None
    ) -> Objective:
        """Eq. 5 at this remaining progress, 1 at the start and 0 at the end; what is given replaces the schedule's."""
        now = {
            "alpha": self.alpha(remaining) if alpha is None else alpha,
            "student_fraction": self.student_fraction(remaining) if student_fraction is None else student_fraction,
        }
        return self.objective.model_copy(update=now)

    def loss_objective(self, objective: Objective) -> Objective:
        """The objective used in the loss: with `in_reward` the divergence is in the reward, so alpha is 0 here."""
        in_reward = self.reward.combination == "in_reward"
        return objective.model_copy(update={"alpha": 0.0}) if in_reward else objective

    @property
    def recomputes_log_probabilities(self) -> bool:
        """Whether log-probabilities are computed again as training forms them.

        In bfloat16 those of sampling differ by its rounding, which a tight clip range would mistake for a policy that
        has moved.
        """
        mixed = self.optimizer.precision == "bfloat16" and not self.served.sampler  # whose own are looked at anyway
        return mixed and self.objective.policy_loss.name != "reinforce" and self.sampling.behaviour is None

    @property
    def asks_teacher_answers(self) -> bool:
        """Whether the gate asks how good the teacher's own answers are."""
        return gate.cost(self.objective.gate.name) == "answers"

    @property
    def rewarded(self) -> bool:
        """Whether the task's reward counts at any time."""
        return span(self.alpha)[0] < 1 or self.reward.combination == "in_reward"

    @property
    def needs_ratios(self) -> bool:
        """Whether a term weighs what was sampled, so that it must know by which policy."""
        objective = self.objective
        sampled = objective.estimator in ("sampled", "sampled_centred", "asymmetric", "fixed_negative")
        return self.rewarded or objective.horizon > 0 or (sampled and not objective.cross_entropy)

    @property
    def known_tokens(self) -> int | None:
        """How many of the teacher's top tokens the divergence sees: 0 is the written one alone, None is all."""
        objective = self.objective
        by_the_written_token = objective.cross_entropy or objective.estimator in SPANNED
        return 0 if by_the_written_token else objective.teacher_top_k

"""Every setting of the agents, once: its type and range, its default, and the sentence under it.

From these classes follow the constructors' signatures and `Args:` (agents/_signature.py), docs/settings.md, and what a
YAML file and the command line take. An algorithm's own defaults are in its own file (grpo.py, ppo.py, ...).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from warnings import warn

from annotated_types import Ge, Gt, Le, MinLen
from pydantic import BeforeValidator, model_validator

from rlgkd.agents.sampler_settings import SamplerSettings
from rlgkd.errors import SettingError
from rlgkd.objective import Fraction, Objective
from rlgkd.ops import behaviour_policy, gate
from rlgkd.ops.returns import ADVANTAGES, Advantage, check_advantage
from rlgkd.ops.schedule import Schedule
from rlgkd.ops.teacher_mixture import Mix
from rlgkd.settings import Moving, Registered, Scheduled, Settings, Variant, span
from rlgkd.sharding import How
from rlgkd.teachers.names import SELF, is_address, is_outside, is_self, is_teacher_file
from rlgkd.types import reads_sibling


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
    """The teacher's tokens: the student's, or others, of which bytes (spans) or, mapped, all probabilities are seen."""
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
    """Of AdamW; for larger models chosen if not given (docs/defaults.md). In Python also a function of the progress."""
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


class AlgorithmConfig(Settings):
    """What every agent takes."""

    owner = "TextAlgorithm"

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

    def check_teacher(self, teacher: object) -> None:
        """Refuse None for a teacher where these settings need one, and a server or file where they need a model.

        Raises: SettingError.
        """
        if teacher is not None:
            if is_outside(name := str(teacher) if isinstance(teacher, Path) else teacher):
                self._check_outside_teacher(str(name))
            if is_self(teacher):
                self._check_self()
            self._check_several(teacher if isinstance(teacher, Mapping) else None)
            return
        least, most = span(self.alpha)
        if most > 0 and self.objective.needs_teacher:
            without = ", or alpha=0" if least < 1 else ""  # at alpha 1 nothing else is trained on
            raise SettingError("teacher", None, f"alpha is {most:g}: set teacher=...{without}")
        if gate.cost(self.objective.gate.name) != "nothing":
            name = self.objective.gate.name
            raise SettingError("teacher", None, f"the gate {name} reads it: set teacher=..., or gate=none")
        for field in ("teacher_decay", "teacher_prompt", "reference_model"):
            if (value := getattr(self.teacher, field)) is not None:
                raise SettingError(field, value, f"give a teacher; the student itself would do: teacher={SELF}")
        self._check_several(None)
        for name, wanted in (("off_policy", self.sampling.off_policy), ("behaviour", self.sampling.behaviour)):
            if wanted not in ("references", None):
                raise SettingError(name, getattr(wanted, "name", wanted), "give a teacher, who generates these texts")

    def _check_self(self) -> None:
        """Refuse settings of a model of its own for the student itself.

        Raises: SettingError.
        """
        given, model = self.teacher, self.model
        for name, wrong, remedy in (
            ("teacher_dtype", given.teacher_dtype != model.dtype,
             f"teacher={SELF} has the student's precision: set it to {model.dtype}"),
            ("teacher_quantization", given.teacher_quantization is not None,
             f"teacher={SELF} is the student as it is: leave it out, or name the model"),
            ("teacher_decay", given.teacher_decay not in (None, 0) and model.lora_rank > 0,
             "an average of adapters is not kept; set it to 0, the student as it is, or leave one of them out"),
        ):  # fmt: skip
            if wrong:
                raise SettingError(name, getattr(given, name), remedy)

    def _check_several(self, teachers: Mapping[str, object] | None) -> None:
        """Refuse what does not go with several teachers, and what only they take; None is one teacher or none.

        Raises: SettingError.
        """
        given, sampling, plain = self.teacher, self.sampling, TeacherSettings()
        if teachers is not None and not teachers:
            raise SettingError("teacher", teachers, "give a mapping of names to models")
        for name, model in (teachers or {}).items():
            if is_outside(str(model) if isinstance(model, Path) else model):
                raise SettingError("teacher", {name: model}, "several teachers are models by names; give models")
            if is_self(model):
                self._check_self()
        is_mixture = given.teacher_mix is not None or given.reference_model is not None
        weights, routed = given.teacher_weights, teachers is not None and given.teacher_mix is None
        no_one_model = is_mixture or routed
        for name, wrong, remedy in (
            ("teacher_column", given.teacher_column != plain.teacher_column and not routed,
             "it is of several teachers; give teacher a mapping of names to models"),
            ("teacher_mix", given.teacher_mix is not None and teachers is None,
             "it is of several teachers; give teacher a mapping of names to models"),
            ("teacher_weights", weights is not None and given.teacher_mix is None, "set teacher_mix to product or sum"),
            ("teacher_weights", weights is not None and set(weights) != set(teachers or weights),
             f"give a weight for each of {', '.join(map(str, teachers or ()))}"),
            ("teacher_weights", given.teacher_mix == "sum" and min((weights or {"": 1.0}).values()) <= 0,
             "shares of a sum are above 0; with negative ones take a product"),
            ("reference_model", given.reference_model is not None and teachers is not None,
             "it goes with one teacher; write all into teacher, with teacher_mix: product and teacher_weights"),
            ("extrapolation", given.extrapolation != plain.extrapolation and given.reference_model is None,
             "set reference_model too"),
            ("teacher_tokens", given.teacher_tokens != "same" and teachers is not None,
             "several teachers have the student's tokens; set it to same"),
            ("teacher_decay", given.teacher_decay is not None and no_one_model,
             "no one model follows the student; leave it out"),
            ("behaviour", sampling.behaviour is not None and no_one_model, "it samples with one model; leave it out"),
            ("teacher_texts", sampling.teacher_texts is not None and no_one_model,
             "a file keeps the texts of one model; leave it out"),
            ("gate", self.asks_teacher_answers and is_mixture,
             "it asks for the teacher's own answers, and a mixture writes no texts; choose another gate"),
            ("off_policy", sampling.off_policy == "teacher" and is_mixture,
             "a mixture writes no texts; set it to references"),
        ):  # fmt: skip
            if wrong:
                raise SettingError(name, getattr(self.flat()[name], "name", self.flat()[name]), remedy)

    @property
    def known_tokens(self) -> int | None:
        """How many of the teacher's top tokens the divergence sees: 0 is the written one alone, None is all."""
        objective = self.objective
        by_the_written_token = objective.cross_entropy or objective.estimator in ("sampled", "k2", "k3")
        return 0 if by_the_written_token else objective.teacher_top_k

    def _check_outside_teacher(self, teacher: str) -> None:
        """Refuse what a server or a file cannot do.

        Raises: SettingError.
        """
        sampling, given = self.sampling, self.teacher
        flat, kind = self.flat(), "served teacher" if is_address(teacher) else "file of a teacher's log-probabilities"
        needs_model = f"{teacher} is a {kind}; give a model as teacher, or"
        for name, wrong, remedy in (
            ("teacher_temperature", sampling.teacher_temperature != 1,
             f"{teacher} is a {kind}, whose log-probabilities are those of temperature 1; set it to 1"),
            ("behaviour", sampling.behaviour is not None, f"{needs_model} leave it out"),
            ("replay_size", sampling.replay_size > 0, f"{needs_model} set it to 0"),
            ("gate", gate.cost(self.objective.gate.name) != "nothing",
             f"it reads more of the teacher than a text's probability: {needs_model} choose another gate"),
            ("teacher_decay", given.teacher_decay is not None, f"{needs_model} leave it out"),
            ("teacher_prompt", given.teacher_prompt is not None, f"{needs_model} leave it out"),
            ("reference_model", given.reference_model is not None, f"{needs_model} leave it out"),
            ("teacher_device", given.teacher_device is not None, f"{needs_model} leave it out"),
            ("teacher_quantization", given.teacher_quantization is not None, f"{needs_model} leave it out"),
            ("teacher_dtype", given.teacher_dtype != TeacherSettings().teacher_dtype, f"{needs_model} leave it out"),
            ("teacher_tokens", given.teacher_tokens != "same", f"{needs_model} leave it out"),
            ("estimator", self.objective.estimator == "sampled_centred",
             f"its baseline is the divergence over all tokens: {needs_model} use sampled"),
            ("estimator", self.objective.estimator == "fixed_negative",
             f"it needs no teacher, and {teacher} would be asked for nothing that counts; leave the teacher out"),
            ("off_policy", sampling.off_policy == "teacher" and is_address(teacher),
             f"{needs_model} let rlgkd teach write its texts into a file, and give that"),
            ("teacher_texts", sampling.teacher_texts is not None, f"{needs_model} leave it out"),
            ("teacher_top_k", self.known_tokens is None and is_address(teacher),
             f"{teacher} is a {kind}, which gives the likeliest tokens alone: set it, to 64 say"),
            ("student_fraction", is_teacher_file(teacher) and span(self.student_fraction)[1] > 0,
             f"{teacher} is a {kind}, which has none of the student's own texts: set it to 0, or give a live teacher"),
        ):  # fmt: skip
            if wrong:
                raise SettingError(name, getattr(flat[name], "name", flat[name]), remedy)

    @model_validator(mode="after")
    def _refuse_contradictions(self) -> Self:
        """Refuse what contradicts itself or would be ignored, at any point of the schedules."""
        functions = not (isinstance(self.alpha, Schedule) and isinstance(self.student_fraction, Schedule))
        for step in range(101) if functions else (100, 0):  # a Schedule moves in one direction, so its ends tell
            now = self.objective_at(step / 100)
            Objective(**now.flat())
        objective, sampling, reward, teacher, model = (
            self.objective, self.sampling, self.reward, self.teacher, self.model
        )  # fmt: skip
        lowest_fraction, highest_fraction = span(self.student_fraction)
        if self.rewarded:
            check_advantage(reward.advantage.name, sampling.prompts_per_update, sampling.group_size)

        estimator, policy_loss = objective.estimator, objective.policy_loss.name
        on_policy_only = lowest_fraction == 1
        mixed = sampling.behaviour is not None
        several_epochs = self.optimizer.epochs > 1
        in_reward = reward.combination == "in_reward"
        by_rate = sampling.prompts_by == "pass_rate"
        resamples = reward.drop_even_groups == "resample"
        steered, averaged = teacher.divergence_target is not None, teacher.teacher_decay is not None
        tokens, other_tokens = teacher.teacher_tokens, teacher.teacher_tokens != "same"
        needs_ratios = self.needs_ratios
        ignored = "alpha is 1, so no reward counts"
        least_alpha, most_alpha = span(self.alpha)
        sees_sibling = reads_sibling(teacher.teacher_prompt or "")
        has_gate, weighed = objective.gate.name != "none", gate.terms(objective.gate.name)
        for name, wrong, remedy in (
            ("teacher_texts", sampling.teacher_texts is not None and sampling.off_policy != "teacher",
             "nothing is drawn for it; set off_policy to teacher"),
            ("behaviour", mixed and highest_fraction == 0, "the student generates nothing; leave it out"),
            ("behaviour", mixed and needs_ratios and policy_loss != "clipped_weight",
             "its texts need importance weights; set policy_loss to clipped_weight"),
            ("estimator", estimator in ("k2", "k3") and (several_epochs or mixed),
             "it has no importance weights; set epochs to 1 and leave behaviour out, or use sampled"),
            ("epochs", several_epochs and needs_ratios and policy_loss == "reinforce",
             "after the first step the texts are another policy's; set policy_loss to clipped, or epochs to 1"),
            ("combination", in_reward and (objective.divergence.name != "reverse_kl" or estimator != "sampled"),
             "it charges the sampled reverse KL: set divergence to reverse_kl and estimator to sampled"),
            ("combination", in_reward and (objective.horizon > 0 or mixed),
             "it charges whole texts of the student's: leave out horizon and behaviour"),
            ("gate", has_gate and in_reward, "the divergence is in the reward; set combination to in_loss"),
            ("gate", has_gate and mixed, "it weighs texts that the student sampled alone; leave behaviour out"),
            ("gate", has_gate and highest_fraction == 0,
             "it weighs the student's own texts; set student_fraction above 0, or gate to none"),
            ("gate", weighed == ("policy",) and least_alpha == 1,
             "it weighs the policy term, which alpha 1 has none of; set alpha below 1, or gate to none"),
            ("gate", weighed == ("divergence",) and most_alpha == 0,
             "it weighs the divergence, which alpha 0 leaves out; set alpha above 0, or gate to none"),
            ("gate", "advantage_BL" in gate.reads(objective.gate.name) and most_alpha == 1,
             "it reads the advantage, which alpha 1 has none of; set alpha below 1, or gate to none"),
            ("divergence_target", steered and not self._constant_between_0_and_1(),
             "it steers alpha: give alpha a number between 0 and 1"),
            ("divergence_target", steered and estimator == "fixed_negative",
             "fixed_negative descends no divergence that alpha could hold; leave it out"),
            ("divergence_target", steered and sampling.mixture == "prompt",
             "it is held on the student's own batches; set mixture to batch"),
            ("alpha_rate", teacher.alpha_rate != TeacherSettings().alpha_rate and not steered,
             "set divergence_target too"),
            ("teacher_tokens", tokens == "spans" and (objective.cross_entropy or estimator not in SPANNED),
             "spans have a log-ratio, not a distribution: set estimator to sampled, or teacher_tokens to map"),
            ("teacher_tokens", tokens == "map" and estimator != "exact",
             "a map carries distributions: set estimator to exact, or teacher_tokens to spans"),
            ("teacher_tokens", tokens == "spans" and objective.horizon > 0,
             "a horizon sums divergences token by token; set horizon to 0, or teacher_tokens to map"),
            ("teacher_tokens", other_tokens and gate.cost(objective.gate.name) != "nothing",
             "the gate reads the teacher at each token; choose another gate"),
            ("teacher_tokens", other_tokens and mixed,
             "student and teacher choose no tokens together; leave behaviour out"),
            ("teacher_tokens", other_tokens and sampling.off_policy == "teacher",
             "the teacher's texts are in its own tokens; set off_policy to references"),
            ("teacher_tokens", other_tokens and averaged,
             "the teacher cannot follow the student; leave teacher_decay out"),
            ("teacher_tokens", other_tokens and (teacher.teacher_prompt or teacher.reference_model) is not None,
             "a teacher with other tokens reads what the student reads, and alone; leave teacher_prompt and "
             "reference_model out"),
            ("teacher_map", teacher.teacher_map is not None and tokens != "map", "set teacher_tokens to map too"),
            ("lora_alpha", model.lora_alpha is not None and model.lora_rank == 0, "set lora_rank too"),
            ("save_adapter", model.save_adapter and bool(model.student_layers),
             "the adapter would fit the cut model alone, which has no name to be opened by; leave student_layers out"),
            ("teacher_decay", averaged and (teacher.teacher_quantization, teacher.teacher_device) != (None, None),
             "an average of the student is kept as the student is; leave teacher_quantization and teacher_device out"),
            ("teacher_decay", averaged and teacher.teacher_dtype != model.dtype,
             "an average of the student has its precision; set teacher_dtype to that of dtype"),
            ("teacher_decay", averaged and teacher.teacher_decay != 0 and model.lora_rank > 0,
             "the student has adapters and the teacher none, so there is nothing to average; leave one of them out"),
            ("teacher_prompt", sees_sibling and lowest_fraction < 1,
             "a right text is one of the student's group: set student_fraction to 1"),
            ("teacher_prompt", sees_sibling and sampling.group_size < 2,
             "a right text is another one of the same group: set group_size to 2 or more"),
            ("teacher_prompt", sees_sibling and mixed, "there is no right text yet to sample by; leave behaviour out"),
            ("teacher_prompt", sees_sibling and reward.drop_even_groups == "resample",
             "groups are put together again, without their right texts: set drop_even_groups to true or false"),
            ("teacher_prompt", sees_sibling and sampling.replay_size > 0,
             "texts of earlier updates have no group: set replay_size to 0"),
            ("teacher_prompt", sees_sibling and bool(self.served.sampler),
             "a sampler elsewhere may lack texts of a group: leave it out"),
            ("gate", self.asks_teacher_answers and (averaged or sees_sibling),
             "each prompt is answered once, by a teacher that stays as it is: leave teacher_decay out, and sibling"),
            ("teacher_probes", teacher.teacher_probes != TeacherSettings().teacher_probes
             and not self.asks_teacher_answers, "no gate asks for answers of the teacher: set gate to tgopd"),
            ("sibling_from", teacher.sibling_from != TeacherSettings().sibling_from and not sees_sibling,
             "no text is shown to a teacher: set teacher_prompt to sibling"),
            ("teacher_decay", averaged and sampling.teacher_texts is not None,
             "the file would keep texts of teachers that are gone; leave one of them out"),
            ("off_policy", sampling.off_policy != "references" and on_policy_only, "set student_fraction below 1"),
            ("off_policy_from", sampling.off_policy_from is not None and on_policy_only,
             "set student_fraction below 1"),
            ("prompts_by", by_rate and highest_fraction == 0,
             "it goes by the student's own texts; set student_fraction above 0, or this to order"),
            *((name, getattr(sampling, name) != getattr(SamplingSettings(), name) and not by_rate,
               "set prompts_by to pass_rate") for name in ("passed_from", "pass_rate_floor")),
            ("mixture", sampling.mixture != "batch" and on_policy_only, "set student_fraction below 1"),
            ("drop_even_groups", bool(reward.drop_even_groups) and not self.rewarded, ignored),
            ("drop_even_groups", resamples and sampling.group_size == 1,
             "a group of one is always even; set group_size above 1"),
            *self._replay_contradictions(),
            *self._sharding_contradictions(),
            ("resample_rounds", reward.resample_rounds != RewardSettings().resample_rounds and not resamples,
             "set drop_even_groups to resample"),
            ("distil_even_groups", reward.distil_even_groups and not resamples, "set drop_even_groups to resample"),
            ("distil_even_groups", reward.distil_even_groups and most_alpha == 0,
             "alpha is 0, so nothing is distilled; leave it out"),
            ("overlong_buffer", reward.overlong_buffer and not self.rewarded, ignored),
            ("normalise_rewards", reward.normalise_rewards and not self.rewarded, ignored),
        ):  # fmt: skip
            if wrong:
                value = self.flat()[name]
                raise SettingError(name, value, remedy)
        self.served.check(
            fractions=(lowest_fraction, highest_fraction),
            mixed=mixed,
            needs_ratios=needs_ratios,
            policy_loss=policy_loss,
        )
        if estimator == "k3":
            warn("estimator k3 as a loss descends the forward KL, not the reverse; use k2", stacklevel=2)
        return self

    def _replay_contradictions(self) -> list[tuple[str, bool, str]]:
        """(setting, whether it is wrong, what to do) of `replay_size` and what goes with it."""
        sampling, given = self.sampling, SamplingSettings()
        replays, both = sampling.replay_size > 0, sampling.replay_terms == "both"
        return [
            ("replay_prompts", not replays and sampling.replay_prompts != given.replay_prompts, "set replay_size too"),
            ("replay_terms", not replays and sampling.replay_terms != given.replay_terms, "set replay_size too"),
            ("replay_size", replays and span(self.student_fraction)[1] == 0,
             "the student samples nothing that could be kept; set it to 0"),
            ("replay_size", replays and bool(self.served.sampler),
             "texts of earlier updates have no importance weights of a sampler elsewhere: set it to 0"),
            ("replay_size", replays and self.reward.combination == "in_reward",
             "the divergence is in the reward; set combination to in_loss"),
            ("replay_size", replays and sampling.behaviour is not None,
             "it keeps texts that the student sampled alone; leave behaviour out"),
            ("replay_terms", replays and not both and span(self.alpha)[1] == 0,
             "alpha is 0, so nothing is distilled; set it to both"),
            ("replay_terms", replays and not both and self.objective.estimator != "exact",
             "the sampled token of another policy is no sample of this one's: set estimator to exact, or this to both"),
            ("replay_terms", replays and both and self.objective.policy_loss.name == "reinforce",
             "the texts are an earlier policy's, and need ratios: set policy_loss to clipped"),
            ("replay_terms", replays and both and self.recomputes_log_probabilities,
             "in bfloat16 the log-probabilities of sampling are replaced; set precision to float32"),
        ]  # fmt: skip

    def _sharding_contradictions(self) -> list[tuple[str, bool, str]]:
        """(setting, whether it is wrong, what to do) of what models that are shared out over processes do not do."""
        given, shared = self.teacher, self.model.sharding != "none"
        remedy = "sharding shares one teacher out, of the student's tokens and where the student is; leave this out"
        elsewhere = ("teacher_mix", "reference_model", "teacher_device", "teacher_quantization")
        return [
            *((name, shared and getattr(given, name) is not None, remedy) for name in elsewhere),
            ("teacher_tokens", shared and given.teacher_tokens != "same", remedy),
            ("teacher_decay", shared and given.teacher_decay not in (None, 0),
             "evaluations keep a whole copy of the start; set sharding to none, or teacher_decay to 0"),
        ]  # fmt: skip

    def _constant_between_0_and_1(self) -> bool:
        return isinstance(self.alpha, Schedule) and self.alpha.end is None and 0 < self.alpha.start < 1


CHANGEABLE: Final = frozenset(
    {
        *(f"{name}{part}" for name in ("alpha", "student_fraction") for part in ("", "_end", "_shape")),
        *Objective.declared(),
        *RewardSettings.declared(),
        *("divergence_target", "alpha_rate", "off_policy", "off_policy_from", "mixture", "group_size"),
        *("learning_rate", "epochs", "max_grad_norm", "gradient_norms_every", "agreement_every"),
    }
)
"""Settings that may change while an agent trains (`reconfigure`), as the stages of a run do: no model, no optimizer and
no order of prompts depends on them."""

"""Which settings of an agent contradict each other, or would be ignored; each rule with what to do instead.

What a given teacher and the settings do not do together is in teacher_checks.py, what concerns Eq. 5 alone in
rlgkd/objective.py, and a sampler that is elsewhere in sampler_settings.py.
"""

from __future__ import annotations

from collections.abc import Iterable

from rlgkd.agents.agent_settings import SPANNED, AgentSettings, RewardSettings, SamplingSettings, TeacherSettings
from rlgkd.errors import SettingError
from rlgkd.ops import gate
from rlgkd.ops.returns import check_advantage
from rlgkd.ops.schedule import Schedule
from rlgkd.settings import Moving, span
from rlgkd.types import reads_sibling

Rule = tuple[str, bool, str]
"""A setting, whether its value is wrong, and what to do about it."""


def refuse(config: AgentSettings, rules: Iterable[Rule]) -> None:
    """Raise SettingError for the first rule whose setting is wrong, with the setting's value."""
    for name, wrong, remedy in rules:
        if wrong:
            raise SettingError(name, config.flat()[name], remedy)


def check_combination(config: AgentSettings) -> None:
    """Refuse what contradicts itself or would be ignored, at any point of the schedules.

    Raises: SettingError.
    """
    objective, sampling, reward = config.objective, config.sampling, config.reward
    teacher, model = config.teacher, config.model
    lowest_fraction, highest_fraction = span(config.student_fraction)
    if config.rewarded:
        check_advantage(reward.advantage.name, sampling.prompts_per_update, sampling.group_size)

    estimator, policy_loss = objective.estimator, objective.policy_loss.name
    on_policy_only = lowest_fraction == 1
    mixed = sampling.behaviour is not None
    several_epochs = config.optimizer.epochs > 1
    in_reward = reward.combination == "in_reward"
    by_rate = sampling.prompts_by == "pass_rate"
    resamples = reward.drop_even_groups == "resample"
    steered, averaged = teacher.divergence_target is not None, teacher.teacher_decay is not None
    tokens, other_tokens = teacher.teacher_tokens, teacher.teacher_tokens != "same"
    needs_ratios = config.needs_ratios
    ignored = "alpha is 1, so no reward counts"
    least_alpha, most_alpha = span(config.alpha)
    sees_sibling = reads_sibling(teacher.teacher_prompt or "")
    has_gate, weighed = objective.gate.name != "none", gate.terms(objective.gate.name)
    rules = (
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
        ("divergence_target", steered and not _constant_between_0_and_1(config.alpha),
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
        ("teacher_prompt", sees_sibling and bool(config.served.sampler),
         "a sampler elsewhere may lack texts of a group: leave it out"),
        ("gate", config.asks_teacher_answers and (averaged or sees_sibling),
         "each prompt is answered once, by a teacher that stays as it is: leave teacher_decay out, and sibling"),
        ("teacher_probes", teacher.teacher_probes != TeacherSettings().teacher_probes
         and not config.asks_teacher_answers, "no gate asks for answers of the teacher: set gate to tgopd"),
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
        ("drop_even_groups", bool(reward.drop_even_groups) and not config.rewarded, ignored),
        ("drop_even_groups", resamples and sampling.group_size == 1,
         "a group of one is always even; set group_size above 1"),
        *_replay_rules(config),
        *_sharding_rules(config),
        ("resample_rounds", reward.resample_rounds != RewardSettings().resample_rounds and not resamples,
         "set drop_even_groups to resample"),
        ("distil_even_groups", reward.distil_even_groups and not resamples, "set drop_even_groups to resample"),
        ("distil_even_groups", reward.distil_even_groups and most_alpha == 0,
         "alpha is 0, so nothing is distilled; leave it out"),
        ("overlong_buffer", reward.overlong_buffer > 0 and not config.rewarded, ignored),
        ("normalise_rewards", reward.normalise_rewards and not config.rewarded, ignored),
    )  # fmt: skip
    refuse(config, rules)
    config.served.check(
        fractions=(lowest_fraction, highest_fraction),
        mixed=mixed,
        needs_ratios=needs_ratios,
        policy_loss=policy_loss,
    )


def _replay_rules(config: AgentSettings) -> list[Rule]:
    """The rules of `replay_size` and what goes with it."""
    sampling, given = config.sampling, SamplingSettings()
    replays, both = sampling.replay_size > 0, sampling.replay_terms == "both"
    return [
        ("replay_prompts", not replays and sampling.replay_prompts != given.replay_prompts, "set replay_size too"),
        ("replay_terms", not replays and sampling.replay_terms != given.replay_terms, "set replay_size too"),
        ("replay_size", replays and span(config.student_fraction)[1] == 0,
         "the student samples nothing that could be kept; set it to 0"),
        ("replay_size", replays and bool(config.served.sampler),
         "texts of earlier updates have no importance weights of a sampler elsewhere: set it to 0"),
        ("replay_size", replays and config.reward.combination == "in_reward",
         "the divergence is in the reward; set combination to in_loss"),
        ("replay_size", replays and sampling.behaviour is not None,
         "it keeps texts that the student sampled alone; leave behaviour out"),
        ("replay_terms", replays and not both and span(config.alpha)[1] == 0,
         "alpha is 0, so nothing is distilled; set it to both"),
        ("replay_terms", replays and not both and config.objective.estimator != "exact",
         "the sampled token of another policy is no sample of this one's: set estimator to exact, or this to both"),
        ("replay_terms", replays and both and config.objective.policy_loss.name == "reinforce",
         "the texts are an earlier policy's, and need ratios: set policy_loss to clipped"),
        ("replay_terms", replays and both and config.recomputes_log_probabilities,
         "in bfloat16 the log-probabilities of sampling are replaced; set precision to float32"),
    ]  # fmt: skip


def _sharding_rules(config: AgentSettings) -> list[Rule]:
    """The rules of what models that are shared out over processes do not do."""
    given, shared = config.teacher, config.model.sharding != "none"
    remedy = "sharding shares one teacher out, of the student's tokens and where the student is; leave this out"
    elsewhere = ("teacher_mix", "reference_model", "teacher_device", "teacher_quantization")
    return [
        *((name, shared and getattr(given, name) is not None, remedy) for name in elsewhere),
        ("teacher_tokens", shared and given.teacher_tokens != "same", remedy),
        ("teacher_decay", shared and given.teacher_decay not in (None, 0),
         "evaluations keep a whole copy of the start; set sharding to none, or teacher_decay to 0"),
    ]  # fmt: skip


def _constant_between_0_and_1(alpha: Moving) -> bool:
    return isinstance(alpha, Schedule) and alpha.end is None and 0 < alpha.start < 1

"""Which settings of an agent a given teacher, or none, does not go with; each rule with what to do instead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlgkd.agents.agent_settings import AgentSettings, TeacherSettings
from rlgkd.agents.contradictions import refuse
from rlgkd.errors import SettingError
from rlgkd.ops import gate
from rlgkd.settings import span
from rlgkd.teachers.names import SELF, is_address, is_outside, is_self, is_teacher_file


def check_teacher(config: AgentSettings, teacher: object) -> None:
    """Refuse None for a teacher where these settings need one, and a server or file where they need a model.

    Raises: SettingError.
    """
    if teacher is not None:
        if is_outside(name := str(teacher) if isinstance(teacher, Path) else teacher):
            _check_outside(config, str(name))
        if is_self(teacher):
            _check_self(config)
        _check_several(config, teacher if isinstance(teacher, Mapping) else None)
        return
    least, most = span(config.alpha)
    if most > 0 and config.objective.needs_teacher:
        without = ", or alpha=0" if least < 1 else ""  # at alpha 1 nothing else is trained on
        raise SettingError("teacher", None, f"alpha is {most:g}: set teacher=...{without}")
    if gate.cost(config.objective.gate.name) != "nothing":
        name = config.objective.gate.name
        raise SettingError("teacher", None, f"the gate {name} reads it: set teacher=..., or gate=none")
    for field in ("teacher_decay", "teacher_prompt", "reference_model"):
        if (value := getattr(config.teacher, field)) is not None:
            raise SettingError(field, value, f"give a teacher; the student itself would do: teacher={SELF}")
    _check_several(config, None)
    for name, wanted in (("off_policy", config.sampling.off_policy), ("behaviour", config.sampling.behaviour)):
        if wanted not in ("references", None):
            raise SettingError(name, getattr(wanted, "name", wanted), "give a teacher, who generates these texts")


def _check_self(config: AgentSettings) -> None:
    """Refuse settings of a model of its own for the student itself.

    Raises: SettingError.
    """
    given, model = config.teacher, config.model
    rules = (
        ("teacher_dtype", given.teacher_dtype != model.dtype,
         f"teacher={SELF} has the student's precision: set it to {model.dtype}"),
        ("teacher_quantization", given.teacher_quantization is not None,
         f"teacher={SELF} is the student as it is: leave it out, or name the model"),
        ("teacher_decay", given.teacher_decay not in (None, 0) and model.lora_rank > 0,
         "an average of adapters is not kept; set it to 0, the student as it is, or leave one of them out"),
    )  # fmt: skip
    refuse(config, rules)


def _check_several(config: AgentSettings, teachers: Mapping[str, object] | None) -> None:
    """Refuse what does not go with several teachers, and what only they take; None is one teacher or none.

    Raises: SettingError.
    """
    given, sampling, plain = config.teacher, config.sampling, TeacherSettings()
    if teachers is not None and not teachers:
        raise SettingError("teacher", teachers, "give a mapping of names to models")
    for name, model in (teachers or {}).items():
        if is_outside(str(model) if isinstance(model, Path) else model):
            raise SettingError("teacher", {name: model}, "several teachers are models by names; give models")
        if is_self(model):
            _check_self(config)
    is_mixture = given.teacher_mix is not None or given.reference_model is not None
    weights, routed = given.teacher_weights, teachers is not None and given.teacher_mix is None
    no_one_model = is_mixture or routed
    rules = (
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
        ("gate", config.asks_teacher_answers and is_mixture,
         "it asks for the teacher's own answers, and a mixture writes no texts; choose another gate"),
        ("off_policy", sampling.off_policy == "teacher" and is_mixture,
         "a mixture writes no texts; set it to references"),
    )  # fmt: skip
    refuse(config, rules)


def _check_outside(config: AgentSettings, teacher: str) -> None:
    """Refuse what a server or a file cannot do.

    Raises: SettingError.
    """
    sampling, given = config.sampling, config.teacher
    kind = "served teacher" if is_address(teacher) else "file of a teacher's log-probabilities"
    needs_model = f"{teacher} is a {kind}; give a model as teacher, or"
    rules = (
        ("teacher_temperature", sampling.teacher_temperature != 1,
         f"{teacher} is a {kind}, whose log-probabilities are those of temperature 1; set it to 1"),
        ("behaviour", sampling.behaviour is not None, f"{needs_model} leave it out"),
        ("replay_size", sampling.replay_size > 0, f"{needs_model} set it to 0"),
        ("gate", gate.cost(config.objective.gate.name) != "nothing",
         f"it reads more of the teacher than a text's probability: {needs_model} choose another gate"),
        ("teacher_decay", given.teacher_decay is not None, f"{needs_model} leave it out"),
        ("teacher_prompt", given.teacher_prompt is not None, f"{needs_model} leave it out"),
        ("reference_model", given.reference_model is not None, f"{needs_model} leave it out"),
        ("teacher_device", given.teacher_device is not None, f"{needs_model} leave it out"),
        ("teacher_quantization", given.teacher_quantization is not None, f"{needs_model} leave it out"),
        ("teacher_dtype", given.teacher_dtype != TeacherSettings().teacher_dtype, f"{needs_model} leave it out"),
        ("teacher_tokens", given.teacher_tokens != "same", f"{needs_model} leave it out"),
        ("estimator", config.objective.estimator == "sampled_centred",
         f"its baseline is the divergence over all tokens: {needs_model} use sampled"),
        ("estimator", config.objective.estimator == "fixed_negative",
         f"it needs no teacher, and {teacher} would be asked for nothing that counts; leave the teacher out"),
        ("off_policy", sampling.off_policy == "teacher" and is_address(teacher),
         f"{needs_model} let rlgkd teach write its texts into a file, and give that"),
        ("teacher_texts", sampling.teacher_texts is not None, f"{needs_model} leave it out"),
        ("teacher_top_k", config.known_tokens is None and is_address(teacher),
         f"{teacher} is a {kind}, which gives the likeliest tokens alone: set it, to 64 say"),
        ("student_fraction", is_teacher_file(teacher) and span(config.student_fraction)[1] > 0,
         f"{teacher} is a {kind}, which has none of the student's own texts: set it to 0, or give a live teacher"),
    )  # fmt: skip
    refuse(config, rules)

"""Opens teachers: models, the student itself, servers, files, several of them, or one beyond another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.errors import DependencyError, ModelError, SettingError
from rlgkd.lm.copies import copy_sharing_frozen
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.loading import dtype_of, load, load_tokenizer
from rlgkd.lm.lora import unwrapped
from rlgkd.lm.mixture import ModelMixture
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.own_format import read_in_own_format
from rlgkd.lm.placement import checked_device
from rlgkd.lm.vocabulary import shared_vocabulary
from rlgkd.ops.teacher_mixture import Mix
from rlgkd.teachers import AlignedTeacher, OutsideTeacher, Teacher
from rlgkd.teachers.aligning import align_teacher
from rlgkd.teachers.from_file import FileTeacher
from rlgkd.teachers.names import is_self, is_teacher_file
from rlgkd.teachers.opening import Chat, open_served
from rlgkd.teachers.routed import RoutedTeachers
from rlgkd.types import Task


def open_self(
    task: Task, config: AlgorithmConfig, module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **how: Any
) -> LanguageModel:
    """The student as its own teacher: a copy that shares what is frozen, or with a `teacher_decay` of 0 itself."""
    if config.teacher.teacher_decay == 0:
        del how["device"]
        return language_model(module, tokenizer, temperature=config.sampling.teacher_temperature, **how)
    start = copy_sharing_frozen(module) if config.teacher.teacher_device is None else copy.deepcopy(module)
    return open_teacher(task, config, start, tokenizer, **how)


def open_teacher(
    task: Task,
    config: AlgorithmConfig,
    teacher: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    device: torch.device,
    opened: PreTrainedModel | None = None,
    **decoding: Any,
) -> LanguageModel:
    """Open a teacher, frozen, for a student with this tokenizer; `opened` is its module, if that is open already.

    Raises: ModelError as `open_models` does.
    """
    with relabelled("teacher"):
        own = load_tokenizer(teacher) if isinstance(teacher, str) else tokenizer
        shared = None
        if config.teacher.teacher_tokens == "same":
            shared = shared_vocabulary(tokenizer, own, name=teacher if isinstance(teacher, str) else "")
        dtype = dtype_of(config.teacher.teacher_dtype)
        placed = config.teacher.teacher_device
        module = load(
            teacher if opened is None else opened,
            dtype=dtype,
            device=device if placed is None else checked_device(placed),
            merge_adapters=True,
            quantization=config.teacher.teacher_quantization,
        )
        temperature = config.sampling.teacher_temperature
        frozen = language_model(
            module.requires_grad_(False), own, temperature=temperature, vocabulary=shared, **decoding
        )
    check_context(task, "teacher", frozen)
    return frozen


def open_several(
    task: Task, config: AlgorithmConfig, teachers: Mapping[str, Any], student: LanguageModel, **how: Any
) -> Teacher:
    """Open teachers by name: one for each text, or a mixture of all for every text. Equal ones are opened once.

    Raises: ModelError as `open_teacher` does, and for a mixture whose members read prompts in different formats.
    """
    opened: list[tuple[Any, LanguageModel]] = []
    models: dict[str, LanguageModel] = {}
    for name, given in teachers.items():
        found = next((lm for other, lm in opened if _same_model(other, given)), None)
        if found is None:
            found = _open_one(task, config, given, student, **how)
            opened.append((given, found))
        models[name] = found
    settings = config.teacher
    if settings.teacher_mix is None:
        return RoutedTeachers(models, settings.teacher_column)
    weights = settings.teacher_weights or dict.fromkeys(models, 1 / len(models))
    return _mixture(models, weights, settings.teacher_mix)


def fitted(
    task: Task,
    config: AlgorithmConfig,
    teacher: LanguageModel,
    student: LanguageModel,
    *,
    name: str,
    own_format: bool,
    **how: Any,
) -> LanguageModel | ModelMixture | AlignedTeacher:
    """An opened teacher as it reads this student's texts: in its own tokens or format, and beyond a third model.

    Args:
        task: What both models see.
        config: Its settings of the teacher.
        teacher: A frozen model that nothing else uses.
        student: Whose end tokens are known to the task.
        name: The teacher's, "" for a loaded model.
        own_format: Whether the teacher's tokenizer is its own, so that its prompts may be in another format.
        **how: How the `reference_model` is opened, as `open_teacher` takes it.

    Raises: ModelError and SettingError as `align_teacher`, `read_in_own_format` and `with_reference` do.
    """
    given = config.teacher
    if given.teacher_tokens != "same":
        mapped = given.teacher_tokens == "map"
        called = name or teacher.module.config.name_or_path
        return align_teacher(task, teacher, student, name=called, mapped=mapped, map_file=given.teacher_map)
    if own_format or given.teacher_prompt is not None:
        read_in_own_format(task, teacher, student, owner="student", name=name, teacher_prompt=given.teacher_prompt)
        in_another = teacher.format is not None and teacher.format.encode_reply is not None
        if in_another and given.teacher_decay is not None:
            remedy = "it has a format of its own, and one that follows the student must have the student's"
            raise ModelError("teacher", name, f"{remedy}; leave out teacher_decay, or give another teacher")
    return with_reference(task, config, teacher, student, **how)


def with_reference(
    task: Task, config: AlgorithmConfig, teacher: LanguageModel, student: LanguageModel, **how: Any
) -> LanguageModel | ModelMixture:
    """The teacher beyond a third model: p_T^l p_R^(1-l), normalised, with l the `extrapolation` (G-OPD).

    Raises: ModelError as `open_several` does.
    """
    beyond = config.teacher.extrapolation
    if config.teacher.reference_model is None or beyond == 1:
        return teacher
    with relabelled("reference_model"):
        reference = _open_one(task, config, config.teacher.reference_model, student, **how)
    models = {"teacher": teacher, "reference_model": reference}
    return _mixture(models, {"teacher": beyond, "reference_model": 1 - beyond}, "product")


def _mixture(models: Mapping[str, LanguageModel], weights: Mapping[str, float], mix: Mix) -> ModelMixture:
    for name, lm in models.items():
        if lm.format is not None and lm.format.encode_reply is not None:
            remedy = "it has a format of its own, and a mixture reads a text in one; give one with the student's"
            raise ModelError("teacher", name, remedy)
    vocabularies = {name: lm.vocabulary for name, lm in models.items()}
    if len({*vocabularies.values()}) > 1:
        raise ModelError("teacher", vocabularies, "a mixture is of models with the same number of tokens")
    return ModelMixture([models[name] for name in models], [weights[name] for name in models], mix)


def _same_model(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, str) and isinstance(other, str) and one == other)


def _open_one(task: Task, config: AlgorithmConfig, given: Any, student: LanguageModel, **how: Any) -> LanguageModel:
    """One of several teachers, by name, as a loaded model, or the student itself, as it reads the task's prompts."""
    if is_self(given):
        lm = open_self(task, config, student.module, student.tokenizer, **how)
    else:
        with relabelled("teacher"):
            module = given if isinstance(given, str) else unwrapped(given)
        if module is student.module:
            module = copy.deepcopy(module)
        lm = open_teacher(task, config, module, student.tokenizer, **how)
    more = config.teacher.teacher_prompt
    if more is not None or (isinstance(given, str) and not is_self(given)):
        name = given if isinstance(given, str) else ""
        read_in_own_format(task, lm, student, owner="student", name=name, teacher_prompt=more)
    return lm


def open_outside_teacher(
    task: Task,
    config: AlgorithmConfig,
    teacher: str,
    tokenizer: PreTrainedTokenizerBase,
    *,
    known_tokens: int | None = None,
) -> OutsideTeacher:
    """Open a teacher that is a server or a file, for a student with this tokenizer.

    Args:
        task: Its texts must fit the server's context.
        config: How the teacher is asked.
        teacher: Its address, or the file's name.
        tokenizer: The student's.
        known_tokens: How many tokens to ask for; None is what the objective of the settings needs.

    Raises: SettingError for settings that need a model; ModelError as `rlgkd.teachers.opening.open_served` does;
        DataError as `FileTeacher` does, and for texts of others than `off_policy` says.
    """
    if known_tokens is None:
        config.check_teacher(teacher)
        known_tokens = config.known_tokens
    if is_teacher_file(teacher):
        from_file = FileTeacher(teacher, tokenizer, top_k=known_tokens)
        check_texts(from_file, config)
        return from_file
    assert known_tokens is not None, "a served teacher with all tokens was refused"
    settings = config.teacher
    return open_served(
        teacher,
        tokenizer,
        top_k=min(known_tokens, len(tokenizer)),
        longest=task.max_prompt_tokens + task.max_new_tokens,
        timeout=settings.teacher_timeout,
        retries=settings.teacher_retries,
        concurrency=settings.teacher_requests,
        max_failed=settings.max_failed_teacher,
        chat=_short_chat(task),
    )


def _short_chat(task: Task) -> Chat | None:
    """A conversation as the task writes it; None if it has none, or one that changes with the day."""
    template = getattr(task, "chat_template", None)
    if template is None or template.shows_the_day:
        return None
    messages = [{"role": "user", "content": "Hello"}]
    return Chat(messages=messages, variables=template.variables, ids=template.ids(messages))


def check_texts(teacher: Teacher | None, config: AlgorithmConfig) -> None:
    """Raise SettingError if a teacher's file is of the texts of others than `off_policy` says."""
    if isinstance(teacher, FileTeacher) and (whose := teacher.contents.texts) != config.sampling.off_policy:
        remedy = f"{teacher.name} has log-probabilities of the texts of the {whose}; set it to {whose}"
        raise SettingError("off_policy", config.sampling.off_policy, remedy)


@contextmanager
def relabelled(role: str) -> Iterator[None]:
    """Let an error of a model name the setting that named the model."""
    try:
        yield
    except (ModelError, DependencyError) as error:
        if error.field != "model":
            raise
        raise type(error)(role, error.value, error.remedy) from error


def check_context(task: Task, field: str, lm: LanguageModel) -> None:
    """Raise ModelError if the task's longest text does not fit the model's context."""
    needed = task.max_prompt_tokens + task.max_new_tokens
    if lm.context < needed:
        remedy = (
            f"its context of {lm.context} tokens is shorter than the environment's {needed}; "
            "lower max_prompt_tokens or max_new_tokens"
        )
        raise ModelError(field, lm.module.config.name_or_path, remedy)

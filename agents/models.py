"""The student and its teacher: opened, and checked to fit each other and the environment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.errors import DependencyError, ModelError, SettingError
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.gradient_checkpointing import enable_gradient_checkpointing
from rlgkd.lm.loading import copy_sharing_frozen, load, load_tokenizer
from rlgkd.lm.lora import add_adapters, check_adapters
from rlgkd.lm.model import LanguageModel, check_same_vocabulary, end_token
from rlgkd.types import Task


def check_same_shape(student: LanguageModel, teacher: LanguageModel) -> None:
    """Raise ModelError unless both have the same parameters, so that one can be an average of the other."""
    ours, theirs = ([p.shape for p in lm.module.parameters()] for lm in (student, teacher))
    if ours != theirs:
        raise ModelError(
            "teacher_decay", "teacher", "its shape is not the student's; give the student's start as teacher"
        )


def open_models(
    task: Task,
    *,
    policy: str | PreTrainedModel,
    teacher: str | PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase | None,
    layers: Sequence[int],
    temperature: float,
    teacher_temperature: float,
    lora_rank: int,
    lora_alpha: int | None,
    gradient_checkpointing: bool,
    rows_at_once: int | None,
    compile_decoding: bool,
    seed: int,
    device: torch.device,
) -> tuple[LanguageModel, LanguageModel | None]:
    """Open the student, to be trained, and the teacher, frozen; arguments as the agents' constructor has them.

    What a loaded student has frozen stays so. Where the teacher is the student's start, the two share what is frozen:
    with LoRA all weights but the adapters. `seed` is that of the adapters.

    Raises: ModelError for a missing, damaged or wholly frozen model, other vocabularies, or a context too short for the
    task; SettingError for a task with a mask, or for LoRA on a model with adapters; DependencyError for LoRA without
    peft.
    """
    if getattr(task, "mask", None) is not None:
        raise SettingError("mask", "of the task", "this agent samples without it; use SB3's PPO, or leave it out")
    with _told_as("student"):
        if tokenizer is None:
            tokenizer = load_tokenizer(policy) if isinstance(policy, str) else task.tokenizer
        named = policy if isinstance(policy, str) else ""
        check_same_vocabulary(task.tokenizer, tokenizer, field="student", owner="environment", name=named)
        if end_token(tokenizer) != end_token(task.tokenizer):
            raise ModelError("student", tokenizer.eos_token, f"the environment ends with {task.tokenizer.eos_token!r}")
        opened = load(policy, device=device)
    if lora_rank:
        opened.requires_grad_(False)
    module = load(opened, layers=layers, device=device)  # a copy where layers are cut
    frozen = None
    if teacher is not None:
        start = None
        if teacher == policy:  # opened once; the student's own start must stay where it is while the student moves
            start = copy_sharing_frozen(opened) if module is opened else opened
        frozen = _frozen(
            teacher,
            tokenizer,
            temperature=teacher_temperature,
            device=device,
            opened=start,
            rows_at_once=rows_at_once,
            compile_decoding=compile_decoding,
        )
    with _told_as("student"):
        if lora_rank:
            add_adapters(module, lora_rank, alpha=lora_alpha, seed=seed)
        check_adapters(module)
        if gradient_checkpointing:
            enable_gradient_checkpointing(module)
        student = language_model(
            module,
            tokenizer,
            temperature=temperature,
            rows_at_once=rows_at_once,
            compile_decoding=compile_decoding,
        )
    if not any(p.requires_grad for p in module.parameters()):
        raise ModelError(
            "student", module.config.name_or_path, "all its parameters are frozen; let some require a gradient"
        )
    _check_room(task, "student", student)
    if frozen is not None:
        _check_room(task, "teacher", frozen)
    return student, frozen


def learnt(module: nn.Module) -> nn.Module:
    """What of a model a checkpoint must hold: itself, or beside frozen parameters those alone that are not.

    The frozen ones are those of the model that was opened, and a run that is resumed opens it again.
    """
    if all(p.requires_grad for p in module.parameters()):
        return module
    trained = {name.replace(".", "/"): p for name, p in module.named_parameters() if p.requires_grad}
    return nn.ParameterDict(trained)


def open_teacher(
    task: Task,
    teacher: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float,
    device: torch.device,
) -> LanguageModel:
    """Open the teacher alone, frozen, for a student with this tokenizer. Raises: ModelError as `open_models` does."""
    frozen = _frozen(teacher, tokenizer, temperature=temperature, device=device)
    _check_room(task, "teacher", frozen)
    return frozen


def _frozen(
    teacher: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    temperature: float,
    device: torch.device,
    opened: PreTrainedModel | None = None,
    rows_at_once: int | None = None,
    compile_decoding: bool = False,
) -> LanguageModel:
    with _told_as("teacher"):
        own = load_tokenizer(teacher) if isinstance(teacher, str) else tokenizer
        check_same_vocabulary(tokenizer, own, name=teacher if isinstance(teacher, str) else "")
        module = load(teacher, device=device) if opened is None else opened
        return language_model(
            module.requires_grad_(False),
            own,
            temperature=temperature,
            rows_at_once=rows_at_once,
            compile_decoding=compile_decoding,
        )


@contextmanager
def _told_as(role: str) -> Iterator[None]:
    """Let an error of a model name the setting that named the model."""
    try:
        yield
    except (ModelError, DependencyError) as error:
        if error.field != "model":
            raise
        raise type(error)(role, error.value, error.remedy) from error


def _check_room(task: Task, field: str, lm: LanguageModel) -> None:
    room = task.max_prompt_tokens + task.max_new_tokens
    if lm.context < room:
        raise ModelError(
            field, lm.module.config.name_or_path,
            f"its context of {lm.context} tokens is shorter than the environment's {room}; "
            "lower max_prompt_tokens or max_new_tokens",
        )  # fmt: skip

"""Builds what an agent trains with: the student, its teacher, and the optimizer."""

from __future__ import annotations

import copy
import hashlib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.agents.config import AlgorithmConfig
from rlgkd.agents.served_texts import ServedTexts
from rlgkd.agents.teachers import (
    check_context,
    fitted,
    open_outside_teacher,
    open_self,
    open_several,
    open_teacher,
    relabelled,
)
from rlgkd.cutting import best_cut
from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.copies import copy_sharing_frozen, frozen_view, weights_digest
from rlgkd.lm.encoder_decoder import language_model
from rlgkd.lm.gradient_checkpointing import enable_gradient_checkpointing
from rlgkd.lm.layers import marked_layers
from rlgkd.lm.loading import dtype_of, load, load_tokenizer
from rlgkd.lm.lora import adapter_name, add_adapters, check_adapters, unwrapped
from rlgkd.lm.model import LanguageModel
from rlgkd.lm.placement import is_fixed
from rlgkd.lm.text_format import end_token
from rlgkd.lm.vocabulary import check_same_vocabulary
from rlgkd.ranks import Ranks
from rlgkd.rollout import share_end_ids
from rlgkd.samplers.opening import open_sampler, open_weights
from rlgkd.sharding import How, shard
from rlgkd.teachers import Teacher, model_of
from rlgkd.teachers.names import is_outside, is_self
from rlgkd.types import Item, Task

_log = logging.getLogger(__name__)
FUSED_ADAMW = ("cpu", "cuda")
"""Devices for which torch has AdamW as one kernel."""


def with_chosen_layers(
    task: Task,
    config: AlgorithmConfig,
    policy: str | Any,
    tokenizer: PreTrainedTokenizerBase | None,
    device: torch.device,
) -> tuple[AlgorithmConfig, PreTrainedModel | None]:
    """Where `student_layers` is a number, the settings with the layers that `rlgkd.cutting` chooses.

    Returns also the student, whole, if it had to be opened for that.

    Raises: SettingError for a number that the student cannot be cut to; what opening the student raises.
    """
    number = config.model.student_layers
    if not isinstance(number, int):
        return config, None
    with relabelled("student"):
        if tokenizer is None:
            tokenizer = load_tokenizer(policy) if isinstance(policy, str) else task.tokenizer
        named = policy if isinstance(policy, str) else ""
        check_same_vocabulary(task.tokenizer, tokenizer, field="student", owner="environment", name=named)
        whole = language_model(load(policy, dtype=dtype_of(config.model.dtype), device=device), tokenizer)
        share_end_ids(task, whole)
        cut = best_cut(whole, task, number)
    _log.warning(
        "student_layers: %d: of %s layers %d to %d are left out; reverse KL to the whole model %.3f nats a token",
        number,
        whole.module.config.name_or_path or "the student",
        cut.left_out[0],
        cut.left_out[-1],
        cut.reverse_kl,
    )
    model = config.model.model_copy(update={"student_layers": cut.kept})
    return config.model_copy(update={"model": model}), whole.module


def open_models(
    task: Task,
    config: AlgorithmConfig,
    *,
    policy: str | Any,
    teacher: str | Any | None,
    tokenizer: PreTrainedTokenizerBase | None,
    seed: int,
    device: torch.device,
    opened: PreTrainedModel | None = None,
) -> tuple[LanguageModel, Teacher | None]:
    """Open the student, to be trained, and the teacher, frozen; `opened` is the student's module, if it is open.

    Each is a name, a transformers model, or a PeftModel around one, whose adapters the student goes on to train; a
    teacher may be a server, a file, or a mapping of names to models too. What a loaded student has frozen stays frozen.
    If the teacher is the student's start, the two share what is frozen: with LoRA all weights but the adapters. With
    `self` and a `teacher_decay` of 0 they share everything. `seed` is that of the adapters.

    Raises: ModelError for a missing, damaged or wholly frozen model, other vocabularies, or a context too short for the
    task; SettingError for a task with a mask, a `teacher_prompt` that cannot be made, or for LoRA on a model with
    adapters; DependencyError for LoRA without peft.
    """
    if getattr(task, "mask", None) is not None:
        raise SettingError("mask", "of the task", "this agent samples without it; use SB3's PPO, or leave it out")
    model, sampling = config.model, config.sampling
    decoding: dict[str, Any] = {"rows_at_once": sampling.rows_at_once, "compile_decoding": sampling.compile_decoding}
    with relabelled("teacher"):
        if not isinstance(teacher, str | Mapping | None):
            teacher = unwrapped(teacher)
    with relabelled("student"):
        if not isinstance(policy, str):
            policy = unwrapped(policy)
        if tokenizer is None:
            tokenizer = load_tokenizer(policy) if isinstance(policy, str) else task.tokenizer
        named = policy if isinstance(policy, str) else ""
        check_same_vocabulary(task.tokenizer, tokenizer, field="student", owner="environment", name=named)
        if end_token(tokenizer) != end_token(task.tokenizer):
            raise ModelError("student", tokenizer.eos_token, f"the environment ends with {task.tokenizer.eos_token!r}")
        template = getattr(task, "chat_template", None)
        if template is not None and tokenizer.chat_template != template.as_saved:
            # The student is saved with the template that it is trained in.
            tokenizer = copy.deepcopy(tokenizer)
            tokenizer.chat_template = template.as_saved
        if opened is None:
            opened = load(policy, dtype=dtype_of(model.dtype), device=device)
        if is_fixed(opened):
            remedy = "it is quantised or spread over devices, and cannot be trained; only a teacher may be so"
            raise ModelError("model", opened.config.name_or_path or opened.config.model_type, remedy)
    if model.student_layers and model.lora_rank and opened is policy:
        opened = frozen_view(opened)  # what trains is a cut copy, so the caller's stays as it is
    if model.lora_rank:
        opened.requires_grad_(False)
    assert not isinstance(model.student_layers, int)  # `with_chosen_layers` comes first
    module = load(opened, layers=model.student_layers, dtype=None, device=device)  # a copy where layers are cut
    frozen: Teacher | None = None
    if isinstance(teacher, Mapping):
        pass  # opened with the student, which they may be
    elif is_outside(teacher):
        frozen = open_outside_teacher(task, config, str(teacher), tokenizer)
    elif teacher is not None and not is_self(teacher):
        start = None
        elsewhere = config.teacher.teacher_device is not None or config.teacher.teacher_quantization is not None
        if teacher == policy and elsewhere and not isinstance(policy, str):
            start = copy.deepcopy(opened)
        elif teacher == policy and not elsewhere and (model.dtype == config.teacher.teacher_dtype or opened is policy):
            # Opened once; the student's own start must stay where it is while the student moves.
            start = copy_sharing_frozen(opened) if module is opened else frozen_view(opened)
        elif config.teacher.teacher_decay is not None and isinstance(teacher, PreTrainedModel):
            teacher = copy.deepcopy(teacher)  # it will move; the caller's stays
        frozen = open_teacher(task, config, teacher, tokenizer, device=device, opened=start, **decoding)
    with relabelled("student"):
        if model.lora_rank:
            add_adapters(module, model.lora_rank, alpha=model.lora_alpha, seed=seed)
        check_adapters(module)
        if is_self(teacher):  # with the adapters, which add nothing yet, so that both compute the same to the bit
            frozen = open_self(task, config, module, tokenizer, device=device, **decoding)
        if model.save_adapter:
            adapter_name(module)
        if model.gradient_checkpointing:
            enable_gradient_checkpointing(module)
        student = language_model(module, tokenizer, temperature=sampling.temperature, **decoding)
    if not any(p.requires_grad for p in module.parameters()):
        name = module.config.name_or_path
        raise ModelError("student", name, "all its parameters are frozen; let some require a gradient")
    check_context(task, "student", student)
    share_end_ids(task, student)
    if isinstance(teacher, Mapping):
        return student, open_several(task, config, teacher, student, device=device, **decoding)
    if not isinstance(frozen, LanguageModel):
        return student, frozen
    name = teacher if isinstance(teacher, str) else ""
    own_format = bool(name) and teacher != policy and not is_self(teacher)
    fits = fitted(task, config, frozen, student, name=name, own_format=own_format, device=device, **decoding)
    return student, fits


def open_served_texts(
    task: Task, config: AlgorithmConfig, student: LanguageModel, *, seed: int, ranks: Ranks
) -> ServedTexts | None:
    """Open the servers that sample the student's texts; None if it samples in this process.

    Raises: SettingError for a student that such servers cannot have; ModelError as `open_sampler`.
    """
    settings = config.served
    if not settings.sampler:
        return None
    if student.module.config.is_encoder_decoder:
        remedy = "vLLM has no encoder-decoder models; leave it out"
        raise SettingError("sampler", settings.sampler[0], remedy)
    longest = task.max_prompt_tokens + task.max_new_tokens
    sampler = open_sampler(
        settings.sampler,
        student,
        longest=longest,
        group=config.sampling.group_size,
        timeout=settings.sampler_timeout,
        retries=settings.sampler_retries,
        concurrency=settings.sampler_requests,
        max_failed=settings.max_failed_sampler,
    )
    weights = open_weights(
        student,
        sampler,
        by=settings.sampler_weights,
        folder=settings.sampler_folder,
        longest=longest,
        timeout=settings.sampler_timeout,
    )
    return ServedTexts(sampler, weights, student, task, seed=seed, ranks=ranks)


def build_optimizer(
    module: nn.Module, config: AlgorithmConfig, schedule: Callable[[float], float], device: torch.device
) -> torch.optim.AdamW:
    """AdamW over what the module trains: matrices with weight decay, biases and norms without."""
    remedy = "give a function that returns finite numbers of 0 or more"
    try:
        rate = schedule(1.0)
    except Exception as error:  # of the user's own function
        raise SettingError("learning_rate", f"{type(error).__name__}: {error}", remedy) from error
    if not (math.isfinite(rate) and rate >= 0):
        raise SettingError("learning_rate", rate, remedy)
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.optimizer.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    # A second moment of 0.95, as language models are trained with (Brown et al. 2020, arXiv 2005.14165): at 0.999 it
    # remembers a thousand updates, which is more than many of these runs have.
    return torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=device.type in FUSED_ADAMW or None)


def check_same_models(ranks: Ranks, student: LanguageModel, teacher: Teacher | None) -> None:
    """Check that all processes begin with the same weights.

    Raises: SettingError on the process that differs from the main one; ProcessError on the others.
    """
    if ranks.size == 1:
        return
    lm = model_of(teacher)
    named = getattr(teacher, "name", "") if lm is None else weights_digest(lm.module)
    ranks.check_same({"student": weights_digest(student.module), "teacher": named})


def shard_models(ranks: Ranks, student: LanguageModel, teacher: Teacher | None, how: How) -> None:
    """Share the weights of student and teacher out over the processes, if that is wanted; a collective call.

    Raises: SettingError for a model that cannot be.
    """
    if how == "none" or ranks.size == 1:
        return
    for role, lm in (("student", student), ("teacher", model_of(teacher))):
        if lm is None:
            continue
        if not isinstance(lm, LanguageModel) or not (layers := marked_layers(lm.module)):
            kind = lm.module.config.model_type if isinstance(lm, LanguageModel) else "several models"
            raise SettingError("sharding", how, f"the {role} ({kind}) cannot be shared out; set it to none")
        shard(lm.module, layers, lm.bodies, ranks, how)


def check_same_prompts(ranks: Ranks, task: Task, items: Sequence[Item]) -> None:
    """Check that all processes draw the same items; warn if some have no prompt.

    Raises: SettingError on the process that differs from the main one; ProcessError on the others.
    """
    if ranks.size == 1:
        return
    prompts = repr([(item.key, task.encode_prompt(item)) for item in items])
    ranks.check_same({"prompts": hashlib.sha256(prompts.encode()).hexdigest()})
    if ranks.main and len(items) < ranks.size:
        _log.warning(
            "prompts_per_update: %d for %d processes: some have nothing to sample; raise it", len(items), ranks.size
        )


def trainable_state(module: nn.Module) -> nn.Module:
    """What a checkpoint must hold of a model: itself, or only its trained parameters if it has frozen ones.

    The frozen ones are those of the model that was opened, and a run that is resumed opens it again.
    """
    if all(p.requires_grad for p in module.parameters()):
        return module
    # A ParameterDict takes no name with a dot in it, which is how torch tells modules apart.
    trained = {name.replace(".", "/"): p for name, p in module.named_parameters() if p.requires_grad}
    return nn.ParameterDict(trained)

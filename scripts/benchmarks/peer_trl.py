"""Time and memory that TRL needs for the steps of `rlgkd benchmark`, in a process of its own: one line of JSON.

    python -m rlgkd.scripts.benchmarks.peer_trl JOB.json

TRL runs as its users run it on a CPU, with the settings that are to its advantage: attention by sdpa, the fused AdamW,
heads multiplied in chunks, no gradient checkpointing, nothing saved. The rest of its advice on speed (vLLM,
Liger, other kernels, fewer bits) needs a GPU. All is float32, or with a job's `precision` mixed by its `bf16`. In both
of its distilling trainers `beta` is 0 for forward and 1 for reverse KL.

With held-out prompts it also measures how good the student becomes (rlgkd.scripts.benchmarks.held_out).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from rlgkd.errors import DependencyError, SettingError
from rlgkd.lm import LanguageModel
from rlgkd.scripts._errors import one_line_errors
from rlgkd.scripts._peak_memory import peak_mb
from rlgkd.scripts.benchmarks.job import LORA_RANK, BenchmarkJob, read_job, rows_of


class Meter:
    """Seconds, new tokens and loss of each optimizer step, whose sampling must lie between `start` and `stop`."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.loss: list[float] = []
        self.peaks: list[float] = []
        """The most memory of the process up to each step, in MiB."""
        self.held_out: Callable[[], None] = lambda: None
        """Measures the student between two steps."""
        self._start = 0.0

    def start(self) -> None:
        """Begin a step."""
        self.tokens.append(0)
        self._start = time.perf_counter()

    def stop(self) -> None:
        """End the step: the weights are updated, the gradients cleared."""
        self.seconds.append(time.perf_counter() - self._start)
        self.peaks.append(peak_mb())
        self.held_out()

    def counted(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        """Return `generate` with its new tokens counted as the step's."""

        def counting(*args: Any, **kwargs: Any) -> Any:
            assert len(self.tokens) == len(self.seconds) + 1, "sampled outside the timed step"
            output = generate(*args, **kwargs)
            rows, length = getattr(output, "sequences", output).shape
            self.tokens[-1] += rows * (length - kwargs["input_ids"].shape[1])
            return output

        return counting


def measure(job: BenchmarkJob) -> dict[str, Any]:
    """Return seconds, new tokens and loss of each timed step, and the process's peak memory in MiB.

    Raises: SettingError for another kind of step; DependencyError without TRL.
    """
    if job.kind not in KINDS:
        raise SettingError("kind", job.kind, f"choose one of {', '.join(KINDS)}")
    if importlib.util.find_spec("trl") is None:
        raise DependencyError("peer", "trl", "it is not installed: pip install 'rlgkd[trl]'")
    # Set before the imports below read them. Online, TRL would report each trainer to its makers.
    os.environ.update(HF_HUB_OFFLINE="1", TRL_EXPERIMENTAL_SILENCE="1", TOKENIZERS_PARALLELISM="false")
    import torch
    import transformers

    torch.set_num_threads(job.threads)
    transformers.set_seed(job.seed)
    student, meter = _model(job.student), Meter()
    student.generate = meter.counted(student.generate)
    tokenizer = transformers.AutoTokenizer.from_pretrained(job.student, padding_side="left")
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    held_out = None
    if job.held_out:
        from rlgkd.scripts.benchmarks.held_out import HeldOut, own_forward

        held_out = HeldOut(job)

        def measure_student() -> None:
            with own_forward(student):
                held_out.measure(len(meter.seconds), sum(meter.seconds), LanguageModel(student, tokenizer))

        meter.held_out = measure_student
        meter.held_out()
    KINDS[job.kind](job, student, tokenizer, meter)
    steps = job.warmup + job.steps
    assert len(meter.seconds) == steps, len(meter.seconds)
    sampled = 0 if job.kind == "sft" else job.batch * job.new_tokens
    assert job.held_out or meter.tokens == [sampled] * steps, meter.tokens
    return {
        "seconds": meter.seconds[job.warmup :],
        "peak_mb": peak_mb(),
        "peaks_mb": meter.peaks[job.warmup :],
        "loss": meter.loss[job.warmup :],
        **({"curve": held_out.curve} if held_out else {}),
        "tokens": meter.tokens[job.warmup :],
        "versions": {package: version(package) for package in ("trl", "transformers", "torch")},
    }


def _distill(job: BenchmarkJob, student: Any, tokenizer: Any, meter: Meter) -> None:
    """Train by on-policy reverse KL, the heads multiplied chunk by chunk; the mean over all tokens."""
    from trl import DistillationConfig, DistillationTrainer

    def trainer(common: dict[str, Any], **parts: Any) -> Any:
        settings = DistillationConfig(
            **common,
            beta=1.0,
            max_completion_length=job.new_tokens,
            shuffle_dataset=False,
            generation_kwargs=_fixed_length(job),
        )
        return DistillationTrainer(args=settings, teacher_model=_model(job.teacher), **parts)

    rows = [{"prompt": prompt} for prompt in _prompts(job)]
    _train(trainer, rows, job, student, tokenizer, meter)


def _gkd(job: BenchmarkJob, student: Any, tokenizer: Any, meter: Meter) -> None:
    """Train by the same loss, from all logits at once, those of the prompts too."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    def trainer(common: dict[str, Any], **parts: Any) -> Any:
        settings = GKDConfig(
            **common,
            beta=1.0,
            lmbda=job.student_share,
            max_new_tokens=job.new_tokens,
            train_sampling_strategy="sequential",
        )
        made = GKDTrainer(args=settings, teacher_model=_model(job.teacher), **parts)
        if not job.held_out:
            made.generation_config.min_new_tokens = job.new_tokens
        return made

    # The loss is a sum divided by the number of labels in the data, so each row needs a completion of the right length,
    # whatever its tokens; the trainer replaces it by what the student samples.
    def row(prompt: str, reference: str) -> dict[str, Any]:
        ids = tokenizer(prompt)["input_ids"]
        completion = ids[-1:] * job.new_tokens
        if reference:
            completion = [*tokenizer(reference)["input_ids"], tokenizer.eos_token_id]
        mask = [0] * len(ids) + [1] * len(completion)
        return {"prompt": prompt, "input_ids": ids + completion, "completion_mask": mask}

    references = cycle(job.references or [""])
    rows = [row(*pair) for pair in zip(_prompts(job), references, strict=False)]
    _train(trainer, rows, job, student, tokenizer, meter)


def _rl(job: BenchmarkJob, student: Any, tokenizer: Any, meter: Meter) -> None:
    """Train by GRPO without a reference model; rewards are lengths of texts, so that a group's advantages are not 0."""
    from trl import GRPOConfig, GRPOTrainer

    overlap: Callable[[Sequence[str], Sequence[str]], list[float]] | None = None
    if job.held_out:
        from rlgkd.scripts.benchmarks.held_out import reward_of

        overlap = reward_of(rows_of(job.prompts, job.references))

    def reward(prompts: Sequence[str], completions: Sequence[str], **_: Any) -> list[float]:
        if overlap is not None:
            return overlap(prompts, completions)
        return [float(len(text)) for text in completions]

    def trainer(common: dict[str, Any], **parts: Any) -> Any:
        settings = GRPOConfig(
            **common,
            beta=0.0,
            num_generations=job.group,
            num_iterations=1,
            max_completion_length=job.new_tokens,
            shuffle_dataset=False,
            generation_kwargs=_fixed_length(job),
        )
        return GRPOTrainer(args=settings, reward_funcs=reward, **parts)

    rows = [{"prompt": prompt} for prompt in _prompts(job)]
    _train(trainer, rows, job, student, tokenizer, meter)


def _sft(job: BenchmarkJob, student: Any, tokenizer: Any, meter: Meter) -> None:
    """Train LoRA of all linear layers but the head on references, the mean over the references' tokens."""
    from peft import LoraConfig
    from trl import SFTConfig, SFTTrainer

    def trainer(common: dict[str, Any], **parts: Any) -> Any:
        del common["temperature"]
        settings = SFTConfig(**common | {"learning_rate": 1e-3}, train_sampling_strategy="sequential", max_length=None)
        lora = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear")
        return SFTTrainer(args=settings, peft_config=lora, **parts)

    count = (job.warmup + job.steps) * job.batch
    pairs = islice(cycle(zip(job.prompts, job.references, strict=True)), count)
    rows = [{"prompt": prompt, "completion": reference} for prompt, reference in pairs]
    _train(trainer, rows, job, student, tokenizer, meter)


def _generate(job: BenchmarkJob, student: Any, tokenizer: Any, meter: Meter) -> None:
    """Sample alone, by transformers."""
    prompts = iter(_prompts(job))
    for _ in range(job.warmup + job.steps):
        batch = tokenizer(list(islice(prompts, job.batch)), padding=True, return_tensors="pt")
        meter.start()
        student.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=job.new_tokens,
            max_new_tokens=job.new_tokens,
            pad_token_id=tokenizer.pad_token_id,
        )
        meter.stop()


KINDS: dict[str, Callable[[BenchmarkJob, Any, Any, Meter], None]] = {
    "distill": _distill,
    "gkd": _gkd,
    "rl": _rl,
    "sft": _sft,
    "generate": _generate,
}


def _train(
    trainer: Callable[..., Any],
    rows: list[dict[str, Any]],
    job: BenchmarkJob,
    student: Any,
    tokenizer: Any,
    meter: Meter,
) -> None:
    """Take all steps of a trainer, made of the settings that all trainers share, with the meter on each."""
    from datasets import Dataset
    from transformers import TrainerCallback

    class Steps(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            meter.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            meter.stop()

        def on_log(self, *_: Any, **given: Any) -> None:
            if "loss" in given["logs"]:  # the last report has none
                meter.loss.append(given["logs"]["loss"])

    with tempfile.TemporaryDirectory() as folder:
        common = {
            "output_dir": folder,
            "seed": job.seed,
            "max_steps": job.warmup + job.steps,
            "per_device_train_batch_size": job.batch,
            "gradient_accumulation_steps": 1,
            "temperature": 1.0,
            "learning_rate": job.learning_rate,
            "lr_scheduler_type": "constant",
            "use_cpu": True,
            "bf16": job.precision == "bfloat16",
            "gradient_checkpointing": False,
            "dataloader_pin_memory": False,
            "logging_steps": 1,
            "report_to": "none",
            "save_strategy": "no",
            "disable_tqdm": True,
        }
        data = Dataset.from_list(rows)
        made = trainer(common, model=student, train_dataset=data, processing_class=tokenizer, callbacks=[Steps()])
        made.train()


def _fixed_length(job: BenchmarkJob) -> dict[str, int] | None:
    """What keeps texts from ending before the limit, where speed alone is measured."""
    return None if job.held_out else {"min_new_tokens": job.new_tokens}


def _prompts(job: BenchmarkJob) -> list[str]:
    """Return as many prompts as all steps take."""
    return list(islice(cycle(job.prompts), (job.warmup + job.steps) * job.batch // job.group))


def _model(folder: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the job of a file and print one line of JSON, and nothing else, on stdout."""
    (file,) = sys.argv[1:] if arguments is None else arguments
    with one_line_errors(), contextlib.redirect_stdout(sys.stderr):  # the trainers print their losses
        measured = measure(read_job(Path(file)))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()

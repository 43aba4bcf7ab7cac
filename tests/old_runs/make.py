"""Writes what lies beside this file: runs and agents as an older rlgkd left them, for tests/test_old_runs.py to open.

    student/           a model of one layer, 16 wide, distilled from embedded:translate-teacher
    stopped/RUN/       a run's folder as SIGKILL left it: a checkpoint, and files that had grown beyond it
    finished/RUN/      the folder of the same run, which was not stopped
    agents/AGENT/      what `agent.save` wrote
    compared/          what a finished comparison is known by, and its results
    expected.json      what the code that wrote them makes of them: texts, scores, one more update

What lies here is of commit 83d9c8d (rlgkd 0.1.0), and stays: a later format gets a folder of its own. It was made by

    git worktree add /tmp/old 83d9c8d
    PYTHONPATH=/tmp/old python tests/old_runs/make.py

on CPU, in some two minutes, in a folder of the system's temporary ones, from where it is moved here. What was written
is left as it was but for two things: in config.yaml the absolute path of `student/` is made relative to the run's
folder, so that all may lie anywhere, and what no test reads is deleted: TensorBoard's events, reports, locks, the
checkpoints of the finished runs, models and texts of the comparison's.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from stable_baselines3.common.logger import configure
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

import rlgkd
from rlgkd import agents

HERE = Path(__file__).resolve().parent
STOPPED, FINISHED, AGENTS, COMPARED = (HERE / name for name in ("stopped", "finished", "agents", "compared"))
EXPECTED = HERE / "expected.json"
MADE_AT = Path(tempfile.gettempdir()) / "old_runs"
STUDENT = MADE_AT / "student"
ENV, TEACHER = "rlgkd/Translate-v0", "embedded:translate-teacher"
SMALL = {"prompts_per_update": 4, "group_size": 2, "learning_rate": 0.001, "seed": 3, "device": "cpu"}
RUNS = {
    "reinforce": (
        "translate",
        "divergence=jsd(0.9)",
        "alpha=0.4",
        "student_fraction=0.9",
        "student_fraction_end=0.3",
        "student_fraction_shape=cosine",
        "mixture=prompt",
    ),
    "ppo": (
        "ppo",
        f"env={ENV}",
        f"teacher={STUDENT}",
        "teacher_decay=0.9",
        "divergence_target=0.05",
        "normalise_rewards=true",
    ),
}
OF_A_RUN = ("tokens=600", "eval_prompts=8", "checkpoint_every=3", "threads=1", f"student={STUDENT}")
SAVED: dict[str, tuple[str, dict[str, Any]]] = {
    "reinforce": ("Reinforce", {"teacher": TEACHER, "alpha": 0.25, "divergence": "jsd", "beta": 0.9}),
    "grpo": ("GRPO", {"alpha": 0.0, "clip_low": 0.1, "clip_high": 0.28, "epochs": 2, "drop_even_groups": True}),
    "ppo": ("PPO", {"teacher": TEACHER, "alpha": 0.1, "gae_lambda": 0.9, "value_clip": None, "epochs": 2}),
    "t5": ("Distill", {"divergence": "skew_forward_kl", "skew": 0.2, "student_fraction": 0.5, "teacher_decay": 0.9}),
}
"""Name -> the agent's class, and its settings beside SMALL."""
COMPARISON = (
    "compare",
    "translate",
    "--alphas",
    "0,0.5",
    "--seeds",
    "1",
    "--samples",
    "1",
    "--jobs",
    "1",
    "--quiet",
    "tokens=300",
    "prompts_per_update=4",
    "group_size=2",
    "eval_prompts=6",
    "device=cpu",
)
PROMPTS = [
    f" English: {english}\nGerman:"
    for english in ("four and half past nine", "six thousand and fifty-seven letters", "Friday, the third of May")
]
EVALUATED = ("--prompts", "12", "--greedy")


def main() -> None:
    """Write everything anew."""
    print(f"written by {rlgkd.__file__}")
    MADE_AT.mkdir()
    tokenizer = AutoTokenizer.from_pretrained(Path(rlgkd.__file__).parent / "assets" / "translate-student")
    module = taught(llama(len(tokenizer)), tokenizer, tokens=600_000)
    module.save_pretrained(STUDENT)
    tokenizer.save_pretrained(STUDENT)
    for name, settings in RUNS.items():
        arguments = ["train", *settings, *OF_A_RUN, *(f"{key}={value}" for key, value in SMALL.items()), "--quiet"]
        finished, stopped = (MADE_AT / folder.name / name for folder in (FINISHED, STOPPED))
        command_line(*arguments, "--out", str(finished))
        stop(arguments, stopped)
        shutil.rmtree(finished / "checkpoints")
        strip(finished)
        strip(stopped)
    encoder_decoder = taught(t5(len(tokenizer)), tokenizer, tokens=300_000)
    for name, (kind, settings) in SAVED.items():
        models = {"policy": str(STUDENT)}
        if name == "t5":
            models = {"policy": encoder_decoder, "teacher": encoder_decoder, "tokenizer": tokenizer}
        agent = getattr(agents, kind)(env=ENV, **{**SMALL, **settings, **models})
        agent.learn(150)
        agent.save(MADE_AT / AGENTS.name / name)
    command_line(*COMPARISON, "--out", str(MADE_AT / COMPARED.name))
    for path in [*(MADE_AT / COMPARED.name).rglob("*")]:
        if path.is_file() and path.name not in ("config.yaml", "measured.json", "results.json"):
            path.unlink()
    for folder in [*MADE_AT.iterdir()]:
        shutil.rmtree(HERE / folder.name, ignore_errors=True)
        shutil.move(folder, HERE / folder.name)
    MADE_AT.rmdir()
    expected = {
        "agents": {name: behaviour(name) for name in SAVED},
        "finished": {name: {"scores": scores(FINISHED / name), "text": text(FINISHED / name)} for name in RUNS},
    }
    EXPECTED.write_text(json.dumps(expected, indent=1, sort_keys=True) + "\n")


def behaviour(name: str) -> dict[str, Any]:
    """What a saved agent does: its texts, the record of one more update, and its texts behind that."""
    agent = opened(name)
    before = texts(agent)
    with tempfile.TemporaryDirectory() as folder:
        agent.set_logger(configure(folder, ["csv"]))
        agent.learn(1, reset_num_timesteps=False)
        agent.logger.close()
        (row,) = rows(Path(folder))
    return {"before": before, "update": row, "after": texts(agent)}


def texts(agent: Any) -> list[str]:
    """The likeliest completions of the prompts, and sampled ones."""
    return [*agent.generate(PROMPTS), *agent.generate(PROMPTS, greedy=False, seed=1)]


def opened(name: str) -> Any:
    """A saved agent."""
    return getattr(agents, SAVED[name][0]).load(AGENTS / name, ENV, device="cpu")


def scores(run: Path) -> dict[str, float]:
    """What `rlgkd evaluate` prints of a run: measure -> mean."""
    printed = command_line("evaluate", str(run), *EVALUATED)
    lines = re.findall(r"^│\s*([\w ]+?)\s*│\s*(-?[\d.]+)\s*│", printed, re.MULTILINE)
    return {name: float(mean) for name, mean in lines}


def text(model: Path) -> str:
    """What `rlgkd generate` prints."""
    return command_line("generate", str(model), PROMPTS[0], "--greedy", "--max-new-tokens", "20")


def command_line(*arguments: str) -> str:
    """Run `rlgkd ARGUMENTS` in this process; returns what it printed.

    Raises: RuntimeError if it complained.
    """
    from rlgkd.scripts import cli

    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            cli.main(arguments)
        except SystemExit as left:
            if left.code:
                raise RuntimeError(f"{' '.join(arguments)}: {told.getvalue()}") from left
    return printed.getvalue()


def rows(run: Path) -> list[dict[str, float]]:
    """Of progress.csv."""
    with (run / "progress.csv").open() as file:
        return [{key: float(value or "nan") for key, value in row.items()} for row in csv.DictReader(file)]


def taught(module: PreTrainedModel, tokenizer: Any, *, tokens: int) -> PreTrainedModel:
    """The model behind some distillation on the references, so that it writes words of German."""
    settings = {"divergence": "forward_kl", "student_fraction": 0.0, "learning_rate": 0.01, "prompts_per_update": 64}
    if not module.config.is_encoder_decoder:
        settings |= {"teacher": TEACHER}
    else:  # the teacher is none
        settings |= {"estimator": "sampled"}
    agent = agents.Distill(module, ENV, tokenizer=tokenizer, group_size=1, device="cpu", **settings)
    agent.learn(tokens)
    return module


def llama(vocabulary: int) -> PreTrainedModel:
    """Of random weights."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config)


def t5(vocabulary: int) -> PreTrainedModel:
    """Of random weights."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        initializer_factor=0.5,
        decoder_start_token_id=0,
        eos_token_id=1,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    return T5ForConditionalGeneration(config)


def stop(arguments: list[str], out: Path) -> None:
    """Start a run and kill it behind its first checkpoint, where it has gone on."""
    process = subprocess.Popen([sys.executable, "-m", "rlgkd.scripts", *arguments, "--out", str(out)])
    while process.poll() is None and not (grown(out) and any(out.glob("checkpoints/step-*"))):
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert len([*out.glob("checkpoints/step-*")]) == 1 and grown(out) and not (out / "summary.json").exists()


def grown(out: Path) -> bool:
    """Whether texts were written since the checkpoint."""
    states = [json.loads(file.read_text()) for file in out.glob("checkpoints/step-*/state.json")]
    return any((out / "rollouts.jsonl").stat().st_size > state["sizes"]["rollouts.jsonl"] for state in states)


def strip(run: Path) -> None:
    """Delete what no test reads, and make the paths of its settings relative."""
    shutil.rmtree(run / "tensorboard")
    for name in ("report.html", ".lock"):
        (run / name).unlink(missing_ok=True)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace(str(STUDENT), f"../../{STUDENT.name}"))


if __name__ == "__main__":
    main()

"""Writes a project of one's own that runs as it is: settings, reward, data, README: `rlgkd init`."""

from __future__ import annotations

import json
from pathlib import Path

from rlgkd import checkpoint
from rlgkd.errors import CheckpointError

ROWS = {"train": 300, "test": 64}
"""Rows of each file of data."""
SETTINGS = """\
# Settings of a run: `rlgkd list settings` has them all, `rlgkd list settings WORD` finds one.
name: mine

env: rlgkd/Dataset-v0
env_settings:
  data: {train: train.jsonl, test: test.jsonl} # a row has the columns that you like; CSV, Parquet and the hub work too
  prompt: " {passage}\\nSummary:" # filled in from a row
  reference: summary # right answers, if you have some
  reward: reward.py:short_and_right
  max_prompt_tokens: 192
  max_new_tokens: 32
  # For a chat model:
  # chat: true
  # system: You write one short sentence.
  # stop: ["\\n"]

student: embedded:grounded-student # a path, a name of the hub, ...
teacher: embedded:grounded-teacher # the same; null for none, the student's name to stay close to the start
# The method. For a recipe's (rlgkd train on-policy-kd run.yaml) leave out these two lines, which are put over it.
agent: Reinforce
alpha: 0.25 # the divergence weighs alpha / (1 - alpha) of the reward
learning_rate: 0.001 # for a pretrained model that is trained whole 1e-5, with lora_rank 1e-4
prompts_per_update: 16
group_size: 4
tokens: 30000
eval_prompts: 64
"""
REWARD = '''\
"""The reward: any function of completions, references, prompts or columns of the data, by name.

It returns a number for each completion. One that it cannot judge is better raised than scored: a failure is counted and
left out of training.
"""


def short_and_right(completions, references):
    """Words shared with the reference (F1, 0 to 1), and 0.02 less for each word beyond twelve."""
    return [
        overlap(completion, reference) - 0.02 * max(0, len(completion.split()) - 12)
        for completion, reference in zip(completions, references, strict=True)
    ]


def overlap(text, reference):
    """The F1 of two texts' words."""
    ours, theirs = words(text), words(reference)
    common = len(ours & theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def words(text):
    return {word.strip(".,!?").lower() for word in text.split()}
'''
README = """\
# A project for rlgkd

    rlgkd check run.yaml                     # do prompts fit, does the reward pay right answers most?
    rlgkd train run.yaml --dry-run           # memory, time, and the first prompt as the model reads it
    rlgkd train run.yaml --out runs/mine     # the report is runs/mine/report.html
    rlgkd generate runs/mine '{"passage": "A farm was sold by Mara Telby."}'
    rlgkd compare run.yaml --alphas 0,0.25,1 --seeds 3    # how much teacher?
    rlgkd push runs/mine owner/name          # or a folder: ./shared/mine

It runs as it is, in about a minute on two cores, and holds what you change:

| file | what it is |
| --- | --- |
| `run.yaml` | all settings; paths in it are looked up from its folder |
| `reward.py` | the reward, a function |
| `train.jsonl`, `test.jsonl` | rows of data; those that came with this project are made up |

1. Put your rows into `train.jsonl` and `test.jsonl`, and name their columns in `prompt` and `reference`.
2. Write your reward, and `rlgkd check run.yaml` until nothing fails.
3. Name your model as `student`, and as `teacher` a better one, or the same.
"""


def write_project(folder: Path) -> list[Path]:
    """Write the files of a project and return them.

    Raises: CheckpointError if one of them is there already, or cannot be written; nothing is written then.
    """
    files = {"README.md": README, "run.yaml": SETTINGS, "reward.py": REWARD}
    files |= {f"{split}.jsonl": _rows(split, number) for split, number in ROWS.items()}
    paths = [folder / name for name in files]
    for path in paths:
        if path.exists():
            raise CheckpointError("folder", str(folder), f"{path.name} is there already; give another folder")
    with checkpoint.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for path, text in zip(paths, files.values(), strict=True):
        checkpoint.atomic_write(path, text)
    return paths


def _rows(split: str, number: int) -> str:
    """Stories of GroundedSummary, with their summaries."""
    from rlgkd.envs.tasks.grounded.world import story

    stories = (story(split, 0, index) for index in range(number))
    return "".join(json.dumps({"passage": s.passage, "summary": s.reference}) + "\n" for s in stories)

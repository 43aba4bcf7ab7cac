"""The embedded models keep what their cards promise, and stay small."""

from __future__ import annotations

import numpy as np
import pytest

from rlgkd.envs.tasks.grounded.env import classifier, grounded_summary
from rlgkd.envs.tasks.grounded.pairs import pair
from rlgkd.evaluation import Evaluation, evaluate
from rlgkd.lm import LanguageModel, load, load_tokenizer
from rlgkd.lm.model_names import ASSETS
from rlgkd.scripts.assets.build import STAGES
from rlgkd.scripts.assets.procedural import TASKS, build_tokenizer
from rlgkd.types import Task

FAMILIES = ("grounded", *TASKS)


def written(name: str, task: Task, prompts: int) -> Evaluation:
    return evaluate(LanguageModel(load(name), load_tokenizer(name)), None, task, split="test", prompts=prompts, seed=3)


def truth(name: str) -> float:
    return float(written(name, grounded_summary(), 512).measures["truth"].mean())


def test_the_teacher_tells_the_truth_and_the_student_clearly_less_often() -> None:
    assert truth("embedded:grounded-teacher") >= 0.95
    assert truth("embedded:grounded-student") <= 0.75


@pytest.mark.parametrize("name", TASKS)
def test_a_procedural_teacher_is_nearly_always_right_and_its_student_about_half_the_time(name: str) -> None:
    task = TASKS[name].make()
    teacher, student = (written(f"embedded:{name}-{role}", task, 400).measures for role in ("teacher", "student"))
    assert teacher["exact"].mean() >= 0.93  # the cards say 0.95 or more, of a larger sample
    assert 0.3 <= student["exact"].mean() <= 0.65
    assert teacher["ended"].mean() >= 0.99 and student["ended"].mean() >= 0.98


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_is_about_a_tenth_of_its_teacher(family: str) -> None:
    sizes = [load(f"embedded:{family}-{role}").num_parameters() for role in ("student", "teacher")]
    assert sizes[0] < sizes[1] / 8


def test_the_classifier_tells_near_misses_from_true_sentences() -> None:
    pairs = [pair("test", 5, index) for index in range(2000)]
    probabilities = classifier()([p.premise for p in pairs], [p.hypothesis for p in pairs])
    right = [(probability > 0.5) == p.entailed for probability, p in zip(probabilities, pairs, strict=True)]
    assert np.mean(right) >= 0.97


def test_the_models_stay_under_20_megabytes_and_each_has_a_card_and_a_stage_that_builds_it() -> None:
    files = [path for path in ASSETS.rglob("*") if path.is_file()]
    assert sum(file.stat().st_size for file in files) < 20e6
    assert sum(file.stat().st_size for file in files if file.parent.name.startswith(tuple(TASKS))) < 6.5e6
    folders = [path.parent for path in files if path.name == "config.json"]
    assert {folder.name for folder in folders} == set(STAGES) and len(folders) == len(STAGES)
    for folder in folders:
        assert "Scores" in (folder / "README.md").read_text()
        assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt", ".pkl")]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_models_of_a_task_share_one_tokenizer(family: str) -> None:
    shared = {path.read_text() for path in ASSETS.glob(f"{family}-*/tokenizer.json")}
    assert len(shared) == 1


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_is_rebuilt_as_it_ships(name: str) -> None:
    rebuilt = build_tokenizer(TASKS[name]).backend_tokenizer
    shipped = load_tokenizer(f"embedded:{name}-teacher").backend_tokenizer
    assert rebuilt.to_str() == shipped.to_str()


@pytest.mark.parametrize(
    ("name", "text", "tokens"),
    [
        ("arithmetic", " 45 + 307 = 352. ####", [" 4", "5", " +", " 3", "0", "7", " =", " 3", "5", "2", ".", " ####"]),
        ("translate", " zweihundertdreiundzwanzig Häuser", [" zwei", "hundert", "drei", "und", "zwanzig", " Häuser"]),
        (
            "translate",
            " eintausendfünfzehn und der achtundzwanzigste März",
            [" ein", "tausend", "fünfzehn", " und", " der", " acht", "und", "zwanzig", "ste", " März"],
        ),
        ("translate", " twenty-two", [" twenty", "-two"]),
        ("arithmetic", " é", [" ", "�", "�"]),
    ],
)
def test_a_digit_and_a_part_of_a_number_is_one_token_and_anything_else_is_spelled(
    name: str, text: str, tokens: list[str]
) -> None:
    tokenizer = load_tokenizer(f"embedded:{name}-student")
    ids = tokenizer(text)["input_ids"]
    assert [tokenizer.decode([token]) for token in ids] == tokens
    assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize("name", TASKS)
def test_the_default_limits_fit_every_item_closely_and_the_context_fits_the_hardest(name: str, split: str) -> None:
    recipe = TASKS[name]
    task = recipe.make()
    items = [task.item(split, 1, index) for index in range(3000)]
    prompt = max(len(task.encode_prompt(item)) for item in items)
    completion = max(len(task.encode_completion(item.reference)) for item in items)
    assert task.max_prompt_tokens - 4 <= prompt <= task.max_prompt_tokens
    assert task.max_new_tokens - 6 <= completion <= task.max_new_tokens
    hardest = recipe.make(**recipe.hardest, max_prompt_tokens=recipe.context)
    for item in (hardest.item(split, 1, index) for index in range(3000)):
        assert len(hardest.encode_prompt(item)) + len(hardest.encode_completion(item.reference)) <= recipe.context

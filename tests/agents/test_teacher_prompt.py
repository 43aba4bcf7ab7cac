"""A teacher that sees more: what it reads, against plain transformers on the two texts; and `self` as a teacher."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from chat_models import CHATML, folder, tokenizer
from chat_models import model as chat_model
from tiny import model, word_tokenizer

from rlgkd.agents import GRPO, PPO, RLOO, Distill, Reinforce
from rlgkd.agents.siblings import with_siblings
from rlgkd.envs import TextGenerationEnv
from rlgkd.errors import DataError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel
from rlgkd.lm.own_format import as_read_by
from rlgkd.scripts.config.run import RunConfig
from rlgkd.scripts.runs.train import start
from rlgkd.types import Item, Trajectory

WORDS = ("A", "B", "C", "D", "E", "F", "G")
ROWS = [{"prompt": "A B", "reference": "C", "hint": "D E"}, {"prompt": "B A", "reference": "D", "hint": "F"}]
FEW: dict[str, Any] = {"prompts_per_update": 2, "group_size": 3}
AGENTS = {"Reinforce": Reinforce, "RLOO": RLOO, "GRPO": GRPO, "PPO": PPO, "Distill": Distill}


def length(completions: list[str]) -> list[float]:
    return [float(len(text.split())) for text in completions]


def words_env(rows: Any = ROWS, *, reward: Any = length, **settings: Any) -> TextGenerationEnv:
    given = {"max_new_tokens": 5, "max_prompt_tokens": 8, "tokenizer": word_tokenizer(*WORDS)}
    return TextGenerationEnv(prompts=rows, reward=reward, **{**given, **settings})


def student(kind: str = "llama", seed: int = 0) -> Any:
    return model(kind, vocabulary=len(WORDS) + 1, seed=seed)


@torch.no_grad()
def reverse_kl(own: Any, other: Any, t: Trajectory, read: list[int]) -> float:
    """The mean of KL(student || teacher) over a text of one turn, the teacher reading `read`: plain transformers."""
    actions = t.tokens_T[t.action_mask_T].tolist()
    prompts = (t.tokens_T[: -len(actions)].tolist(), read)
    logp = []
    for module, prompt in zip((own, other), prompts, strict=True):
        if module.config.is_encoder_decoder:
            given = {"input_ids": torch.tensor([[*prompt, 0]]), "decoder_input_ids": torch.tensor([[0, *actions[:-1]]])}
            logits = module(**given).logits[0]
        else:
            logits = module(input_ids=torch.tensor([[*prompt, *actions]])).logits[0, len(prompt) - 1 : -1]
        logp.append(logits.double().log_softmax(-1))
    return float((logp[0].exp() * (logp[0] - logp[1])).sum(-1).mean())


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_the_divergence_is_that_of_a_teacher_that_reads_its_own_prompt(kind: str) -> None:
    agent = Distill(student(kind), words_env(), teacher=student(kind, 1), teacher_prompt="{hint} {prompt}", **FEW)
    start_weights = {name: p.detach().clone() for name, p in agent.student.module.named_parameters()}
    agent.learn(1)
    own = student(kind)
    own.load_state_dict(start_weights, strict=False)
    ids = {row["prompt"]: agent.task.tokenizer(f"{row['hint']} {row['prompt']}")["input_ids"] for row in ROWS}
    if kind == "t5":
        ids = {prompt: [id_ for id_ in row if id_] for prompt, row in ids.items()}
    kls = [reverse_kl(own, student(kind, 1), t, ids[t.item.prompt]) for t in agent.trajectories]
    assert agent.last_metrics["train/divergence"] == pytest.approx(np.mean(kls), abs=1e-5)
    plain = [reverse_kl(own, student(kind, 1), t, t.tokens_T[~t.action_mask_T].tolist()) for t in agent.trajectories]
    assert np.mean(kls) != pytest.approx(np.mean(plain), rel=0.01)


def test_after_its_prompt_the_teacher_reads_the_very_ids_of_the_student_turn_by_turn() -> None:
    """Replies of the task too, whatever their text would be encoded as."""

    def answer(item: Item, turns: list[str]) -> str | None:
        return "G G" if len(turns) < 3 else None

    env = words_env(reply=answer, max_new_tokens=12)
    agent = Distill(student(), env, teacher="self", teacher_prompt="{hint} {prompt}", **FEW)
    agent.learn(1)
    assert any(len(t.turns) == 3 for t in agent.trajectories)
    for t, read in zip(agent.trajectories, as_read_by(agent.teacher, agent.trajectories), strict=True):
        first = int(t.action_mask_T.argmax())
        more = len(t.item.columns["hint"].split())
        assert read.tokens_T[more:].tolist() == t.tokens_T.tolist()
        assert read.action_mask_T[more + first :].tolist() == t.action_mask_T[first:].tolist()
        assert not read.action_mask_T[: more + first].any()
        assert agent.teacher_prompt_of(t) == f"{t.item.columns['hint']} {t.item.prompt}"


def test_in_several_turns_the_teachers_log_probabilities_are_those_of_the_whole_text() -> None:
    def answer(item: Item, turns: list[str]) -> str | None:
        return "G G" if len(turns) < 3 else None

    env = words_env(reply=answer, max_new_tokens=12)
    agent = Distill(student(), env, teacher=student(seed=1), teacher_prompt="{hint} {prompt}", **FEW)
    agent.learn(1)
    found_BL = agent.rollout.log_probabilities(agent.teacher, 1000)
    for row, t in enumerate(agent.trajectories):
        hint = agent.task.tokenizer(t.item.columns["hint"])["input_ids"]
        tokens = [*hint, *t.tokens_T.tolist()]
        with torch.no_grad():
            logp_TV = student(seed=1)(input_ids=torch.tensor([tokens])).logits[0].double().log_softmax(-1)
        places = np.flatnonzero(t.action_mask_T) + len(hint)
        wanted = [float(logp_TV[place - 1, tokens[place]]) for place in places]
        assert found_BL[row, : t.length].tolist() == pytest.approx(wanted, abs=1e-5)


def test_in_a_chat_the_prompt_is_the_users_message(tmp_path) -> None:
    own = tokenizer("<|im_end|>", template=CHATML)
    name = folder(chat_model(own, kind="llama"), own, tmp_path / "student")
    rows = [
        {"prompt": [{"role": "system", "content": "Hm."}, {"role": "user", "content": "Ask"}], "hint": "Tell"},
        {"prompt": [{"role": "user", "content": "What"}], "hint": "That"},
    ]
    env = TextGenerationEnv(
        prompts=rows, reward=length, tokenizer=name, chat=True, max_prompt_tokens=96, max_new_tokens=4
    )
    agent = Distill(name, env, teacher="self", teacher_prompt="{hint}: {prompt}", **FEW)
    agent.learn(1)
    read = {agent.teacher_prompt_of(t) for t in agent.trajectories}
    of_the_first = "<|im_start|>system\nHm.<|im_end|>\n<|im_start|>user\nTell: Ask<|im_end|>\n<|im_start|>assistant\n"
    assert read == {of_the_first, "<|im_start|>user\nThat: What<|im_end|>\n<|im_start|>assistant\n"}
    assert agent.last_metrics["train/divergence"] > 0


@pytest.mark.parametrize(
    ("agent", "more"),
    [
        *((name, {}) for name in AGENTS),
        ("GRPO", {"lora_rank": 2}),
        ("PPO", {"teacher_decay": 0.9}),
        ("Distill", {"teacher_decay": 0.0, "lora_rank": 2}),
    ],
)
def test_an_empty_hint_and_self_give_divergence_0_at_the_first_step_to_the_bit(agent: str, more: dict) -> None:
    rows = [{**row, "hint": ""} for row in ROWS]
    given = {} if agent == "Distill" else {"alpha": 0.5}
    learner = AGENTS[agent](
        student(), words_env(rows), teacher="self", teacher_prompt="{prompt}{hint}", **FEW, **given, **more
    )
    learner.learn(1)
    assert learner.last_metrics["train/divergence"] == 0.0
    seen = AGENTS[agent](
        student(), words_env(), teacher="self", teacher_prompt="{hint} {prompt}", **FEW, **given, **more
    )
    seen.learn(1)
    assert seen.last_metrics["train/divergence"] > 0.0


def test_of_a_t5_it_is_0_but_for_rounding() -> None:
    """torch chooses another kernel of attention where the bias of its positions needs no gradient."""
    rows = [{**row, "hint": ""} for row in ROWS]
    agent = Distill(student("t5"), words_env(rows), teacher="self", teacher_prompt="{prompt}{hint}", **FEW)
    agent.learn(1)
    assert abs(agent.last_metrics["train/divergence"]) < 1e-6


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_student_as_it_is_has_no_divergence_to_itself_ever_and_no_second_copy(lora_rank: int) -> None:
    agent = GRPO(
        student(), words_env(), teacher="self", teacher_decay=0.0, learning_rate=0.05, lora_rank=lora_rank, **FEW
    )
    assert agent.teacher.module is agent.student.module
    weights = [p.detach().clone() for p in agent.student.module.parameters() if p.requires_grad]
    for _ in range(3):
        agent.learn(1, reset_num_timesteps=False)
        assert agent.last_metrics["train/divergence"] == 0.0
    trained = [p for p in agent.student.module.parameters() if p.requires_grad]
    assert any(not torch.equal(old, new) for old, new in zip(weights, trained, strict=True))


def test_self_is_the_start_and_shares_what_lora_leaves_frozen() -> None:
    agent = GRPO(student(), words_env(), teacher="self", lora_rank=2, learning_rate=0.05, **FEW)
    ours = {id(p) for p in agent.student.module.parameters()}
    copied = [name for name, p in agent.teacher.module.named_parameters() if id(p) not in ours]
    assert copied and all("lora_" in name for name in copied)
    plain = evaluate(LanguageModel(student(), agent.task.tokenizer), None, agent.task, prompts=2).trajectories
    agent.learn(60)
    assert [t.text for t in evaluate(agent.teacher, None, agent.task, prompts=2).trajectories] == [
        t.text for t in plain
    ]
    assert agent.last_metrics["train/divergence"] > 0


def test_self_is_the_name_of_the_start(tmp_path) -> None:
    """Whole runs with the student's name and with `self` are the same to the bit."""
    own = word_tokenizer(*WORDS)
    name = folder(student(), own, tmp_path / "student")
    curves = []
    for teacher in ("self", name):
        agent = GRPO(name, words_env(tokenizer=name), teacher=teacher, learning_rate=0.01, **FEW)
        agent.learn(40)
        curves.append([p.detach().clone() for p in agent.student.module.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*curves, strict=True))


def test_a_saved_agent_goes_on_with_the_start_as_its_teacher(tmp_path) -> None:
    agent = GRPO(student(), words_env(), teacher="self", learning_rate=0.05, **FEW)
    agent.learn(10)
    for number in ("one", "two", "two"):
        agent.save(tmp_path / number)
        agent = GRPO.load(tmp_path / number, words_env())
        start = student().state_dict()
        assert all(torch.equal(p, start[name]) for name, p in agent.teacher.module.state_dict().items())


def right(completions: list[str]) -> list[float]:
    return [float(text.startswith("A")) for text in completions]


def test_a_sibling_is_the_best_other_right_text_of_the_group() -> None:
    agent = Distill(student(), words_env(reward=right), teacher="self", teacher_prompt="{sibling} {prompt}", **FEW)
    agent.learn(1)
    nan, t = float("nan"), agent.trajectories[0]
    plain = replace(t, item=replace(t.item, columns={}))

    def texts(*rewards: float, times: int = 1) -> list[Trajectory]:
        letters = zip(rewards, "ABCDEFGA", strict=False)
        return [replace(plain, text=letter * times, score=replace(t.score, reward=r)) for r, letter in letters]

    def siblings(given: list[Trajectory], group_size: int) -> list[object]:
        found, without = with_siblings(given, lambda item: agent.teacher, group_size=group_size, right_from=0.5)
        assert without == tuple(row for row, one in enumerate(found) if "sibling" not in one.item.columns)
        return [one.item.columns.get("sibling") for one in found]

    groups = texts(0.0, 1.0, 2.0, nan, 0.0, 0.0, 0.6, 0.4)
    assert siblings(groups, 4) == ["C", "C", "B", "C", "G", "G", None, "G"]
    too_long = [replace(one, text="A " * 60) for one in texts(1.0, 1.0)]
    assert siblings(too_long, 2) == [None, None]


def test_a_text_without_a_sibling_is_not_distilled_and_counted() -> None:
    agent = Distill(
        student(),
        words_env(reward=right),
        teacher=student(seed=1),
        teacher_prompt="{sibling} {prompt}",
        prompts_per_update=6,
        group_size=2,
        learning_rate=1e-6,
    )
    agent.learn(1)
    metrics, trajectories = agent.last_metrics, agent.trajectories
    without = [row for row, t in enumerate(trajectories) if "sibling" not in t.item.columns]
    assert 0 < len(without) < len(trajectories)
    assert metrics["train/no_sibling"] == pytest.approx(len(without) / len(trajectories))
    own = student()
    kls = [
        reverse_kl(own, student(seed=1), t, agent.task.tokenizer(agent.teacher_prompt_of(t))["input_ids"])
        for t in trajectories
        if "sibling" in t.item.columns
    ]
    assert metrics["train/divergence"] == pytest.approx(np.mean(kls), abs=1e-5)
    assert all(agent.teacher_prompt_of(trajectories[row]) is None for row in without)


def test_where_no_text_is_right_nothing_is_distilled() -> None:
    agent = Distill(
        student(),
        words_env(reward=lambda completions: [0.0] * len(completions)),
        teacher=student(seed=1),
        teacher_prompt="{sibling} {prompt}",
        **FEW,
    )
    agent.learn(1)
    assert agent.last_metrics["train/no_sibling"] == 1.0 and np.isnan(agent.last_metrics["train/divergence"])
    assert all(
        torch.equal(p, q) for p, q in zip(student().parameters(), agent.student.module.parameters(), strict=True)
    )


def test_with_the_divergence_in_the_reward_a_text_without_a_sibling_keeps_its_reward() -> None:
    how = {"combination": "in_reward", "estimator": "sampled", "divergence": "reverse_kl", "alpha": 0.5}
    agent = GRPO(
        student(),
        words_env(reward=right),
        teacher=student(seed=1),
        teacher_prompt="{sibling} {prompt}",
        prompts_per_update=6,
        group_size=2,
        **how,
    )
    agent.learn(1)
    costs_BL = agent._divergence_costs(agent.rollout)
    for row, t in enumerate(agent.trajectories):
        assert bool(costs_BL[row].abs().sum() > 0) == ("sibling" in t.item.columns)
    assert agent._rewards(agent.rollout).valid_B.all()


def test_a_gate_sees_no_gap_where_the_teacher_has_nothing_to_say() -> None:
    agent = GRPO(
        student(),
        words_env(reward=right),
        teacher=student(seed=1),
        teacher_prompt="{sibling} {prompt}",
        alpha=0.0,
        gate="rlsd",
        prompts_per_update=6,
        group_size=2,
    )
    agent.learn(1)
    credit = agent.gated(agent.credit(agent.rollout.split(agent.student, 1000, agent.teacher)))
    for row, t in enumerate(agent.trajectories):
        if "sibling" not in t.item.columns:
            assert (credit.policy_gate_BL[row] == 1).all()


def test_rollouts_tell_what_the_teacher_read(tmp_path) -> None:
    own = word_tokenizer(*WORDS)
    name = folder(student(), own, tmp_path / "student")
    data = tmp_path / "rows.jsonl"
    data.write_text(
        "".join(json.dumps({**row, "prompt": f"{row['prompt']} {letter}"}) + "\n" for row in ROWS for letter in WORDS)
    )
    of_data = {"data": str(data), "split_shares": None, "max_new_tokens": 4, "max_prompt_tokens": 8}
    settings = RunConfig(
        env="rlgkd/Dataset-v0",
        env_settings=of_data,
        student=name,
        teacher="self",
        agent="Distill",
        teacher_prompt="{hint} {prompt}",
        tokens=30,
        eval_prompts=2,
        **FEW,
    )
    start(settings, tmp_path / "run", quiet=True)
    records = [json.loads(line) for line in (tmp_path / "run" / "rollouts.jsonl").read_text().splitlines()]
    hints = {row["prompt"]: row["hint"] for row in ROWS}
    assert records and all(r["teacher_prompt"] == f"{hints[r['prompt'][:3]]} {r['prompt']}" for r in records)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["teacher_scores"]


def test_an_evaluation_samples_the_teacher_with_its_prompt() -> None:
    agent = Distill(student(), words_env(), teacher="self", teacher_prompt="{hint} {prompt}", **FEW)
    plain = LanguageModel(student(), agent.task.tokenizer)
    hinted, without = (evaluate(lm, None, agent.task, prompts=2).trajectories for lm in (agent.teacher, plain))
    assert [t.logp_T.tolist() for t in hinted] != [t.logp_T.tolist() for t in without]
    assert evaluate(agent.student, agent.teacher, agent.task, prompts=2).measures["reverse_kl"].min() > 0


def test_what_does_not_work_is_one_line_before_the_first_update() -> None:
    for prompt, message in (
        ("{nothing}", "teacher_prompt: 'nothing' does not work; .* has no such column; there are: "),
        ("{hint", "teacher_prompt: '{hint' does not work; write {name}"),
        ("{hint} " * 40, "teacher_prompt: .* tokens for .*, and the teacher's context has room for 59"),
        ("{hint} " * 30 + "{sibling}", "the teacher's context has room for 54"),
    ):
        with pytest.raises((DataError, SettingError), match=message):
            Distill(student(), words_env(), teacher="self", teacher_prompt=prompt, **FEW)
    rows = [*ROWS, {"prompt": "C", "reference": "A", "hint": None}]
    with pytest.raises(DataError, match="teacher_prompt: 'hint' does not work; it is null in"):
        Distill(student(), words_env(rows), teacher="self", teacher_prompt="{hint} {prompt}", **FEW)
    for settings, message in (
        ({"teacher": None, "alpha": 0.0, "teacher_prompt": "hint"}, "teacher_prompt: 'hint' .* give a teacher"),
        ({"teacher": "http://localhost:1", "teacher_prompt": "hint"}, "teacher_prompt: 'hint' .* served teacher"),
        ({"teacher_prompt": "sibling", "student_fraction": 0.5}, "a right text is one of the student's group"),
        ({"teacher_prompt": "sibling", "group_size": 1, "advantage": "raw"}, "set group_size to 2 or more"),
        ({"sibling_from": 1.0}, "set teacher_prompt to sibling"),
        ({"teacher_dtype": "bfloat16"}, "teacher=self has the student's precision: set it to float32"),
        ({"teacher_quantization": "8bit"}, "teacher=self is the student as it is"),
        ({"teacher_decay": 0.9, "lora_rank": 2}, "teacher_decay: 0.9 does not work"),
    ):
        with pytest.raises(SettingError, match=message):
            Reinforce(student(), words_env(), **{"teacher": "self", **FEW, **settings})

"""A teacher with a chat template or an end token of its own, against plain transformers on each model's own prompt."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from chat_models import CHATML, LIMITS, folder, model, no_reward, tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlgkd.agents import GRPO, Distill, Reinforce
from rlgkd.envs import TeacherReward, TextGenerationEnv
from rlgkd.errors import CheckpointError, ModelError
from rlgkd.evaluation import evaluate
from rlgkd.lm import open_by_name
from rlgkd.lm.own_format import as_read_by
from rlgkd.scripts.runs.text_ids import (
    AS_THE_TEACHER_READS,
    ENDS,
    FIRST_PROMPTS,
    VOCABULARY,
    check_text_ids,
    text_ids,
)
from rlgkd.types import Source, Trajectory

PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
OWN = CHATML.replace("<|im_end|>", "<|eot|>")
SPECIAL = ("<|im_start|>", "<|eot|>")
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]


def student_tokenizer():
    return tokenizer("<|im_end|>", *SPECIAL, template=PLAIN)


def teacher_tokenizer(template: str | None = OWN):
    own = tokenizer("<|im_end|>", *SPECIAL, template=template)
    own.eos_token = "<|eot|>"
    return own


END, START, EOT = student_tokenizer().convert_tokens_to_ids(["<|im_end|>", *SPECIAL])
EXCHANGED = {END: EOT, EOT: END}


@pytest.fixture(params=["phi", "llama"])
def names(request, tmp_path) -> tuple[str, str]:
    """Folders of a student and of a teacher with a format of its own."""
    one, other = student_tokenizer(), teacher_tokenizer()
    return (
        folder(model(one, kind=request.param), one, tmp_path / "student"),
        folder(model(other, kind=request.param, seed=1), other, tmp_path / "teacher"),
    )


def env(student: str, **settings) -> TextGenerationEnv:
    given = {"prompts": ["What is it?"], "reward": no_reward, "tokenizer": student, "chat": True, "system": "Be brief."}
    return TextGenerationEnv(**{**given, **LIMITS, **settings})


def exchanged(ids: Sequence[int]) -> list[int]:
    return [EXCHANGED.get(id_, id_) for id_ in ids]


@torch.no_grad()
def logp(name: str, actions: Sequence[int], *, teacher: bool) -> torch.Tensor:
    """[L, V]: by plain transformers on the model's own prompt, the teacher's with its end in the student's place."""
    prompt = AutoTokenizer.from_pretrained(name).apply_chat_template(
        CHAT, add_generation_prompt=True, return_dict=False
    )
    own = exchanged(actions) if teacher else list(actions)
    logits = AutoModelForCausalLM.from_pretrained(name).eval()(torch.tensor([[*prompt, *own]])).logits[0]
    logp_LV = logits[len(prompt) - 1 : -1].double().log_softmax(-1)
    return logp_LV[:, exchanged(range(logp_LV.shape[1]))] if teacher else logp_LV


def reverse_kls(names: tuple[str, str], trajectories: Sequence[Trajectory]) -> list[float]:
    """The mean KL(student || teacher) over each text's tokens."""
    values = []
    for t in trajectories:
        actions = t.tokens_T[t.action_mask_T].tolist()
        student_LV, teacher_LV = (logp(name, actions, teacher=n == 1) for n, name in enumerate(names))
        values.append((student_LV.exp() * (student_LV - teacher_LV)).sum(-1).mean().item())
    return values


@pytest.mark.parametrize("student_fraction", [1.0, 0.0])
def test_the_divergence_is_that_of_each_models_own_prompt_and_end(names, student_fraction: float) -> None:
    rows = [{"prompt": "What is it?", "reference": "It."}]
    how = {"divergence": "reverse_kl", "student_fraction": student_fraction, "prompts_per_update": 3, "group_size": 3}
    agent = Distill(names[0], env(names[0], prompts=rows), teacher=names[1], **how)
    assert agent.student.shares_prompts == (agent.student.module.config.model_type == "llama")
    agent.learn(1)
    assert {t.tokens_T[~t.action_mask_T].tobytes() for t in agent.trajectories} == {_prompt(agent).tobytes()}
    kls = reverse_kls(names, agent.trajectories)
    assert agent.last_metrics["train/divergence"] == pytest.approx(np.mean(kls), abs=1e-5)
    if not student_fraction:  # the references, which the student ends with its own token
        assert {t.tokens_T[-1] for t in agent.trajectories} == {END}
    in_the_students_format = [_wrong(names, t) for t in agent.trajectories]
    assert np.mean(in_the_students_format) != pytest.approx(np.mean(kls), rel=0.01)


def _prompt(agent) -> np.ndarray:
    return np.array(agent.task.encode_prompt(agent.task.item("train", 0, 0)))


@torch.no_grad()
def _wrong(names: tuple[str, str], t: Trajectory) -> float:
    """The divergence that would be were the teacher to read the student's prompt."""
    logp_LV = [
        AutoModelForCausalLM.from_pretrained(name).eval()(torch.tensor(t.tokens_T)[None]).logits[0].log_softmax(-1)
        for name in names
    ]
    student_LV, teacher_LV = (values[:-1][t.action_mask_T[1:]] for values in logp_LV)
    return (student_LV.exp() * (student_LV - teacher_LV)).sum(-1).mean().item()


def test_evaluation_and_the_teachers_log_probability_in_the_reward_read_it_so_too(names) -> None:
    agent = Reinforce(
        names[0],
        env(names[0]),
        teacher=names[1],
        alpha=0.5,
        estimator="sampled",
        combination="in_reward",
        prompts_per_update=1,
        group_size=4,
    )
    agent.learn(1)
    costs_BL = agent._divergence_costs(agent.rollout)
    for row, t in enumerate(agent.trajectories):
        actions = t.tokens_T[t.action_mask_T]
        teacher_L = logp(names[1], actions.tolist(), teacher=True)[range(len(actions)), actions]
        wanted_L = 0.5 * (torch.from_numpy(t.logp_T[t.action_mask_T]) - teacher_L)
        torch.testing.assert_close(costs_BL[row, : len(actions)], wanted_L, atol=1e-4, rtol=0)
    student = open_by_name(names[0])
    task = env(names[0]).task
    measured = evaluate(student, agent.teacher, task, prompts=1, group=4)
    assert measured.measures["reverse_kl"][0] == pytest.approx(
        np.mean(reverse_kls(names, measured.trajectories)), abs=1e-5
    )
    # The teacher as a policy of the task: its texts are those that it writes after its own prompt.
    taught = evaluate(agent.teacher, agent.teacher, task, prompts=1, greedy=True)
    assert taught.measures["reverse_kl"].tolist() == pytest.approx([0.0], abs=1e-6)
    (text,) = taught.trajectories
    actions = text.tokens_T[text.action_mask_T].tolist()
    assert logp(names[1], actions, teacher=True).argmax(-1).tolist() == actions


@pytest.mark.parametrize(
    "settings", [{"off_policy": "teacher", "student_fraction": 0.0}, {"behaviour": "teacher_mixed"}]
)
def test_a_teacher_that_writes_ends_where_the_student_does_after_its_own_prompt(settings: dict, tmp_path) -> None:
    one, other = student_tokenizer(), teacher_tokenizer()
    teacher = folder(model(other, seed=1, writes="<|eot|>"), other, tmp_path / "teacher")
    student = folder(model(one), one, tmp_path / "student")
    if "behaviour" in settings:
        settings = {**settings, "teacher_share": 1.0}
    agent = Distill(student, env(student), teacher=teacher, prompts_per_update=2, group_size=2, **settings).learn(1)
    kind = Source.TEACHER if "off_policy" in settings else Source.MIXED
    assert {(t.source, t.length, str(t.stop), t.text) for t in agent.trajectories} == {(kind, 1, "end", "")}
    assert {t.tokens_T.tobytes() for t in agent.trajectories} == {np.append(_prompt(agent), END).tobytes()}


def test_conversations_are_read_so_too(names) -> None:
    made = env(names[0], prompts=[[*CHAT, {"role": "assistant", "content": "It."}, CHAT[1]]], system="")
    agent = Distill(names[0], made, teacher=names[1], prompts_per_update=1)
    whole = [*CHAT, {"role": "assistant", "content": "It."}, CHAT[1]]
    wanted = AutoTokenizer.from_pretrained(names[1]).apply_chat_template(
        whole, add_generation_prompt=True, return_dict=False
    )
    assert agent.teacher.format.encode_prompt(agent.task.item("train", 0, 0)) == exchanged(wanted)


def test_a_teacher_of_the_same_format_reads_the_same_rows(names, caplog: pytest.LogCaptureFixture, tmp_path) -> None:
    one = student_tokenizer()
    teacher = folder(model(one, seed=1), one, tmp_path / "same")
    with caplog.at_level(logging.WARNING):
        agents = [
            Distill(names[0], env(names[0]), teacher=teacher, prompts_per_update=2),
            # A student's own start is read as the student, whatever format its folder has.
            Distill(names[1], env(teacher_tokenizer(CHATML)), teacher=names[1], prompts_per_update=2),
        ]
    assert not [line for line in caplog.messages if "format" in line]
    for agent in agents:
        agent.learn(1)
        texts = agent.rollout.trajectories
        assert agent.teacher.format is None and as_read_by(agent.teacher, texts) is texts


def test_a_run_whose_teachers_template_has_changed_is_refused(names, tmp_path) -> None:
    def agent(teacher: str) -> Distill:
        return Distill(names[0], env(names[0]), teacher=teacher, prompts_per_update=1)

    known = text_ids(agent(names[1]), seed=0)
    check_text_ids(known, agent(names[1]), 0, tmp_path)
    check_text_ids(None, agent(names[1]), 0, tmp_path)
    other = teacher_tokenizer(OWN.replace("{{ m['role'] }}", "{{ m['role'] }}!"))
    changed = folder(model(other, seed=1), other, tmp_path / "changed")
    with pytest.raises(CheckpointError, match=r"its token ids of the first prompts as the teacher reads them changed"):
        check_text_ids(known, agent(changed), 0, tmp_path)
    # Another teacher that was asked for may have another format, or none.
    same = student_tokenizer()
    plain = agent(folder(model(same, seed=1), same, tmp_path / "plain"))
    for one, other in ((known, plain), (text_ids(plain, seed=0), agent(names[1]))):
        check_text_ids(one, other, 0, tmp_path, ["teacher"])
        with pytest.raises(CheckpointError, match=r"as the teacher reads them changed"):
            check_text_ids(one, other, 0, tmp_path, ["alpha"])


@pytest.mark.parametrize("changed", ["env_settings.data", "env_settings.end_tokens", "teacher"])
def test_a_changed_setting_excuses_only_what_follows_from_it(names, tmp_path, changed: str) -> None:
    agent = Distill(names[0], env(names[0]), teacher=names[1], prompts_per_update=1)
    excused = {
        "env_settings.data": {FIRST_PROMPTS, AS_THE_TEACHER_READS},
        "env_settings.end_tokens": {ENDS, AS_THE_TEACHER_READS},
        "teacher": {AS_THE_TEACHER_READS},
    }[changed]
    known = text_ids(agent, seed=0)
    assert known.keys() == {VOCABULARY, ENDS, FIRST_PROMPTS, AS_THE_TEACHER_READS}
    for name in known:
        other = {**known, name: "another"}
        if name in excused:
            check_text_ids(other, agent, 0, tmp_path, [changed])
        else:
            with pytest.raises(CheckpointError, match=rf"its {re.escape(name)} changed"):
                check_text_ids(other, agent, 0, tmp_path, [changed])


# Several turns


REPLIED = ["\n<|im_start|>user\nWhy?<|eot|>\n<|im_start|>assistant\n", "\nuser: Why?<|im_end|>\nassistant:"]
"""What follows a turn that its end token has closed, for the teacher and for the student."""


@pytest.fixture
def talkers(tmp_path) -> tuple[str, str]:
    """As `names`, but each model ends every second turn or so."""
    made = []
    for name, own, end in (("student", student_tokenizer(), END), ("teacher", teacher_tokenizer(), EOT)):
        module = model(own, seed=len(made))
        with torch.no_grad():
            module.lm_head.bias[end] += 3.0
        made.append(folder(module, own, tmp_path / name))
    return made[0], made[1]


def asks_why(student: str, **settings) -> TextGenerationEnv:
    given = {
        "max_new_tokens": 70,
        "max_prompt_tokens": 60,
        "reply": lambda item, turns: "Why?" if len(turns) < 5 else None,
    }
    return env(student, **{**given, **settings})


@torch.no_grad()
def logp_of_turns(name: str, t: Trajectory, *, teacher: bool) -> torch.Tensor:
    """[L, V], as `logp`, of an episode of several turns."""
    own = AutoTokenizer.from_pretrained(name)
    ids = own.apply_chat_template(CHAT, add_generation_prompt=True, return_dict=False)
    reply = own(REPLIED[not teacher], add_special_tokens=False)["input_ids"]
    at: list[int] = []
    for n, (token, is_action) in enumerate(zip(t.tokens_T.tolist(), t.action_mask_T.tolist(), strict=True)):
        if is_action:
            at.append(len(ids))
            ids = [*ids, *(exchanged([token]) if teacher else [token])]
        elif at and t.action_mask_T[n - 1]:  # a reply begins
            closed = t.tokens_T[n - 1] == END
            ids = [*ids, *([] if closed else [EOT if teacher else END]), *reply]
    logits = AutoModelForCausalLM.from_pretrained(name).eval()(torch.tensor([ids])).logits[0]
    logp_LV = logits[[n - 1 for n in at]].double().log_softmax(-1)
    return logp_LV[:, exchanged(range(logp_LV.shape[1]))] if teacher else logp_LV


@pytest.mark.parametrize("stop", [(), ("a", "e", "i", "o")])
def test_replies_between_turns_are_read_in_each_models_format(talkers, tmp_path, stop) -> None:
    how = {"divergence": "reverse_kl", "prompts_per_update": 1, "group_size": 8}
    agent = Distill(talkers[0], asks_why(talkers[0], stop=stop), teacher=talkers[1], **how).learn(1)
    texts = agent.trajectories
    turns = [len(t.turns) for t in texts]
    assert max(turns) == 5 and min(turns) < 5
    assert not stop or any(END not in t.tokens_T[t.action_mask_T] for t in texts)
    kls = []
    for t in texts:
        student_LV, teacher_LV = (logp_of_turns(name, t, teacher=n == 1) for n, name in enumerate(talkers))
        kls.append((student_LV.exp() * (student_LV - teacher_LV)).sum(-1).mean().item())
    assert agent.last_metrics["train/divergence"] == pytest.approx(np.mean(kls), abs=1e-5)
    # The frames of replies are known to a run that goes on.
    other = teacher_tokenizer(OWN.replace("{{ m['role'] }}", "{{ m['role'] if loop.index < 3 else 'USER' }}"))
    changed = folder(model(other, seed=1), other, tmp_path / "changed")
    renamed = Distill(talkers[0], asks_why(talkers[0], stop=stop), teacher=changed, prompts_per_update=1)
    with pytest.raises(CheckpointError, match=r"as the teacher reads them changed"):
        check_text_ids(text_ids(agent, seed=0), renamed, 0, tmp_path)


@pytest.mark.parametrize(
    "settings",
    [{"off_policy": "teacher", "student_fraction": 0.0}, {"behaviour": "teacher_mixed", "teacher_share": 1.0}],
)
def test_a_teacher_writes_its_turns_after_replies_in_its_own_format(talkers, settings: dict) -> None:
    agent = Distill(talkers[0], asks_why(talkers[0]), teacher=talkers[1], prompts_per_update=8, **settings)
    texts = agent.learn(1).trajectories
    assert max(len(t.turns) for t in texts) == 5
    if "off_policy" in settings:  # the same texts, with the log-probabilities of their writer
        texts = evaluate(agent.teacher, agent.teacher, agent.task, prompts=1, group=8).trajectories
        assert max(len(t.turns) for t in texts) == 5
    for t in texts:
        actions = t.tokens_T[t.action_mask_T]
        wanted_L = logp_of_turns(talkers[1], t, teacher=True)[range(len(actions)), actions]
        np.testing.assert_allclose(t.logp_T[t.action_mask_T], wanted_L, atol=1e-4)


def test_room_for_replies_in_the_teachers_format_is_checked_at_the_start(talkers) -> None:
    shown = r"reads prompts as '<\|im_start\|>system.*user.*user.*too short for; lower max_prompt_tokens"
    with pytest.raises(ModelError, match=rf"teacher: '.*teacher' .*{shown}"):
        Distill(talkers[0], asks_why(talkers[0], max_new_tokens=190), teacher=talkers[1], prompts_per_update=1)


# What cannot be aligned


def test_a_format_that_has_no_place_for_a_message_or_no_room_is_refused(names, tmp_path) -> None:
    other = teacher_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + OWN
    )
    teacher = folder(model(other, seed=1), other, tmp_path / "other")
    with pytest.raises(ModelError, match=r"teacher: '.*other' does not work; in its own format, .* no system"):
        Distill(names[0], env(names[0]), teacher=teacher, prompts_per_update=1)
    with pytest.raises(ModelError, match=r"its context of 256 tokens is too short for; lower max_prompt_tokens"):
        Distill(names[0], env(names[0], max_prompt_tokens=250), teacher=names[1], prompts_per_update=1)
    with pytest.raises(ModelError, match=r"must have the student's; leave out teacher_decay"):
        GRPO(names[0], env(names[0]), teacher=names[1], alpha=0.5, teacher_decay=0.9, prompts_per_update=1)


def test_a_teacher_without_a_template_and_a_wrapper_read_the_students_format_and_say_so(
    names, tmp_path, caplog
) -> None:
    bare = teacher_tokenizer(None)
    teacher = folder(model(bare, seed=1), bare, tmp_path / "bare")
    with caplog.at_level(logging.WARNING):
        agent = Distill(names[0], env(names[0]), teacher=teacher, prompts_per_update=1)
        bare, ends = caplog.messages
        assert "has no chat template: it reads chats as the student" in bare
        assert "the student's end '<|im_end|>' counts as its '<|eot|>'" in ends
        # The model reads the student's prompt, and its own end stands for the student's.
        prompt = _prompt(agent).tolist()
        assert exchanged(agent.teacher.format.encode_prompt(agent.task.item("train", 0, 0))) == prompt
        (ours, theirs) = (
            lm(torch.tensor([ids])).logits[0, -1]
            for lm, ids in (
                (agent.teacher.module, exchanged(prompt)),
                (AutoModelForCausalLM.from_pretrained(teacher).eval(), prompt),
            )
        )
        torch.testing.assert_close(ours[END], theirs[EOT])
        caplog.clear()
        turns = Distill(
            names[0], env(names[0], reply=lambda item, turns: "Why?"), teacher=teacher, prompts_per_update=1
        )
        assert turns.teacher.format is not None and "counts as its '<|eot|>'" in caplog.messages[-1]
        caplog.clear()
        named = env(names[0], end_tokens=["<|im_end|>"])
        assert Distill(names[0], named, teacher=teacher, prompts_per_update=1).teacher.format is None
        caplog.clear()
        TeacherReward(env(names[0]), teacher=names[1], alpha=0.5)
    ends, template = caplog.messages
    assert "the teacher ends a text with '<|eot|>', the environment with '<|im_end|>'" in ends
    assert "chat template differs from the environment's" in template and "<|im_start|>user" in template


def test_a_wrapper_takes_a_teacher_whose_template_refuses_the_tasks_messages(names, tmp_path, caplog) -> None:
    other = teacher_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + OWN
    )
    teacher = folder(model(other, seed=1), other, tmp_path / "other")
    with caplog.at_level(logging.WARNING):
        wrapped = TeacherReward(env(names[0]), teacher=teacher, alpha=0.5)
    assert "sees chats in the environment's format; its own chat template" in caplog.messages[-1]
    wrapped.reset(seed=0)
    assert wrapped.step(END)[1] < 0

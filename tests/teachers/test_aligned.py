"""A teacher with another tokenizer: what it reads, turn by turn, and that one tokenizer's case is the plain path."""

from __future__ import annotations

import itertools

import chat_models
import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stable_baselines3.common.logger import Logger
from tokenizers import normalizers

from rlgkd.agents import Distill, Reinforce
from rlgkd.agents.micro_batch import micro_batches
from rlgkd.envs import TextTask
from rlgkd.errors import DataError, ModelError, SettingError
from rlgkd.evaluation import evaluate
from rlgkd.lm import LanguageModel
from rlgkd.lm.token_bytes import token_bytes
from rlgkd.rollout import rollout
from rlgkd.teachers.aligned import AlignedTeacher, as_text
from rlgkd.teachers.aligning import align_teacher
from rlgkd.types import Batch, Episode, Item, Source, StopReason

END = 0
ENGLISH = [(b"t", b"h"), (b"th", b"e"), (b"i", b"n"), (b"a", b"n"), (b"in", b"g"), (b" ", b"the"), (b"an", b"d")]
OTHER = [(b"h", b"e"), (b"t", b"he"), (b" ", b"a"), (b"n", b"d"), (b" a", b"nd"), (b"e", b" "), (b"s", b"t")]
STUDENT, TEACHER = "embedded:grounded-student", "embedded:grounded-teacher"
OTHER_TASK = "embedded:arithmetic-student", "rlgkd/Arithmetic-v0"
"""A student and a task of other tokens than the teacher's."""


def lm_of(tokenizer, seed: int = 0) -> LanguageModel:
    module = tiny.model(vocabulary=len(tokenizer), seed=seed, scale=0.1)
    module.config.max_position_embeddings = 512
    return LanguageModel(module, tokenizer)


def task_of(tokenizer, **settings) -> TextTask:
    return TextTask(
        **{
            "prompts": ["the sting and "],
            "tokenizer": tokenizer,
            "reward": chat_models.no_reward,
            "max_prompt_tokens": 64,
            "max_new_tokens": 64,
            **settings,
        }
    )


def aligned(student: LanguageModel, teacher: LanguageModel, task=None, **given) -> AlignedTeacher:
    return align_teacher(
        task or task_of(student.tokenizer), teacher, student, name="teacher", **{"mapped": False, **given}
    )


def episode(student: LanguageModel, actions: list[int], prompt: str = "the ") -> Episode:
    before = student.tokenizer(prompt)["input_ids"]
    tokens_T = np.array([*before, *actions])
    mask_T = np.arange(len(tokens_T)) >= len(before)
    with torch.no_grad():
        logp_TV = student.module(torch.from_numpy(tokens_T)[None]).logits[0].log_softmax(-1)
    logp_T = np.array([0.0, *logp_TV[range(len(tokens_T) - 1), tokens_T[1:]].tolist()], dtype=np.float32) * mask_T
    return Episode(
        item=Item(key="0", prompt=prompt),
        tokens_T=tokens_T,
        action_mask_T=mask_T,
        logp_T=logp_T,
        entropy_T=np.zeros(len(tokens_T), dtype=np.float32),
        stop=StopReason.END,
        source=Source.STUDENT,
        sample=0,
        text="",
    )


def test_by_hand() -> None:
    """The text " the and": student " the| |an... in its merges, teacher in others; the ends are each other's."""
    student, teacher = lm_of(tiny.bpe_tokenizer(*ENGLISH)), lm_of(tiny.bpe_tokenizer(*OTHER, special="</s>"))
    ids = student.tokenizer(" the and")["input_ids"]
    assert [*map(student.tokenizer.decode, ids)] == [" the", " ", "and"]
    (text,) = aligned(student, teacher).read([episode(student, [*ids, END])])
    written = text.episode.tokens_T[text.episode.action_mask_T].tolist()
    assert [*map(teacher.tokenizer.decode, written)] == [" ", "the", " and", "</s>"]
    assert text.span_L.tolist() == [0, 1, 1, 2] and text.other_span_M.tolist() == [0, 0, 1, 2]
    assert text.start_L.tolist() == [0, 2, -1, 3] and (text.single, text.starts) == (1, 3)
    prompt = text.episode.tokens_T[~text.episode.action_mask_T].tolist()
    assert teacher.tokenizer.decode(prompt) == "the "


MERGES = st.lists(st.tuples(st.sampled_from(b"theandsig "), st.sampled_from(b"theandsig ")), max_size=6)
MODELS: dict[int, LanguageModel] = {}


def random_lm(merges, pieces: bool, seed: int) -> LanguageModel:
    pairs = [(bytes([left]), bytes([right])) for left, right in merges]
    tokenizer = tiny.bpe_tokenizer(*pairs, pieces=pieces)
    if seed not in MODELS:  # one of each will do, whose vocabulary is large enough for all
        MODELS[seed] = tiny.model(vocabulary=400, seed=seed, scale=0.1)
        MODELS[seed].config.max_position_embeddings = 512
    return LanguageModel(MODELS[seed], tokenizer)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(
    MERGES,
    MERGES,
    st.booleans(),
    st.lists(st.integers(1, 262), min_size=1, max_size=12),
    st.binary(max_size=8),
    st.booleans(),
)
def test_the_sums_of_both_sides_are_the_log_probabilities_of_the_text(ours, theirs, pieces, ids, raw, ends) -> None:
    """For any two tokenizers and any tokens of the student's, halves of letters among them."""
    student, teacher = random_lm(ours, False, 0), random_lm(theirs, pieces, 1)
    ids = [id_ % len(student.tokenizer) or 1 for id_ in ids] + student.tokenizer(raw.decode("latin-1"))["input_ids"]
    one = episode(student, [*ids, *([END] if ends else [])])
    reading = aligned(student, teacher)
    (text,) = reading.read([one])
    # The same bytes on both sides, in spans that partition them.
    own, other = token_bytes(student.tokenizer), token_bytes(teacher.tokenizer)
    raw_text = b"".join(own[id_] for id_ in ids)
    shown, sizes = as_text([own[id_] for id_ in ids])
    expected = shown.encode()
    if reading.same_tokens:  # which need not be a text
        expected, sizes = raw_text, [len(own[id_]) for id_ in ids]
    written = text.episode.tokens_T[text.episode.action_mask_T].tolist()
    written = written[: len(written) - ends]
    assert b"".join(other[id_] for id_ in written) == expected
    for span, size in ((text.span_L, sizes), (text.other_span_M, [len(other[id_]) for id_ in written])):
        assert span[0] == 0 and set(np.diff(span).tolist()) <= {0, 1}
        of_text = span[: len(span) - ends]
        ends_at = np.cumsum(np.bincount(of_text, weights=size))
        assert ends_at[-1] == len(expected)
    # Sums: the student's as it sampled, the teacher's by plain transformers over its own reading.
    batch = Batch.collate([text.episode], pad=END)
    logp_N = torch.from_numpy(one.logp_T[one.action_mask_T])
    with torch.no_grad():
        known = reading.outputs([text], teacher.states(batch), batch, logp_N)
        logp_TV = teacher.module(batch.tokens_BT).logits[0, :, : len(teacher.tokenizer)].log_softmax(-1)
    columns = np.flatnonzero(text.episode.action_mask_T)
    plain = logp_TV[columns - 1, batch.tokens_BT[0, columns]]
    share_N = 1 / known.tokens_N
    assert (known.token_logp_N * share_N).sum().item() == pytest.approx(plain.sum().item(), rel=1e-4)
    span_sums_N = logp_N + known.other_logp_N
    assert (span_sums_N * share_N).sum().item() == pytest.approx(logp_N.sum().item(), rel=1e-4)


def turns_of(one: Episode) -> list[list[int]]:
    """The actions of each turn."""
    pairs = zip(one.action_mask_T.tolist(), one.tokens_T.tolist(), strict=True)
    return [
        [id_ for _, id_ in run] for is_action, run in itertools.groupby(pairs, key=lambda pair: pair[0]) if is_action
    ]


def reply(item, turns) -> str | None:
    return "and what then" if len(turns) < 4 else None


@pytest.mark.parametrize("chat", [True, False])
def test_each_turn_is_mapped_to_its_own_and_what_the_templates_put_around_turns_to_none(chat) -> None:
    own = chat_models.tokenizer("<|im_end|>", "<|im_start|>")
    other = tiny.bpe_tokenizer(*OTHER, special="<eot>")
    other.chat_template = "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<eot>\n{% endfor %}[model] "
    student, teacher = LanguageModel(chat_models.model(own), own), lm_of(other)
    task = task_of(own, chat=chat, reply=reply, max_new_tokens=160, max_prompt_tokens=96)
    found = rollout(student, task, [task.item("train", 0, 0)], group=6)
    several = [t for t in found if len(t.turns) > 2]
    assert several
    reading = aligned(student, teacher, task)
    texts, theirs = token_bytes(own), token_bytes(other)
    for t, text in zip(several, reading.read(several), strict=True):
        mask_T, tokens_T = text.episode.action_mask_T, text.episode.tokens_T
        turns = [turns_of(text.episode), turns_of(t)]
        assert len(turns[0]) == len(turns[1]) == (len(t.turns) + 1) // 2
        first, other_first = 0, 0
        for theirs_turn, ours_turn in zip(*turns, strict=True):
            spans = text.span_L[first : first + len(ours_turn)]
            other_spans = text.other_span_M[other_first : other_first + len(theirs_turn)]
            assert (spans[0], spans[-1]) == (other_spans[0], other_spans[-1])  # no span reaches over a turn's end
            first, other_first = first + len(ours_turn), other_first + len(theirs_turn)
            if ours_turn[-1] == own.eos_token_id:
                assert theirs_turn[-1] == other.eos_token_id and (other_spans == other_spans[-1]).sum() == 1
                ours_turn, theirs_turn = ours_turn[:-1], theirs_turn[:-1]
            said = as_text([texts[id_] for id_ in ours_turn])[0]
            assert b"".join(theirs[id_] for id_ in theirs_turn).decode() == said
        between = b"".join(theirs[id_] for id_ in tokens_T[~mask_T]).decode()
        assert between.count("and what then") == len(t.turns) // 2
        assert ("[user] the sting and" in between) == chat


def rows_of(teacher, student=STUDENT, env="rlgkd/GroundedSummary-v0", **given) -> list[dict[str, float]]:
    # Agreement token by token is of one vocabulary, so it is not measured with a teacher that has another.
    defaults = {
        **{"prompts_per_update": 4, "group_size": 2, "learning_rate": 1e-3, "estimator": "sampled"},
        "agreement_every": 0,
    }
    agent = Distill(student, env, teacher=teacher, device="cpu", seed=0, **{**defaults, **given})
    rows = tiny.Rows()
    agent.set_logger(Logger(None, [rows]))
    agent.learn(200)
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows.rows]


def test_spans_of_one_tokenizer_train_as_the_plain_path_does_to_the_bit() -> None:
    plain, spans = rows_of(TEACHER), rows_of(TEACHER, teacher_tokens="spans")
    assert len(plain) > 1 and {row.pop("train/teacher_aligned") for row in spans} == {1.0}
    assert spans == plain


@pytest.mark.parametrize("name", ["reverse_kl", "jsd(0.1)"])
def test_through_the_map_of_one_tokenizer_the_divergence_is_the_plain_one(name) -> None:
    plain, mapped = (
        rows_of(TEACHER, estimator="exact", divergence=name, **given) for given in ({}, {"teacher_tokens": "map"})
    )
    assert {row["train/teacher_unmapped"] for row in mapped} == {0.0}
    assert len(plain) > 1
    assert [row["train/divergence"] for row in mapped] == pytest.approx(
        [row["train/divergence"] for row in plain], abs=1e-6
    )


@pytest.mark.parametrize("given", [{"teacher_tokens": "spans"}, {"teacher_tokens": "map", "estimator": "exact"}])
def test_a_teacher_with_other_tokens_teaches(given) -> None:
    """It knows nothing of this task, so the student only moves towards it: the divergence falls."""
    rows = rows_of(TEACHER, *OTHER_TASK, **given)
    assert 0.1 < rows[0]["train/teacher_aligned"] < 1 and np.isfinite([row["train/divergence"] for row in rows]).all()
    assert rows[-1]["train/divergence"] < rows[0]["train/divergence"]
    if given["teacher_tokens"] == "map":
        assert 0 <= rows[0]["train/teacher_unmapped"] < 1e-2


def test_in_the_reward_each_text_is_charged_the_log_ratio_of_its_bytes() -> None:
    agent = Reinforce(
        *OTHER_TASK,
        teacher=TEACHER,
        device="cpu",
        seed=0,
        prompts_per_update=2,
        group_size=2,
        alpha=0.5,
        combination="in_reward",
        estimator="sampled",
        teacher_tokens="spans",
    )
    agent.learn(20)
    rollout_ = agent.rollout.split(agent.student, 4096, agent.teacher)
    ratio_BL = rollout_.log_ratios(agent.teacher, 4096)
    for t, ratio_L in zip(rollout_.trajectories, ratio_BL, strict=True):
        (text,) = agent.teacher.read([t])
        tokens = torch.from_numpy(text.episode.tokens_T)[None]
        with torch.no_grad():
            logp_TV = agent.teacher.lm.module(tokens).logits[0, :, : agent.teacher.lm.vocabulary].log_softmax(-1)
        columns = np.flatnonzero(text.episode.action_mask_T)
        theirs = logp_TV[columns - 1, tokens[0, columns]].sum().item()
        assert ratio_L.sum().item() == pytest.approx(t.logp_T.sum() - theirs, rel=1e-4)


def test_every_micro_batch_is_padded_by_the_model_that_reads_it() -> None:
    """The teacher's padding need not be a token of the student's, nor its device the student's."""
    own, other = tiny.bpe_tokenizer(*ENGLISH), tiny.bpe_tokenizer(*OTHER, special="</s>")
    other.add_special_tokens({"pad_token": "<pad>"})
    student, teacher = lm_of(own), lm_of(other)
    texts = [episode(student, [*own(" the" * words)["input_ids"], END]) for words in (9, 7, 5, 3, 1)]
    parts = list(micro_batches(student, texts, 2 * len(texts[0].tokens_T), aligned(student, teacher)))
    assert len(parts) > 1 and student.pad != teacher.pad
    for lm, batches in ((student, [part.batch for part in parts]), (teacher, [part.teacher_batch for part in parts])):
        padding = [batch.tokens_BT[batch.attention_mask_BT == 0].tolist() for batch in batches]
        assert padding[0] and padding[1] and {id_ for some in padding for id_ in some} == {lm.pad}


def test_evaluation_measures_both_ways() -> None:
    agent = Distill(STUDENT, "rlgkd/GroundedSummary-v0", teacher=TEACHER, device="cpu", seed=0)
    student, teacher, task = agent.student, agent.teacher, agent.task
    plain = evaluate(student, teacher, task, prompts=2, group=2).measures
    by_map = evaluate(student, aligned(student, teacher, task, mapped=True), task, prompts=2, group=2).measures
    for name in ("reverse_kl", "reverse_kl_data"):
        np.testing.assert_allclose(by_map[name], plain[name], atol=1e-5)
    spans = evaluate(student, aligned(student, teacher, task), task, prompts=2, group=2)
    assert "reverse_kl_data" not in spans.measures
    sampled = [t.logp_T.sum() / t.length for t in spans.trajectories]
    assert np.isfinite(spans.measures["reverse_kl"]).all() and len(sampled) == 4


def test_a_map_that_an_evaluation_has_used_serves_in_training() -> None:
    agent = Distill(
        *OTHER_TASK, teacher=TEACHER, device="cpu", seed=0, prompts_per_update=1, group_size=1, teacher_tokens="map"
    )
    evaluate(agent.student, agent.teacher, agent.task, prompts=1)
    agent.learn(1)
    assert agent.last_metrics["train/divergence"] > 0


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"teacher_tokens": "spans", "estimator": "exact"}, "teacher_tokens.* set estimator to sampled"),
        ({"teacher_tokens": "map", "estimator": "sampled"}, "teacher_tokens.* set estimator to exact"),
        ({"teacher_tokens": "spans", "horizon": 0.5}, "teacher_tokens.* set horizon to 0"),
        ({"teacher_tokens": "spans", "gate": "iw_opd"}, "teacher_tokens.* choose another gate"),
        ({"teacher_tokens": "spans", "teacher_decay": 0.5}, "teacher_tokens.* leave teacher_decay out"),
        ({"teacher_map": "map.safetensors"}, "teacher_map.* set teacher_tokens to map"),
        (
            {"teacher_tokens": "map", "estimator": "exact", "student_fraction": 0.5, "off_policy": "teacher"},
            "teacher_tokens.* set off_policy to references",
        ),
    ],
)
def test_settings_that_do_not_go_with_other_tokens_are_refused(given, match) -> None:
    with pytest.raises(SettingError, match=match):
        rows_of(TEACHER, **given)


def test_without_the_setting_another_vocabulary_is_refused_and_the_setting_named() -> None:
    with pytest.raises(ModelError, match=r"teacher: .* or set teacher_tokens to spans or map"):
        rows_of(TEACHER, *OTHER_TASK)


def test_tokenizers_that_are_no_pieces_of_text_are_refused() -> None:
    words = tiny.word_tokenizer("A", "B", "C")
    student = lm_of(tiny.bpe_tokenizer(*ENGLISH))
    with pytest.raises(ModelError, match=r"teacher: .* no pieces of a text's bytes"):
        aligned(student, LanguageModel(tiny.model(vocabulary=4), words))
    few = tiny.byte_tokenizer(*(bytes([byte]) for byte in range(97, 123)))
    with pytest.raises(ModelError, match=r"teacher: .* of the student's tokens otherwise"):
        aligned(student, lm_of(few))


def test_a_teacher_without_a_chat_template_reads_a_chat_as_plain_text() -> None:
    base = tiny.bpe_tokenizer(*OTHER, special="</s>")
    chat = chat_models.tokenizer("<|im_end|>", "<|im_start|>")
    student, task = LanguageModel(chat_models.model(chat), chat), task_of(chat, chat=True, system="Be brief.")
    (text,) = aligned(student, lm_of(base), task).read(rollout(student, task, [task.item("train", 0, 0)]))
    prompt = text.episode.tokens_T[~text.episode.action_mask_T].tolist()
    assert base.decode(prompt) == "Be brief.\n\nthe sting and \n"


def test_a_text_that_does_not_fit_the_teachers_context_is_named() -> None:
    student, teacher = lm_of(tiny.bpe_tokenizer(*ENGLISH)), lm_of(tiny.bpe_tokenizer(special="</s>"))
    teacher.module.config.max_position_embeddings = 8
    ids = student.tokenizer(" the and the")["input_ids"]
    with pytest.raises(DataError, match=r"prompt: '0' .* too many for its context of 8"):
        aligned(student, teacher).read([episode(student, ids)])


def test_a_special_token_of_both_is_itself_and_one_of_the_student_alone_is_read_as_its_name() -> None:
    own, other = (tiny.bpe_tokenizer(*merges, special="<end>") for merges in (ENGLISH, OTHER))
    own.add_special_tokens({"additional_special_tokens": ["<both>", "<ours>"]})
    other.add_special_tokens({"additional_special_tokens": ["<both>"]})
    student, teacher = lm_of(own), lm_of(other)
    both, ours = own.convert_tokens_to_ids(["<both>", "<ours>"])
    (text,) = aligned(student, teacher).read([episode(student, [both, ours, END])])
    written = text.episode.tokens_T[text.episode.action_mask_T].tolist()
    assert written[0] == other.convert_tokens_to_ids("<both>") and written[-1] == END
    assert other.decode(written[1:-1]) == "<ours>" and text.span_L.tolist() == [0, 1, 2]


def test_a_space_that_a_tokenizer_puts_in_front_of_texts_takes_the_place_of_the_texts_own() -> None:
    own, other = tiny.bpe_tokenizer(*ENGLISH), tiny.bpe_tokenizer(*OTHER, pieces=True)
    other.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    student, teacher = lm_of(own), lm_of(other)
    reading = aligned(student, teacher)
    for said in (" and", "and", "", "\u2581x"):
        (text,) = reading.read([episode(student, [*own(said)["input_ids"], END])])
        written = text.episode.tokens_T[text.episode.action_mask_T].tolist()[:-1]
        assert (
            b"".join(token_bytes(other)[id_] for id_ in written).decode().strip() == said.replace("\u2581", " ").strip()
        )
        if said == " and":
            assert other.convert_ids_to_tokens(written) == ["\u2581and"]

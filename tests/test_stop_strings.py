"""Stop strings end a turn in every view of an episode: rollouts, texts that are there, environments of all forms."""

from __future__ import annotations

import json

import gymnasium as gym
import numpy as np
import pytest
import tiny

from rlgkd.agents import Distill, Reinforce
from rlgkd.envs import TextGenerationEnv, TextTask, TextVectorEnv
from rlgkd.envs.sb3 import TextVecEnv
from rlgkd.errors import DataError, SettingError
from rlgkd.lm import LanguageModel
from rlgkd.rollout import rollout
from rlgkd.types import Source, StopReason

WORDS = tiny.word_tokenizer("A", "B", "C")
BYTES = tiny.byte_tokenizer(b"a", b"b", b" ", b"\n", "é".encode()[:1], "é".encode()[1:], b"a\nb", b"b\n\nab")
STOPS = {"words": "B C", "bytes": ["\n\n", "é", "ab b"]}
LIMIT = {"words": 6, "bytes": 12}


def make(kind: str = "bytes", **settings) -> TextTask:
    tokenizer, prompts = (WORDS, ["A", "B C", "C A B"]) if kind == "words" else (BYTES, ["a", "b a", "ab"])
    return TextTask(
        **{
            "prompts": prompts,
            "tokenizer": tokenizer,
            "max_new_tokens": LIMIT[kind],
            "max_prompt_tokens": 4,
            "stop": STOPS[kind],
            "reward": lambda turns: [sum(map(len, said)) + said[-1].count("a") / 10 for said in turns],
            **settings,
        }
    )


def policy(task: TextTask, seed: int = 0) -> LanguageModel:
    return LanguageModel(tiny.model(vocabulary=len(task.tokenizer), scale=0.1, seed=seed), task.tokenizer)


def items(task: TextTask) -> list:
    return [task.item("train", 0, n) for n in range(3)]


def again(item, turns) -> str | None:
    """Reply to every turn but the third."""
    return ("A" if item.prompt.isupper() else "a") if len(turns) < 5 else None


def ids_of(*pieces: bytes) -> list[int]:
    return [BYTES.convert_tokens_to_ids(token) for piece in pieces for token in BYTES.tokenize(piece.decode())]


def ended_by_a_stop(task: TextTask, ids: list[int]) -> bool:
    """The slow rule, of one turn without its last token and with it."""
    raw = [task.tokenizer.decode(some, skip_special_tokens=True) for some in (ids[:-1], ids)]
    found = [any(stop in text for stop in task.stops.strings) for text in raw]
    assert not found[0], "it should have ended before"
    return found[1]


@pytest.mark.parametrize("kind", STOPS)
def test_a_rollout_ends_with_the_first_token_that_completes_a_stop_string(kind):
    task, plain = make(kind), make(kind, stop=())
    assert plain.stops is None
    lm, stopped, limit = policy(task), 0, 0
    for t, whole in zip(
        rollout(lm, task, items(task), group=64), rollout(lm, plain, items(plain), group=64), strict=True
    ):
        actions, all_of_it = t.tokens_T[t.action_mask_T].tolist(), whole.tokens_T[whole.action_mask_T].tolist()
        assert actions == all_of_it[: len(actions)]
        assert t.logp_T[t.action_mask_T] == pytest.approx(whole.logp_T[whole.action_mask_T][: len(actions)], abs=1e-4)
        by_stop = ended_by_a_stop(task, actions)
        assert by_stop or actions == all_of_it
        assert t.stop is (StopReason.END if by_stop or actions[-1] == 0 else StopReason.LENGTH)
        assert not any(stop in t.text for stop in task.stops.strings)
        raw = task.tokenizer.decode(actions, skip_special_tokens=True)
        assert t.text == (min((raw.split(s)[0] for s in task.stops.strings), key=len)).strip()
        stopped += by_stop
        limit += by_stop and len(actions) == LIMIT[kind]
    assert stopped > 20 and limit, "none ended so, or none just at the limit"


@pytest.mark.parametrize("reply", [None, again])
@pytest.mark.parametrize("kind", STOPS)
def test_stepping_the_environment_with_the_same_actions_yields_the_same_episodes(kind, reply):
    task = make(kind, reply=reply)
    env, trajectories = TextGenerationEnv(task), rollout(policy(task), task, items(task), group=32)
    assert {t.stop for t in trajectories} == {StopReason.END, StopReason.LENGTH}
    assert any(len(t.turns) > 2 for t in trajectories) == (reply is not None)
    for n, t in enumerate(trajectories):
        env.reset(seed=0, options={"index": n // 32})
        steps = [env.step(np.int64(token)) for token in t.tokens_T[t.action_mask_T]]
        assert [step[2] for step in steps] == [False] * (len(steps) - 1) + [True]
        observation, reward, _, truncated, info = steps[-1]
        assert observation[observation >= 0].tolist() == t.tokens_T.tolist() and not truncated
        assert (reward, info["text"], info["stop"]) == (t.score.reward, t.text, str(t.stop))
        assert tuple(info.get("turns", ())) == t.turns


@pytest.mark.parametrize("kind", STOPS)
def test_vector_forms_agree_with_the_scalar_one(kind):
    task = make(kind, reply=again, at_limit="truncate", max_new_tokens=12)
    rng, stopped = np.random.default_rng(0), 0
    scalars = [TextGenerationEnv(task) for _ in range(3)]
    vector, vec = TextVectorEnv(task, num_envs=3, autoreset_mode="SameStep"), TextVecEnv(task, num_envs=3)
    vec.seed(4)
    seen = [np.stack([env.reset(seed=4 + n)[0] for n, env in enumerate(scalars)]), vector.reset(seed=4)[0], vec.reset()]
    for _ in range(600):
        assert np.array_equal(seen[0], seen[1]) and np.array_equal(seen[0], seen[2])
        actions = rng.integers(1, len(task.tokenizer), size=3)  # never the end token
        steps = [env.step(action) for env, action in zip(scalars, actions, strict=True)]
        rows = [env.reset()[0] if step[2] or step[3] else step[0] for env, step in zip(scalars, steps, strict=True)]
        own, sb3 = vector.step(actions), vec.step(actions)
        assert [step[1] for step in steps] == own[1].tolist() == pytest.approx(sb3[1].tolist())
        assert [step[2] for step in steps] == own[2].tolist()
        assert [step[2] or step[3] for step in steps] == sb3[2].tolist()
        stopped += sum(info.get("stop") == "end" for info in sb3[3])
        seen = [np.stack(rows), own[0], sb3[0]]
    assert stopped > 5


def test_texts_that_are_there_already_end_their_turns_as_they_did():
    task = make(reply=again)
    lm = policy(task)
    drawn = rollout(lm, task, items(task), group=16)
    same = tiny.replayed(
        lm, task, [t.item for t in drawn], [t.tokens_T[t.action_mask_T].tolist() for t in drawn], source=Source.TEACHER
    )
    assert [t.tokens_T.tolist() for t in same] == [t.tokens_T.tolist() for t in drawn]
    assert [(t.score, t.stop, t.turns) for t in same] == [(t.score, t.stop, t.turns) for t in drawn]


def test_a_reference_is_cut_where_a_text_would_have_ended():
    task = make(prompts=[{"prompt": "a", "reference": "ab\n\nba"}, {"prompt": "b", "reference": "ab"}])
    cut, whole = tiny.references(policy(task), task, [task.item("train", 0, n) for n in range(2)])
    assert {cut.text, whole.text} == {"ab"} and {cut.stop, whole.stop} == {StopReason.END}
    assert sorted(t.tokens_T[-1] for t in (cut, whole)) == [0, *ids_of(b"\n")]


def test_what_stands_behind_a_stop_string_in_its_token_is_an_action_and_no_text():
    (token,) = [n for n in range(len(BYTES)) if BYTES.decode([n]) == "b\n\nab"]
    task = make(reward=lambda completions, tokens: [[float(len(t)) for t in row] for row in tokens])
    (t,) = tiny.replayed(
        policy(task), task, items(task)[:1], [[*ids_of(b"a"), token, *ids_of(b"b")]], source=Source.DATA
    )
    assert t.text == "ab" and t.stop is StopReason.END and t.length == 2 and t.tokens_T[-1] == token
    assert t.score.steps == (1.0, 5.0)


def test_a_stop_string_at_the_limit_is_an_end_and_white_space_is_one():
    for at_limit in ("terminate", "truncate"):
        env = TextGenerationEnv(make(max_new_tokens=3, at_limit=at_limit, stop="\n"))
        for text, stop in ((b"ab\n", "end"), (b"ab ", "length" if at_limit == "terminate" else "truncated")):
            env.reset(seed=0)
            *_, last = [env.step(np.int64(token)) for token in ids_of(text)]
            assert (last[4]["text"], last[4]["stop"]) == ("ab", stop)


def test_the_other_half_of_a_character_completes_it():
    env = TextGenerationEnv(make(stop="é"))
    env.reset(seed=0)
    steps = [env.step(np.int64(token)) for token in ids_of("baé".encode())]
    assert [step[2] for step in steps] == [False, False, False, True] and steps[-1][4]["text"] == "ba"


def test_in_a_chat_the_end_token_that_a_turn_lacks_is_put_in_front_of_the_answer():
    tokenizer = tiny.word_tokenizer("A", "B", "C", "user", "bot")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ 'user ' if m['role'] == 'user' else 'bot ' }}{{ m['content'] }} <end> {% endfor %}"
        "{% if add_generation_prompt %}bot {% endif %}"
    )
    task = TextTask(
        prompts=["A"],
        tokenizer=tokenizer,
        chat=True,
        reply=again,
        reward=lambda completions: [0.0] * len(completions),
        stop="C",
        max_new_tokens=16,
        max_prompt_tokens=8,
    )
    a, b, c, user, bot = range(1, 6)
    said = [user, a, 0, bot]
    (t,) = tiny.replayed(policy(task), task, [task.item("train", 0, 0)], [[b, c, b, 0, c]], source=Source.TEACHER)
    assert task.encode_prompt(t.item) == said
    assert t.tokens_T.tolist() == [*said, b, c, 0, *said, b, 0, *said, c]
    assert t.tokens_T[t.action_mask_T].tolist() == [b, c, b, 0, c]
    assert t.turns == ("B", "A", "B", "A", "")


def test_a_plain_answer_stands_right_behind_the_stop_string():
    task = make("words", prompts=["A"], reply=again, stop="C", max_new_tokens=12)
    (t,) = tiny.replayed(policy(task), task, items(task)[:1], [[2, 3, 2, 0, 3]], source=Source.TEACHER)
    assert t.tokens_T.tolist() == [1, 2, 3, 1, 2, 0, 1, 3] and t.turns == ("B", "A", "B", "A", "")


def test_an_agent_trains_on_texts_that_end_so_and_writes_others():
    agent = Reinforce(policy(make("words")).module, TextVecEnv(make("words")), alpha=0.0, group_size=32)
    agent.learn(1)
    stopped = [t for t in agent.trajectories if t.tokens_T[-2:].tolist() == [2, 3]]
    assert len(stopped) > 20 and {t.stop for t in stopped} == {StopReason.END}
    assert not any("B C" in text for text in agent.generate(["A", "C"] * 20, greedy=False))


def test_a_teachers_texts_are_kept_for_the_stop_strings_they_were_written_with(tmp_path):
    def agent(**settings) -> Distill:
        task = make("words", **settings)
        return Distill(
            policy(task).module,
            TextVecEnv(task),
            teacher=policy(task, 1).module,
            student_fraction=0.0,
            off_policy="teacher",
            teacher_texts=tmp_path / "texts.jsonl",
            prompts_per_update=3,
        )

    agent().learn(20)
    assert json.loads((tmp_path / "texts.jsonl").read_text().splitlines()[0])["stop"] == ["B C"]
    agent().learn(20)
    with pytest.raises(DataError, match=r"its texts have stop \['B C'\], these would have None; name another file"):
        agent(stop=())


def test_settings_of_an_environment_take_them():
    env = gym.make("rlgkd/Dataset-v0", stop=["\n", "Question"]).unwrapped
    assert (
        env.task.stops.strings == ("\n", "Question")
        and gym.make("rlgkd/Dataset-v0", stop=[]).unwrapped.task.stops is None
    )
    with pytest.raises(SettingError, match="stop: '' does not work; give a string"):
        make(stop="")

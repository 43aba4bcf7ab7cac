"""Chat templates as models bring them: with variables, with several names, with dates, broken, rewriting."""

from __future__ import annotations

import logging
from datetime import date

import pytest
from chat_models import CHATML, FEW, LIMITS, folder, model, no_reward, tokenizer

from rlgkd.agents import Reinforce
from rlgkd.envs import TextTask
from rlgkd.envs.text import chat_template
from rlgkd.errors import CheckpointError, DataError, SettingError
from rlgkd.lm import load_tokenizer
from rlgkd.lm.saving import save
from rlgkd.scripts.comparison.compare import compare, on_one_day
from rlgkd.scripts.comparison.grid import Grid, grid
from rlgkd.scripts.config.reading import read
from rlgkd.scripts.runs import text_ids, train
from rlgkd.scripts.runs.generate import complete, parse_variables
from rlgkd.types import Item

THINKING = CHATML.replace("assistant\n{% endif", "assistant\n{% if not enable_thinking %}-{% endif %}{% endif")
DATED = "{{ strftime_now('%d %b %Y') }}" + CHATML


def task(template: str | dict[str, str] = CHATML, **settings) -> TextTask:
    given = {"prompts": ["Q"], "reward": no_reward, "chat": True, **LIMITS, **settings}
    return TextTask(tokenizer=tokenizer(template=template), **given)


def text(made: TextTask) -> str:
    return made.tokenizer.decode(made.encode_prompt(made.item("test", 0, 0)))


# Variables and names


def test_a_template_gets_its_variables() -> None:
    assert text(task(THINKING, chat_template_kwargs={"enable_thinking": True})).endswith("assistant\n")
    off = task(THINKING, chat_template_kwargs={"enable_thinking": False})
    wanted = off.tokenizer.apply_chat_template(
        [{"role": "user", "content": "Q"}], add_generation_prompt=True, return_dict=False, enable_thinking=False
    )
    assert off.encode_prompt(off.item("test", 0, 0)) == wanted and text(off).endswith("assistant\n-")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"chat_template_kwargs": {"enable_thinkng": True}}, "chat_template_kwargs: 'enable_thinkng' .* no such var"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs: 'tokenize' .* no variable"),
        ({"chat_template_kwargs": "thinking"}, "chat_template_kwargs: 'thinking' .*give names and values"),
        ({"chat_template": "rag"}, "chat_template: 'rag' .* it has but one"),
        ({"chat_template_date": "29.11.2026"}, "chat_template_date: '29.11.2026' .* YYYY-MM-DD"),
        ({"chat": False, "chat_template": "rag"}, "chat_template: 'rag' .* set chat to true"),
    ],
)
def test_a_setting_of_templates_that_would_do_nothing_is_refused(settings: dict, why: str) -> None:
    with pytest.raises(SettingError, match=why):
        task(THINKING, **settings)


def test_one_of_several_templates_is_named_and_is_the_default_in_the_saved_folder(tmp_path) -> None:
    several = {"rag": "rag " + CHATML, "tool_use": CHATML}
    with pytest.raises(SettingError, match=r"chat_template: '' .* several and no default; choose of rag, tool_use"):
        task(several)
    named = task(several, chat_template="rag")
    assert text(named).startswith("rag ")
    agent = Reinforce(model(named.tokenizer), _env(named), alpha=0.0, **FEW)
    agent.save(tmp_path)
    messages = [{"role": "user", "content": "Q"}]
    served = load_tokenizer(tmp_path).apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert served == named.encode_prompt(named.item("test", 0, 0))


# Templates that break


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("{{ tools | length }}", "fails: TypeError"),
        ("{{ 1 // 0 }}", "fails: ZeroDivisionError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "fails: RecursionError"),
        ("{{ raise_exception('no\n chats') }}", "refuses it: no chats"),
        ("{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}", "takes longer than"),
    ],
)
@pytest.mark.parametrize("where", ["task", "conversation"])
def test_whatever_a_template_raises_or_never_ends_is_one_line(
    monkeypatch: pytest.MonkeyPatch, code: str, why: str, where: str
) -> None:
    if "range" in code:
        monkeypatch.setattr(chat_template, "SECONDS", 0.2)
    own = tokenizer()
    own.name_or_path = "some/model"
    given = {"tokenizer": own, "reward": no_reward, "chat": True, **LIMITS}
    if where == "task":
        own.chat_template = code + CHATML
        with pytest.raises(SettingError, match=f"chat: True does not work; .*'some/model' {why}") as raised:
            TextTask(prompts=["Q"], **given)
    else:
        own.chat_template = "{% if messages | length == 4 %}" + code + "{% endif %}" + CHATML
        made = TextTask(prompts=["Q"], **given)
        messages = tuple({"role": role, "content": "x"} for role in ("user", "assistant") * 2)
        with pytest.raises(DataError, match=f"'some/model' {why}") as raised:
            made.encode_prompt(Item(key="a", prompt="x", messages=messages))
    assert "\n" not in str(raised.value)


def test_a_template_that_cannot_be_parsed_is_one_line() -> None:
    with pytest.raises(SettingError, match="chat: True does not work; this chat template refuses it: Expected an expr"):
        task("{% if %}")


def test_a_tools_result_gets_an_id_where_the_template_demands_one() -> None:
    needs = "{% if m.role == 'tool' and m.tool_call_id | length != 9 %}{{ 1 // 0 }}{% endif %}<|im_start|>"
    demanding = CHATML.replace("<|im_start|>", needs, 1)
    reply = task(demanding, tools=[shout], max_prompt_tokens=500, max_new_tokens=40).encode_reply("A", closed=False)
    assert tokenizer().decode(reply, skip_special_tokens=False) == (
        "<|im_end|>\n<|im_start|>tool\nA<|im_end|>\n<|im_start|>assistant\n"
    )


def shout(text: str) -> str:
    """Say it loudly.

    Args:
        text: What.
    """
    return text.upper()


# Days


def test_a_task_stays_on_its_day(monkeypatch: pytest.MonkeyPatch) -> None:
    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2031, 1, 2)

    made = task(DATED, chat_template_date="2026-11-29")
    monkeypatch.setattr(chat_template, "date", Tomorrow)
    assert text(made).startswith("29 Nov 2026")
    assert text(task(DATED)).startswith("02 Jan 2031")
    assert text(task(DATED, chat_template_date=date(2026, 11, 30))).startswith("30 Nov 2026")


@pytest.fixture
def run(tmp_path):
    """A run of one update on a dated template, in tmp_path/run; its model's folder is tmp_path/m."""
    name = folder(model(tokenizer()), tokenizer(template=DATED), tmp_path / "m")
    (tmp_path / "t.jsonl").write_text('{"prompt": "Say N."}\n' * 4)
    (tmp_path / "t.yaml").write_text(
        "env: rlgkd/Dataset-v0\n"
        "env_settings: {data: t.jsonl, split_shares: null, reward: {name: length, words: 2}, chat: true, "
        "max_new_tokens: 4, max_prompt_tokens: 96}\n"
        f"student: {name}\nteacher: null\nalpha: 0\ntokens: 16\neval_prompts: 1\nprompts_per_update: 2\ngroup_size: 2\n"
        "checkpoint_every: 1\n"
    )
    train.start(read(tmp_path / "t.yaml"), tmp_path / "run", quiet=True)
    return tmp_path


def test_a_run_writes_its_day_and_goes_on_with_it_and_refuses_another_template(run, caplog) -> None:
    settings = read(run / "run" / "config.yaml")
    assert settings.env_settings["chat_template_date"] == date.today().isoformat()
    rollouts = (run / "run" / "rollouts.jsonl").read_bytes()
    train.resume(run / "run", quiet=True)
    assert (run / "run" / "rollouts.jsonl").read_bytes() == rollouts
    # What was generated with the run's settings has its day.
    given = {"max_new_tokens": 2, "temperature": 1.0, "greedy": True, "seed": 0, "stop": (), "filters": None}
    assert len(complete(str(run / "run"), ["Q"], chat=True, **given)) == 1
    # No variables in the run are none, to which the command line adds.
    config = (run / "run" / "config.yaml").read_text()
    emptied = config.replace("env_settings:\n", "env_settings:\n  chat_template_kwargs:\n")
    (run / "run" / "config.yaml").write_text(emptied)
    assert read(run / "run" / "config.yaml").env_settings["chat_template_kwargs"] is None
    with pytest.raises(SettingError, match=r"chat_template_kwargs: 'thinking' .* no such variable"):
        complete(str(run / "run"), ["Q"], chat=True, chat_template_kwargs={"thinking": True}, **given)
    (run / "run" / "config.yaml").write_text(config)
    changed = load_tokenizer(run / "m")
    changed.chat_template = "!" + DATED
    changed.save_pretrained(run / "m")
    with pytest.raises(CheckpointError, match=r"since it began, its token ids of the first prompts .* changed"):
        train.resume(run / "run", quiet=True)
    # A setting from which no prompt follows excuses nothing; one that writes the prompts does.
    for other in ("max_new_tokens=3", "reward={name: length, words: 3}"):
        with pytest.raises(CheckpointError, match=r"since it began, its token ids of the first prompts .* changed"):
            train.resume(run / "run", [f"env_settings.{other}", "tokens=24"], quiet=True)
    assert (run / "run" / "rollouts.jsonl").read_bytes() == rollouts
    train.resume(run / "run", ["env_settings.system=Be brief.", "tokens=24"], quiet=True)
    assert (run / "run" / "rollouts.jsonl").read_bytes().startswith(rollouts)


def test_an_environment_that_takes_no_day_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    settings = read("quickstart")
    assert text_ids.with_day(settings, task(CHATML)) is settings
    with caplog.at_level(logging.WARNING):
        assert text_ids.with_day(settings, task(DATED)) is settings
    assert "rlgkd/GroundedSummary-v0 takes no chat_template_date" in caplog.text


def test_a_comparison_has_one_day_and_one_that_began_keeps_its_own(monkeypatch, tmp_path) -> None:
    name = folder(model(tokenizer()), tokenizer(template=DATED), tmp_path / "m")
    (tmp_path / "t.jsonl").write_text('{"prompt": "Say N."}\n' * 4)
    (tmp_path / "t.yaml").write_text(
        "env: rlgkd/Dataset-v0\n"
        "env_settings: {data: t.jsonl, split_shares: null, reward: {name: length, words: 2}, chat: true, "
        "max_new_tokens: 2, max_prompt_tokens: 96}\n"
        f"student: {name}\nteacher: null\nalpha: 0\ntokens: 4\neval_prompts: 2\nprompts_per_update: 2\n"
        "group_size: 2\n"
    )

    def cells(*seeds: int) -> Grid:
        return grid(read(tmp_path / "t.yaml"), {"learning_rate": [0.001]}, seeds, samples=1)

    today = date.today().isoformat()
    compare(cells(0), tmp_path / "out", quiet=True)
    configs = [tmp_path / "out" / cells(0, 1).cells[0].run_folder(seed) / "config.yaml" for seed in (0, 1)]
    assert read(configs[0]).env_settings["chat_template_date"] == today

    class Tomorrow(date):
        @classmethod
        def today(cls) -> date:
            return date(2031, 1, 2)

    monkeypatch.setattr(chat_template, "date", Tomorrow)
    for out, day in ((tmp_path / "out", today), (tmp_path / "new", "2031-01-02")):
        dated = on_one_day(cells(0, 1), out)
        settings = [dated.base, *(cell.settings for cell in (*dated.cells, *dated.baselines))]
        assert {one.env_settings["chat_template_date"] for one in settings} == {day}
    # One of before, without a day, goes on without.
    configs[0].write_text(configs[0].read_text().replace("chat_template_date", "name"))
    assert on_one_day(cells(0, 1), tmp_path / "out").base == cells(0, 1).base


def test_variables_of_the_command_line_are_yaml() -> None:
    assert parse_variables("{enable_thinking: false}") == {"enable_thinking": False} and parse_variables("") == {}
    for wrong in ("thinking", "{", "[1]"):
        with pytest.raises(SettingError, match=r"chat_template_kwargs: .* write names and values"):
            parse_variables(wrong)


# Templates that rewrite


TRIM = CHATML.replace("{{ m['content'] }}", "{{ m['content'] | trim }}")
FORGET = CHATML.replace("m['content']", "m['content'].split('</think>')[-1]")
EMPTY_THOUGHT = CHATML.replace("assistant\n{% endif", "assistant\n<think>\n\n</think>\n\n{% endif")


def asks(item, turns) -> str | None:
    return "Why?" if len(turns) < 3 else None


@pytest.mark.parametrize(
    ("template", "settings", "turns", "warned"),
    [
        (TRIM, {"prompts": ["Q"]}, [], False),
        (TRIM, {"prompts": ["Q", " Q "]}, [], True),
        (TRIM, {"prompts": [[{"role": "user", "content": "Q "}]]}, [], True),
        (TRIM, {"prompts": ["Q"], "system": "Be brief.\n"}, [], True),
        (FORGET, {"prompts": ["Q"]}, [], False),
        (FORGET, {"prompts": ["Q"], "reply": asks}, ["I see."], False),
        (FORGET, {"prompts": ["Q"], "reply": asks}, ["<think>Hm</think>I see."], True),
        (EMPTY_THOUGHT, {"prompts": ["Q"]}, [], False),
        (EMPTY_THOUGHT, {"prompts": ["Q"], "reply": asks}, [], True),
        (CHATML, {"prompts": [" Q "], "reply": asks}, ["<think>Hm</think>I see."], False),
    ],
)
def test_a_template_that_rewrites_is_reported_once_and_only_where_it_does(
    template: str, settings: dict, turns: list[str], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        made = task(template, **settings)
        for _ in range(2):
            made.encode_prompt(made.item("test", 0, 0))
            if turns:
                made.reply(made.item("test", 0, 0), turns)
    assert [("is trained as" in line and "served" in line) for line in caplog.messages] == [True] * warned


def _env(made: TextTask):
    from rlgkd.envs.sb3 import TextVecEnv

    return TextVecEnv(made, num_envs=1)


def test_a_saved_folder_keeps_several_templates(tmp_path) -> None:
    own = tokenizer(template={"default": CHATML, "rag": "rag " + CHATML})
    save(model(own), own, tmp_path)
    assert load_tokenizer(tmp_path).chat_template == own.chat_template


def test_a_folder_that_is_saved_over_another_has_no_template_of_that_ones(tmp_path) -> None:
    old = tokenizer(template={"default": CHATML, "rag": "rag " + CHATML})
    save(model(old), old, tmp_path)
    for template in ("new " + CHATML, None):
        own = tokenizer(template=template)
        save(model(own), own, tmp_path)
        assert load_tokenizer(tmp_path).chat_template == template

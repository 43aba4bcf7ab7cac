"""rlgkd/OpenEnv-v0: the episodes of an OpenEnv server whose observations and actions are text (Meta's openenv-core).

What is required of the server: an episode is a function of the reset's seed and the actions, since each reply plays the
episode so far again (rlgkd.envs.tasks.openenv_session). A replay that differs from what the policy has read fails, and
is never scored. A server that ignores the seed has a single episode, which must then be the same each time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from rlgkd.envs.data.rows import template
from rlgkd.envs.task import TextTask
from rlgkd.envs.tasks.openenv_session import Session, Step, session_at
from rlgkd.errors import DataError, SettingError, one_line
from rlgkd.scoring import as_float
from rlgkd.secret_masks import masked
from rlgkd.settings import checked_arguments
from rlgkd.types import Item, Score


@checked_arguments
def openenv(
    *,
    url: str = "http://127.0.0.1:8000",
    observation_text: str = "echoed_message",
    action_text: str = "message",
    episodes: int = 64,
    held_out_episodes: int = 16,
    timeout: float = 30.0,
    tokenizer: Any = "embedded:grounded-teacher",
    prompt: str = "{observation}",
    **settings: Any,
) -> TextTask:
    """The episodes of an OpenEnv server: a turn of the policy is an action, an observation the reply to it.

    Prompt: The observation of the reset, or another template of `observation`.

    Reward: The sum of the steps' rewards. Its parts are the number of `steps`, and whether the server called the
    episode `done`. If the server failed, was late, or differed from its replay, the reward has failed.

    Episode end: The server's `done`, or an observation without text; at the length limit of all turns, the last turn
    goes to the server as it stands.

    Splits: Seeds from 0 on: first `episodes` for train, then `held_out_episodes` each for validation and test.

    Args:
        url: The server's address, without its `/ws`.
        observation_text: The observation's field that holds its text, or a template such as `{stdout} {stderr}`; a
            dotted name is a field of a field. The default is that of the environments that `openenv init` writes.
        action_text: The action's field that takes the text of a turn.
        episodes: Seeds for training; 1 or more.
        held_out_episodes: Seeds for each of validation and test; 1 or more.
        timeout: Seconds for each answer of the server.
        tokenizer: A model's name, or a loaded tokenizer.
        prompt: Template of `observation`, the text of the first observation. All are read when the task is made.
        **settings: Other settings of `TextTask`.

    Raises: DependencyError without openenv-core; SettingError for a server that cannot be reached, or whose first
        observation is no function of the seed; DataError for an observation without the text.
    """
    for field, number in {"episodes": episodes, "held_out_episodes": held_out_episodes}.items():
        if type(number) is not int or number < 1:
            raise SettingError(field, number, "give a whole number, 1 or more")
    server = ServerEpisodes(session_at(url, timeout), observation_text, action_text)
    seeds = range(episodes + 2 * held_out_episodes)
    rows = [{"seed": seed, "observation": server.first_text(seed)} for seed in seeds]
    if server.first_text(0) != rows[0]["observation"]:
        raise SettingError("url", url, "seed 0 begins differently each time; make its episodes functions of the seed")
    validation, test = episodes, episodes + held_out_episodes
    return TextTask(
        name=f"OpenEnv {masked(url)}",
        prompts={"train": rows[:validation], "validation": rows[validation:test], "test": rows[test:]},
        prompt=prompt,
        reward=server.reward,
        reply=server.reply,
        tokenizer=tokenizer,
        **settings,
    )


class ServerEpisodes:
    """Replies and rewards of a server's episodes, both of them functions of the item and the turns."""

    def __init__(self, session: Session, observation_text: str, action_text: str) -> None:
        """Take the session, and the fields of observations and actions that are text; see `openenv`."""
        self._session = session
        self._observation_text = template("observation_text", observation_text)
        self._action_text = action_text
        self._failures: defaultdict[tuple[str, tuple[str, ...]], list[Exception]] = defaultdict(list)
        """Why episodes that a failed reply ended have no reward: a later replay may work, and is not the whole."""

    def first_text(self, seed: int) -> str:
        """Return the text of the first observation.

        Raises: SettingError if the server does not give it; DataError for an observation without the text.
        """
        try:
            return self._text(self._session.play(seed, [])[0])
        except DataError:
            raise
        except Exception as error:  # of many kinds: of sockets, of the server's own code
            remedy = f"start an OpenEnv server there, or correct url: {masked(one_line(error, 300))}"
            raise SettingError("url", self._session.url, remedy) from error

    def reply(self, item: Item, turns: Sequence[str]) -> str | None:
        """Return the observation after the last turn; None at the end of the episode, or if it failed."""
        try:
            last = self._play(item, turns)[-1]
            return None if last.done else self._text(last) or None
        except Exception as error:
            self._failures[item.key, tuple(turns)].append(error)
            return None

    def reward(self, items: Sequence[Item], turns: Sequence[Sequence[str]]) -> list[Score | Exception]:
        """Return the score of each episode, or why it has none."""
        return [self._score(item, said) for item, said in zip(items, turns, strict=True)]

    def _score(self, item: Item, turns: Sequence[str]) -> Score | Exception:
        failures = self._failures.pop((item.key, tuple(turns)), [])
        if failures[1:]:  # other samples said the same
            self._failures[item.key, tuple(turns)] = failures[1:]
        try:
            return failures[0] if failures else _sum(self._play(item, turns)[1:])
        except Exception as error:
            return error

    def _play(self, item: Item, turns: Sequence[str]) -> list[Step]:
        """The answers to the reset and to each turn, if they are those that the policy has read."""
        seed = int(str(item.columns["seed"]))
        steps = self._session.play(seed, [{self._action_text: turn} for turn in turns[::2]])
        if [self._text(step) for step in steps[:-1]] != [item.columns["observation"], *turns[1::2]]:
            remedy = "its episodes must be functions of seed and actions"
            raise ValueError(f"{self._session.url} replayed the episode of seed {seed} differently; {remedy}")
        return steps

    def _text(self, step: Step) -> str:
        text = self._observation_text("the observation", step.observation)
        text.encode()  # JSON may hold half of a surrogate pair, which is no text
        return text


def _sum(steps: Sequence[Step]) -> Score:
    """The sum of the rewards that steps have; an episode that is over has one at least."""
    rewards = [as_float(step.reward) for step in steps if step.reward is not None]
    if steps[-1].done and not rewards:
        raise ValueError("the server ended the episode, and gave no reward for any of its steps")
    return Score(reward=sum(rewards), parts={"steps": float(len(steps)), "done": float(steps[-1].done)})

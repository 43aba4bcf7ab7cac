"""A session of an OpenEnv server, in which any episode can be played again from its seed.

A server's episode has state, and a task's reply has none: it is a function of the item and the turns so far. So the
actions so far are played again after a reset with the episode's seed. Only where the session already stands at a
beginning of them is the rest played alone. One session is enough for any number of rows, and is all that most servers
allow at once. It is opened when it is first needed, shared by the tasks of a process, and closed when that ends.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from rlgkd.errors import DependencyError, SettingError, one_line
from rlgkd.json_server import MAX_ANSWER_BYTES

Action = Mapping[str, Any]
CLOSED = 1000
"""The code with which a websocket is closed where nothing has failed (RFC 6455)."""


class Step(NamedTuple):
    """What the server answered to a reset or an action."""

    observation: Mapping[str, Any]
    reward: Any
    """None if it gave none."""
    done: bool


class Session:
    """One connection to a server, and the episode that it stands in."""

    def __init__(self, url: str, timeout: float) -> None:
        """Take the server's address, and the seconds for each of its answers.

        Raises: SettingError for seconds that are not above 0; DependencyError without openenv-core.
        """
        if not (math.isfinite(timeout) and timeout > 0):
            raise SettingError("timeout", timeout, "give seconds above 0")
        try:
            from openenv.core.generic_client import GenericEnvClient  # it sends and reads JSON, and runs no other code
            from websockets.exceptions import ConnectionClosed
        except ImportError as error:
            raise DependencyError("url", url, f"{error}: pip install 'rlgkd[openenv]'") from error
        self.url = url
        self._timeout = timeout
        self._client_class, self._closed_error = GenericEnvClient, ConnectionClosed
        self._client: Any = None
        self._seed: int | None = None
        self._actions: list[Action] = []
        self._steps: list[Step] = []
        self._lock = threading.Lock()

    def play(self, seed: int, actions: Sequence[Action]) -> list[Step]:
        """Return the answers to the reset with `seed` and to each of the actions after it.

        A connection that has closed since it was last used is opened again.

        Raises: ConnectionError, TimeoutError; RuntimeError for an error that the server reports; ValueError for an
            answer that is none, or an episode that ends before the last action.
        """
        with self._lock:  # a reward that was late may still be at it in its thread
            while True:
                was_open = self._client is not None
                try:
                    return self._play(seed, actions)
                except self._closed_error as error:
                    if not was_open:
                        raise self._lost(error) from None

    def _lost(self, error: Exception) -> ConnectionError:
        properly = getattr(getattr(error, "rcvd", None), "code", None) == CLOSED
        advice = "; it may allow fewer sessions at once than there are processes (max_concurrent_envs)"
        return ConnectionError(f"{self.url} closed the connection: {one_line(error, 100)}{advice if properly else ''}")

    def _play(self, seed: int, actions: Sequence[Action]) -> list[Step]:
        known = len(self._actions)
        if seed != self._seed or list(actions[:known]) != self._actions:
            self._seed, self._actions, known = None, [], 0
            self._steps = [self._ask("reset", seed=seed)]
            self._seed = seed
        for action in actions[known:]:
            if self._steps[-1].done:
                raise ValueError(f"{self.url} ended the episode of seed {seed} before action {action!r:.80}")
            self._steps.append(self._ask("step", action))
            self._actions.append(action)
        return list(self._steps)

    def _ask(self, method: str, *arguments: Any, **keywords: Any) -> Step:
        """Ask the server; if that fails, the session stands in no episode."""
        try:
            answer = getattr(self._connected(), method)(*arguments, **keywords)
            if not isinstance(answer.observation, Mapping):
                raise ValueError(
                    f"{self.url} answered with an observation that is no object: {answer.observation!r:.80}"
                )
            return Step(answer.observation, answer.reward, bool(answer.done))
        except RuntimeError as error:  # the server reports an error, and the connection goes on
            self._seed = None
            given = arguments or keywords
            raise RuntimeError(f"{self.url} refused {method} {given!r:.80}: {one_line(error, 200)}") from error
        except BaseException as error:
            self._seed = None
            self._close()  # a late answer would be read as that to the next question
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{self.url} did not answer within {self._timeout:g} seconds") from None
            raise

    def _connected(self) -> Any:
        if self._client is None:
            limits = {"connect_timeout_s": self._timeout, "message_timeout_s": self._timeout}
            client = self._client_class(
                self.url, max_message_size_mb=MAX_ANSWER_BYTES / 2**20, mode="simulation", **limits
            ).sync()
            try:
                client.connect()
            except BaseException:
                client.close()
                raise
            self._client = client
        return self._client

    def _close(self) -> None:
        """Close the connection, without waiting for a server that does not answer."""
        client, self._client = self._client, None
        if client is not None:
            threading.Thread(target=client.close, daemon=True).start()


def session_at(url: str, timeout: float) -> Session:
    """Return this process's session at an address."""
    return _session_of(os.getpid(), url, timeout)


@cache
def _session_of(process: int, url: str, timeout: float) -> Session:
    return Session(url, timeout)

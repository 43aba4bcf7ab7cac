"""Served rewards: an error of a real server on 127.0.0.1 costs its samples, is reported, and is never a number.

The server does what a completion says: `good 7` earns 7, `drop 7` closes the connection, and so on.
"""

from __future__ import annotations

import gzip
import json
import logging
import math
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import psutil
import pytest

from rlgkd import json_server
from rlgkd.envs import rewards
from rlgkd.envs.rewards.grader import Grader
from rlgkd.envs.rewards.registry import reward_from
from rlgkd.errors import RewardError, SettingError
from rlgkd.failures import MIN_SAMPLES
from rlgkd.types import Item

ANSWERS = {
    "garbage": b"\xff\xfe not json",
    "empty": b"",
    "page": b"<html>502</html>",
    "few": b'{"rewards": []}',
    "many": b'{"rewards": [1.0, 2.0]}',
    "bare": b"[1.0]",
    "number": b"1.0",
    "nan": b'{"rewards": [NaN]}',
    "infinite": b'{"rewards": [-Infinity]}',
    "huge": b'{"rewards": [1' + b"0" * 400 + b"]}",
    "null": b'{"rewards": [null]}',
    "text": b'{"rewards": ["1.0"]}',
    "true": b'{"rewards": [true]}',
    "list": b'{"rewards": [[1.0]]}',
    "object": b'{"rewards": {"0": 1.0}}',
    "other": b'{"scores": [1.0]}',
    "deep": b"[" * 100_000,
    "twice": b'{"rewards": [1.0], "rewards": [2.0]}',
}
STATUSES = {"broken": 500, "away": 503, "busy": 429, "unknown": 404, "moved": 302}
CUT = ("drop", "half")
FAULTS = (*ANSWERS, *STATUSES, *CUT)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), asked))
            self.server.open += 1
            self.server.most_open = max(self.server.most_open, self.server.open)
        try:
            self.answer(asked)
        finally:
            with self.server.lock:
                self.server.open -= 1

    def answer(self, asked: dict[str, Any]) -> None:
        if "messages" in asked:
            return self.reply(200, self.server.says(asked["messages"][0]["content"]))
        kind = asked["completions"][0].split()[0]
        if kind == "late":
            self.server.over.wait(30)
        if kind in ("drop", "late"):
            self.close_connection = True
        elif kind == "half":
            self.reply(200, b'{"rewards": [1.0', length=1000)
            self.close_connection = True
        elif kind == "echo":
            self.reply(200, asked["completions"][0].encode())
        elif kind == "large":
            self.reply(200, b" " * 2**21)
        elif kind == "bomb":
            self.reply(200, gzip.compress(b" " * 2**24), encoding="gzip")
        elif kind in ("endless", "trickle"):
            self.reply(200, b"", length=2**40)
            self.close_connection = True
            with suppress(OSError):
                while not self.server.over.wait(0.1 if kind == "trickle" else 0):
                    self.wfile.write(b" " * (1 if kind == "trickle" else 2**16))
        elif kind in STATUSES:
            self.reply(STATUSES[kind], b'{"rewards": [1.0]}')
        elif kind == "once" and self.server.first(asked["completions"][0]):
            self.reply(500, b"not yet")
        elif kind in ANSWERS:
            self.reply(200, ANSWERS[kind])
        else:
            numbers = [None if text.startswith("null") else float(text.split()[1]) for text in asked["completions"]]
            self.reply(200, json.dumps({"rewards": numbers}).encode())

    def reply(self, status: int, body: bytes, length: int | None = None, encoding: str = "identity") -> None:
        self.send_response(status)
        self.send_header("Content-Encoding", encoding)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    daemon_threads = False  # so that server_close waits for them, and the tests count none left
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.lock, self.over = threading.Lock(), threading.Event()
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.open = self.most_open = 0
        self.seen: Counter[str] = Counter()
        self.verdicts: dict[str, object] = {}

    def first(self, text: str) -> bool:
        with self.lock:
            self.seen[text] += 1
            return self.seen[text] == 1

    def says(self, question: str) -> bytes:
        content = next(verdict for text, verdict in self.verdicts.items() if text in question)
        if isinstance(content, bytes):
            return content
        return json.dumps({"choices": [{"message": {"role": "assistant", "content": content}}]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    process = psutil.Process()
    threads, files = threading.active_count(), process.num_fds()
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.over.set()
        running.shutdown()
        thread.join()
    assert (threading.active_count(), process.num_fds()) == (threads, files)


def items(size: int, **columns: object) -> list[Item]:
    return [Item(key=str(n), prompt=f"p{n}", reference=f"r{n}", columns=columns) for n in range(size)]


def rewards_of(reward: Any, completions: list[str], **settings: Any) -> list[float]:
    graded = Grader(reward, max_failed=1.0, **settings)(items(len(completions)), completions)
    return [score.reward for score in graded]


def test_a_server_is_sent_lists_in_chunks_and_answers_in_the_order_of_the_batch(server: Server) -> None:
    reward = rewards.served(server.url + "/r", columns=["level"], batch_size=2, headers={"X-Run": "7"})
    grader = Grader(reward)
    completions = [f"good {n / 4}" for n in range(5)]
    assert [score.reward for score in grader(items(5, level=3), completions)] == [0.0, 0.25, 0.5, 0.75, 1.0]
    sent = sorted((body["prompts"][0], path, headers["X-Run"], body) for path, headers, body in server.asked)
    assert len(sent) == 3
    assert sent[1] == (
        "p2",
        "/r",
        "7",
        {
            "prompts": ["p2", "p3"],
            "completions": completions[2:4],
            "references": ["r2", "r3"],
            "level": [3, 3],
        },
    )
    with pytest.raises(SettingError, match="'grade' does not work"):
        Grader(rewards.served(server.url, columns=["grade"]))(items(1), ["good 1"])


def test_none_of_a_thousand_faults_becomes_a_number_or_stops_the_run_below_the_set_share(server: Server) -> None:
    rng = random.Random(0)
    reward = rewards.served(server.url, batch_size=1, timeout=20, retries=1, backoff=0.001, concurrency=8)
    kinds = [*FAULTS * 48, *["good", "once"] * 200]
    rng.shuffle(kinds)
    completions = [f"{kind} {n}" for n, kind in enumerate(kinds)]
    faults = sum(kind in FAULTS for kind in kinds)
    assert faults > 1000
    grader = Grader(reward, max_failed=0.8)
    given = [
        score.reward
        for start in range(0, len(kinds), 100)
        for score in grader(items(len(kinds[start : start + 100])), completions[start : start + 100])
    ]
    for n, (kind, value) in enumerate(zip(kinds, given, strict=True)):
        assert math.isnan(value) if kind in FAULTS else value == n, kind
    assert (grader.failed, grader.scored) == (faults, len(kinds))
    assert 1 < server.most_open <= 8
    # Asked again, once: where the connection failed or the server could not; where the answer is bad, never.
    tries = Counter(body["completions"][0].split()[0] for _, _, body in server.asked)
    twice = {"drop", "half", "broken", "away", "busy"}
    assert all(tries[kind] == (96 if kind in twice else 48) for kind in FAULTS) and tries["once"] == 400


def test_above_the_set_share_the_run_stops_with_the_first_cause(server: Server, caplog: Any) -> None:
    reward = rewards.served(server.url, batch_size=1, backoff=0.001)
    grader = Grader(reward, max_failed=0.1)
    completions = [f"{'unknown' if n % 5 == 4 else 'good'} {n}" for n in range(MIN_SAMPLES)]
    with caplog.at_level(logging.WARNING), pytest.raises(RewardError) as caught:
        grader(items(MIN_SAMPLES), completions)
    assert "40 of 200 samples failed" in str(caught.value)
    assert f"the first failure: ConnectionError: {server.url} answered 404" in str(caught.value)
    assert isinstance(caught.value.__cause__, ConnectionError)
    assert len(caplog.records) == 1 and "answered 404" in caplog.text


def test_a_bad_value_costs_its_sample_and_a_bad_answer_its_request(server: Server) -> None:
    reward = rewards.served(server.url, batch_size=3, backoff=0.001)
    texts = ["good 1", "null 2", "good 3", "few 4", "good 5", "good 6", "good 7"]
    first, null, third, *request, last = rewards_of(reward, texts)
    assert (first, third, last) == (1.0, 3.0, 7.0) and math.isnan(null) and all(map(math.isnan, request))


def test_a_late_answer_is_given_up_and_the_others_are_not_held_up_for_it(server: Server) -> None:
    reward = rewards.served(server.url, batch_size=1, timeout=1.5)
    texts = [f"{'late' if n < 8 else 'good'} {n}" for n in range(16)]
    grader = Grader(reward, max_failed=1.0)
    given = [score.reward for score in grader(items(16), texts)]
    assert all(map(math.isnan, given[:8])) and given[8:] == [float(n) for n in range(8, 16)]
    assert isinstance(grader._first_error, TimeoutError) and "within 1.5 seconds" in str(grader._first_error)
    assert len(server.asked) == 16  # none was asked twice


def test_a_server_that_is_not_there_is_a_failure_that_names_it_without_its_secrets(server: Server) -> None:
    with Server() as gone:
        port = gone.server_port
    grader = Grader(rewards.served(f"http://me:secret@127.0.0.1:{port}/r?key=secret", retries=1, backoff=0.001))
    assert math.isnan(grader(items(1), ["good 1"])[0].reward)
    assert f"http://127.0.0.1:{port}/r: ConnectError" in str(grader._first_error) and "secret" not in str(
        grader._first_error
    )


VERDICTS: dict[str, tuple[object, float]] = {
    "A1": ("Fine.\nScore: 7", 0.7),
    "A2": ("**Score: 2.5**", 0.25),
    "A3": ("At first I thought:\nScore: 9\nBut no.\n**Score:** 1.\n", 0.1),
    "A4": ("score: 10", 1.0),
    "A5": ("Score: 0", 0.0),
    "B1": ("I cannot grade this.", math.nan),
    "B2": ("Score: 11", math.nan),
    "B3": ("Score: -3", math.nan),
    "B4": ("Score: 7/10", math.nan),
    "B5": ("Score: 1,5", math.nan),
    "B6": ("Score: NaN", math.nan),
    "B7": ("", math.nan),
    "B8": (None, math.nan),
    "B9": ([{"type": "text", "text": "Score: 7"}], math.nan),
    "C1": (b'{"choices": []}', math.nan),
    "C2": (b'{"error": {"message": "Score: 7"}}', math.nan),
    "C3": (b"Score: 7", math.nan),
    "C4": (b'["Score: 7"]', math.nan),
}


def test_a_judge_grades_each_sample_and_what_cannot_be_read_is_no_grade(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-1\n")
    server.verdicts = {text: said for text, (said, _) in VERDICTS.items()}
    reward = rewards.judge(
        server.url + "/v1/", "tiny", api_key_env="JUDGE_KEY", options={"seed": 3}, backoff=0.001, concurrency=4
    )
    given = rewards_of(reward, list(VERDICTS))
    assert given == pytest.approx([value for _, value in VERDICTS.values()], nan_ok=True)
    path, headers, body = server.asked[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer sk-1"
    assert (body["model"], body["seed"], body["messages"][0]["role"]) == ("tiny", 3, "user")
    assert len(server.asked) == len(VERDICTS) and server.most_open <= 4


def test_a_judges_question_pattern_and_scale_are_settings(server: Server, monkeypatch: Any) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.verdicts = {"5 {dog} p0 r0": "grade=<2>", "5 cat p1 r1": "grade=<4>"}
    reward = rewards.judge(
        server.url, "m", template="{level} {completion} {prompt} {reference} {{}}", pattern=r"<(\d)>", scale=(1, 5)
    )
    grader = Grader(reward)
    assert [score.reward for score in grader(items(2, level=5), ["{dog}", "cat"])] == [0.25, 0.75]
    assert {body["messages"][0]["content"] for *_, body in server.asked} == {"5 {dog} p0 r0 {}", "5 cat p1 r1 {}"}
    assert all("Authorization" not in headers for _, headers, _ in server.asked)


@pytest.mark.parametrize(
    ("make", "settings", "field"),
    [
        (rewards.served, {"url": "127.0.0.1:8000"}, "url"),
        (rewards.served, {"url": "ftp://a/b"}, "url"),
        (rewards.served, {"url": "http://a:99999999/"}, "url"),
        (rewards.served, {"url": "http://a b/"}, "url"),
        (rewards.served, {"headers": {"X": "a\r\nEvil: 1"}}, "headers"),
        (rewards.served, {"headers": {"a b": "1"}}, "headers"),
        (rewards.served, {"timeout": 0}, "timeout"),
        (rewards.served, {"retries": -1}, "retries"),
        (rewards.served, {"backoff": -1.0}, "backoff"),
        (rewards.served, {"concurrency": 0}, "concurrency"),
        (rewards.served, {"batch_size": 0}, "batch_size"),
        (rewards.served, {"columns": ["prompts"]}, "columns"),
        (rewards.judge, {"api_key_env": "A=B"}, "api_key_env"),
        (rewards.judge, {"scale": (10, 0)}, "scale"),
        (rewards.judge, {"pattern": "("}, "pattern"),
        (rewards.judge, {"pattern": "[0-9]+"}, "pattern"),
        (rewards.judge, {"template": "{prompt}"}, "template"),
        (rewards.judge, {"template": "{completion} {"}, "template"),
        (rewards.judge, {"template": "{completion.__class__}"}, "template"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(make: Any, settings: dict[str, Any], field: str) -> None:
    needed = {"url": "http://127.0.0.1:1", **({"model": "m"} if make is rewards.judge else {})}
    with pytest.raises(SettingError) as error:
        make(**{**needed, **settings})
    assert error.value.field == field


def test_a_judges_scale_is_a_list_in_yaml(server: Server) -> None:
    given = {"name": "judge", "url": server.url, "model": "m", "retries": 0}
    assert callable(reward_from({**given, "scale": [1, 5]}))
    for wrong in ([1], [1, 2, 3], [5, 1], "15"):
        with pytest.raises(SettingError, match="scale: "):
            reward_from({**given, "scale": wrong})


def test_secrets_come_from_environment_variables(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setenv("REWARD_KEY", "s/e cret\n")
    monkeypatch.setenv("REWARD_URL", server.url)
    reward = rewards.served("$REWARD_URL/r?key=${REWARD_KEY}&a=$$b", headers={"Authorization": "Bearer $REWARD_KEY"})
    assert rewards_of(reward, ["good 1"]) == [1.0]
    path, headers, _ = server.asked[0]
    assert path == "/r?key=s%2Fe%20cret&a=$b" and headers["Authorization"] == "Bearer s/e cret"
    monkeypatch.delenv("REWARD_KEY")
    for settings in ({"url": "http://a/$REWARD_KEY"}, {"url": "http://a", "headers": {"X": "$REWARD_KEY"}}):
        with pytest.raises(SettingError, match="set this environment variable"):
            rewards.served(**settings)
    with pytest.raises(SettingError, match="a secret was masked when it was written"):
        rewards.served("http://a", headers={"Authorization": "Bearer ***"})


def test_an_answer_that_repeats_a_key_is_shown_without_it(server: Server) -> None:
    reward = rewards.served(server.url, headers={"Authorization": "Bearer sk-123456"})
    grader = Grader(reward, max_failed=1.0)
    (score,) = grader(items(1), ["echo sk-123456"])
    assert "no JSON" in score.failure and "***" in score.failure and "sk-123456" not in score.failure


def test_an_answer_that_repeats_a_key_as_an_address_has_it_is_shown_without_it(
    server: Server, monkeypatch: Any
) -> None:
    monkeypatch.setenv("REWARD_KEY", "se/kr+et=99")
    (score,) = Grader(rewards.served(f"{server.url}?key=$REWARD_KEY"), max_failed=1.0)(
        items(1), ["echo se%2Fkr%2Bet%3D99"]
    )
    assert "***" in score.failure and "kr%2Bet" not in score.failure


def test_an_answer_has_a_limit_of_bytes_also_when_it_is_decompressed(server: Server, monkeypatch: Any) -> None:
    monkeypatch.setattr(json_server, "MAX_ANSWER_BYTES", 2**20)
    reward = rewards.served(server.url, batch_size=1, timeout=5)
    for score in Grader(reward, max_failed=1.0)(items(3), ["large 1", "bomb 1", "endless 1"]):
        assert math.isnan(score.reward) and "answered with more than 1048576 bytes" in score.failure


def test_an_answer_that_trickles_has_a_limit_of_time(server: Server) -> None:
    (score,) = Grader(rewards.served(server.url, timeout=0.3), max_failed=1.0)(items(1), ["trickle 1"])
    assert "did not answer within 0.3 seconds" in score.failure

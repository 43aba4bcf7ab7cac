"""A server on 127.0.0.1 that answers in vLLM's shapes from a model in this process, and does wrong when it is asked to.

The log-probabilities are those of transformers' own forward pass, and JSON as vLLM 0.32 writes it. `faults` are taken
in their order, one for each request for log-probabilities; None is a right answer, and `held` fails once `release` is
set.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain, repeat
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

FAULTS = (
    "status",
    "busy",
    "refused",
    "late",
    "garbage",
    "html",
    "half",
    "short",
    "long",
    "nan",
    "infinity",
    "text",
    "above_one",
    "no_token",
    "few",
    "null_position",
    "other_model",
    "no_choices",
    "bad_id",
    "list",
)
"""What a request may get in the place of a right answer."""


class TeacherServer(ThreadingHTTPServer):
    """Serves one model under one name."""

    daemon_threads = False  # so that server_close waits for them, and tests count none left
    request_queue_size = 256

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        port: int = 0,
        name: str = "teacher",
        max_model_len: int = 256,
        max_logprobs: int = 1024,
        extra: int = 0,
        handler: type[BaseHTTPRequestHandler] | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", port), handler or Handler)
        self.module, self.tokenizer, self.name = module, tokenizer, name
        self.max_model_len, self.max_logprobs, self.extra = max_model_len, max_logprobs, extra
        self.lock, self.over, self.release = threading.Lock(), threading.Event(), threading.Event()
        self.faults: Iterator[str | None] = repeat(None)
        self.fails: Callable[[list[int]], bool] = lambda tokens: False
        """Texts for which it always answers 500."""
        self.chat_ids: list[int] | None = None
        """What its chat template makes of any conversation; None: it has no template."""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def do_wrong(self, *faults: str | None) -> None:
        """Let the next requests for log-probabilities fail so."""
        with self.lock:
            self.faults = chain(faults, repeat(None))

    def prompt_logprobs(self, tokens: Sequence[int], k: int) -> list[dict[str, Any] | None]:
        with self.lock, torch.inference_mode():
            logits_TV = self.module(input_ids=torch.tensor([tokens])).logits[0, :, : len(self.tokenizer) + self.extra]
        logp_TV = logits_TV.float().log_softmax(-1)
        positions: list[dict[str, Any] | None] = [None]
        for logp_V, token in zip(logp_TV[:-1], tokens[1:], strict=True):
            entries = {token: (logp_V[token].item(), int((logp_V >= logp_V[token]).sum()))}
            values, ids = logp_V.topk(k)
            entries |= {i: (v, n) for n, (i, v) in enumerate(zip(ids.tolist(), values.tolist(), strict=True), 1)}
            positions.append(
                {str(i): {"logprob": v, "rank": rank, "decoded_token": ""} for i, (v, rank) in entries.items()}
            )
        return positions


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: TeacherServer

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        card = {"id": self.server.name, "object": "model", "max_model_len": self.server.max_model_len}
        self.reply(200, {"object": "list", "data": [card]} if self.path == "/v1/models" else {"error": self.path})

    def do_POST(self) -> None:
        self.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def answer(self, asked: dict[str, Any]) -> None:
        if asked["model"] != self.server.name:
            return self.reply(404, {"error": {"message": f"The model {asked['model']} does not exist."}})
        if self.path == "/detokenize":
            return self.reply(200, {"prompt": self.server.tokenizer.decode(asked["tokens"])})
        if self.path == "/tokenize":
            ids = self.server.chat_ids
            wrong_request = ids is None or not asked["messages"]
            return self.reply(400 if wrong_request else 200, {"error": {}} if wrong_request else {"tokens": ids})
        with self.server.lock:
            self.server.asked.append(asked)
            self.server.headers.append(dict(self.headers))
            fault = next(self.server.faults)
        tokens, k = asked["prompt"], asked["prompt_logprobs"]
        if k > self.server.max_logprobs:
            message = f"Requested prompt logprobs of {k}, which is greater than max allowed: {self.server.max_logprobs}"
            return self.reply(400, {"error": {"message": message}})
        if len(tokens) + 1 > self.server.max_model_len:
            return self.reply(400, {"error": {"message": "max_tokens must be at least 1, got 0."}})
        if fault == "held":
            self.server.release.wait(30)
        if fault == "late":
            self.server.over.wait(30)
        if fault in ("refused", "late"):
            self.close_connection = True
        elif fault in ("status", "busy") or self.server.fails(tokens):
            self.reply(429 if fault == "busy" else 500, {"error": {"message": "it is broken"}})
        elif fault in ("garbage", "html", "held"):
            self.reply(200, b"\xff\xfe{" if fault != "html" else b"<html>502</html>")
        else:
            positions = self.server.prompt_logprobs(tokens, k)
            answer = {
                "id": "cmpl-0",
                "object": "text_completion",
                "model": self.server.name,
                "choices": [{"index": 0, "text": "", "prompt_logprobs": positions}],
            }
            self.reply(200, wrong(fault, answer) if fault else answer, length=10**6 if fault == "half" else None)
            self.close_connection = fault == "half"

    def reply(self, status: int, body: object, length: int | None = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content) if length is None else length))
        self.end_headers()
        with suppress(OSError):  # the client has left
            self.wfile.write(content)


def wrong(fault: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer with a fault, most of them in the last position, which is always an action."""
    positions = answer["choices"][0]["prompt_logprobs"]
    last = next(iter(positions[-1].values()))
    logprobs = {"nan": float("nan"), "infinity": float("-inf"), "text": "-1.0", "above_one": 0.5}
    if fault in logprobs:
        last["logprob"] = logprobs[fault]
    elif fault == "short":
        positions.pop()
    elif fault == "long":
        positions.append(positions[-1])
    elif fault == "no_token":
        positions[-1] = {"937": {"logprob": -1.0}, "938": {"logprob": -1.0}}
    elif fault == "few":
        positions[-1] = {}
    elif fault == "null_position":
        positions[-1] = None
    elif fault == "other_model":
        answer["model"] = "another"
    elif fault == "no_choices":
        answer["choices"] = []
    elif fault == "bad_id":
        positions[-1] = {f"x{key}": value for key, value in positions[-1].items()}
    elif fault == "list":
        answer["choices"][0]["prompt_logprobs"] = [[0.0] * 3 for _ in positions]
    return answer


@contextmanager
def serving(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Iterator[TeacherServer]:
    """A running server, and the end of it with all its threads."""
    server = TeacherServer(module, tokenizer, **settings)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()

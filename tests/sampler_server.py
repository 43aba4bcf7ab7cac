"""A server on 127.0.0.1 that samples in vLLM's shapes by our own decoder, and takes weights as vLLM does.

It has a copy of the model that it is given, and what it does wrong is set on it: `sample_faults` are taken in their
order, one for each request for texts; `keeps` names weights that it leaves as they were when others come.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from itertools import chain, repeat
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from teacher_server import Handler, TeacherServer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlgkd.lm import LanguageModel
from rlgkd.lm.generate import decode
from rlgkd.lm.stop_strings import StopStrings
from rlgkd.ops.sampling import uniforms

SAMPLE_FAULTS = (
    "status",
    "busy",
    "refused",
    "garbage",
    "other_model",
    "few",
    "no_ids",
    "empty",
    "long",
    "bad_token",
    "text_token",
    "short_logp",
    "nan",
    "above_one",
    "other_prompt",
    "after_end",
    "no_end",
    "aborted",
    "null",
)
"""What a request for texts may get in the place of a right answer."""


class SamplerServer(TeacherServer):
    """Serves a copy of one model, which takes other weights while it runs."""

    def __init__(
        self,
        module: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        dtype: torch.dtype | None = None,
        **settings: Any,
    ) -> None:
        copied = copy.deepcopy(module).requires_grad_(False)
        copied = copied if dtype is None else copied.to(dtype)
        super().__init__(copied, tokenizer, handler=SamplerHandler, **settings)
        self.lm = LanguageModel(copied, tokenizer)
        self.sample_faults: Iterator[str | None] = repeat(None)
        self.sampled: list[dict[str, Any]] = []
        """What was asked for."""
        self.keeps: Sequence[str] = ()
        """Ends of the names of weights that do not change."""
        self.paused = self.asleep = False
        self.pushes = 0
        self.group: Any = None

    def sample_wrong(self, *faults: str | None) -> None:
        """Let the next requests for texts fail so."""
        with self.lock:
            self.sample_faults = chain(faults, repeat(None))

    def take(self, weights: dict[str, torch.Tensor]) -> None:
        """Put weights into the model, as vLLM's loader does: by name, and each that there is."""
        with torch.no_grad():
            for name, parameter in self.module.state_dict().items():
                if not name.endswith(tuple(self.keeps) or ("\0",)):
                    parameter.copy_(weights[name])

    def texts(self, asked: dict[str, Any]) -> list[dict[str, Any]]:
        """The choices of an answer."""
        number, limit = asked["n"], asked["max_tokens"]
        stops = StopStrings(self.tokenizer, asked["stop"], skip_special_tokens=False) if asked["stop"] else None
        with self.lock:
            self.lm.temperature = asked["temperature"]
            rows = [uniforms(asked["seed"], "", index, limit) for index in range(number)]
            found = decode(
                self.lm,
                [asked["prompt"]],
                uniforms_BT=np.stack(rows),
                group=number,
                max_new_tokens=limit,
                should_stop=None if stops is None else stops.should_stop,
                end_ids=frozenset(asked["stop_token_ids"]),
            )
        return [
            {
                "index": index,
                "text": "",
                "token_ids": completion.ids,
                "prompt_token_ids": asked["prompt"],
                "logprobs": {"token_logprobs": completion.logp, "tokens": [], "top_logprobs": []},
                "finish_reason": "length" if len(completion.ids) == limit and not stopped else "stop",
            }
            for index, completion in enumerate(found)
            for stopped in [completion.ids[-1] in asked["stop_token_ids"]]
        ]


class SamplerHandler(Handler):
    server: SamplerServer

    def do_GET(self) -> None:
        if self.path == "/get_world_size":
            return self.reply(200, {"world_size": 1})
        if self.path == "/is_sleeping":
            return self.reply(200, {"is_sleeping": self.server.asleep})
        return super().do_GET()

    def do_POST(self) -> None:
        path = self.path.partition("?")[0]
        if path in ("/v1/completions", "/detokenize", "/tokenize"):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if "prompt_logprobs" in asked or path != "/v1/completions":
                return self.answer(asked)
            return self.sample(asked)
        size = int(self.headers.get("Content-Length", 0))
        body = json.loads(self.rfile.read(size)) if size else {}
        try:
            self.control(path, body)
        except Exception as error:
            return self.reply(500, {"error": {"message": f"{type(error).__name__}: {error}"}})
        return self.reply(200, b"" if path == "/reset_prefix_cache" else {"status": "ok"})

    def control(self, path: str, body: dict[str, Any]) -> None:
        server = self.server
        if path in ("/pause", "/resume"):
            server.paused = path == "/pause"
        elif path == "/collective_rpc":
            assert body["method"] == "reload_weights" and server.paused
            server.take(load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors"))
            server.pushes += 1
        elif path == "/init_weight_transfer_engine":
            info = body["init_info"]
            size, patience = info["world_size"], timedelta(seconds=info["timeout"])
            store = dist.TCPStore(info["master_address"], info["master_port"], size, is_master=False, timeout=patience)
            server.group = dist.ProcessGroupGloo(store, info["rank_offset"], size, patience)
        elif path == "/update_weights":
            assert server.paused
            info = body["update_info"]
            received = {}
            for name, dtype, shape in zip(info["names"], info["dtype_names"], info["shapes"], strict=True):
                received[name] = torch.empty(shape, dtype=getattr(torch, dtype))
                server.group.broadcast(received[name], 0).wait()
            server.take(received)
            server.pushes += 1
        else:
            assert path in ("/start_weight_update", "/finish_weight_update", "/reset_prefix_cache"), path

    def sample(self, asked: dict[str, Any]) -> None:
        server = self.server
        with server.lock:
            server.sampled.append(asked)
            fault = next(server.sample_faults)
        if fault == "refused":
            self.close_connection = True
        elif fault in ("status", "busy") or (asked["n"] > 1 and server.fails(asked["prompt"])):
            self.reply(429 if fault == "busy" else 500, {"error": {"message": "it is broken"}})
        elif fault == "garbage":
            self.reply(200, b"\xff\xfe{")
        else:
            answer = {"id": "cmpl-0", "model": server.name, "choices": server.texts(asked)}
            self.reply(200, wrong_text(fault, answer, asked) if fault else answer)


def wrong_text(fault: str, answer: dict[str, Any], asked: dict[str, Any]) -> Any:
    """The answer with a fault in its last text."""
    choice = answer["choices"][-1]
    ids, logp = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    end = asked["stop_token_ids"][0]
    if fault == "other_model":
        answer["model"] = "another"
    elif fault == "few":
        answer["choices"].pop()
    elif fault == "no_ids":
        choice["token_ids"] = None
    elif fault == "empty":
        choice["token_ids"], choice["logprobs"]["token_logprobs"] = [], []
    elif fault == "long":
        size = asked["max_tokens"] + 1
        choice["token_ids"], choice["logprobs"]["token_logprobs"] = [1] * size, [-1.0] * size
    elif fault in ("bad_token", "text_token"):
        ids[0] = 10**6 if fault == "bad_token" else "1"
    elif fault == "short_logp":
        logp.pop()
    elif fault in ("nan", "above_one"):
        logp[0] = float("nan") if fault == "nan" else 0.5
    elif fault == "other_prompt":
        choice["prompt_token_ids"] = [1, *asked["prompt"]]
    elif fault == "after_end":
        choice["token_ids"], choice["logprobs"]["token_logprobs"] = [end, 1], [-1.0, -1.0]
    elif fault == "no_end":
        choice["token_ids"], choice["logprobs"]["token_logprobs"], choice["finish_reason"] = [1], [-1.0], "stop"
    elif fault == "aborted":
        choice["finish_reason"] = "abort"
    elif fault == "null":
        return None
    return answer


@contextmanager
def sampling(module: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> Iterator[SamplerServer]:
    """A running server, and the end of it with all its threads."""
    server = SamplerServer(module, tokenizer, **settings)
    thread = Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()

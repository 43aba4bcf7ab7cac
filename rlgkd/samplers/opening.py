"""Opens a sampler on vLLM servers, and checks that they can be one for this student before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence

from rlgkd.errors import ModelError, SettingError
from rlgkd.lm.model import LanguageModel
from rlgkd.samplers.served import ServedSampler
from rlgkd.samplers.transfer import By, open_transfer
from rlgkd.samplers.weights import ServedWeights
from rlgkd.vllm_server import VllmServer

BYTES_OF_TOKEN = 256
"""Bytes of JSON, at most, for one sampled token (some 60 are usual)."""


def open_sampler(
    addresses: Sequence[str],
    student: LanguageModel,
    *,
    longest: int,
    group: int,
    timeout: float,
    retries: int,
    concurrency: int,
    max_failed: float,
) -> ServedSampler:
    """Open the servers that sample for a student.

    Args:
        addresses: Each such as `http://localhost:8000`; see `VllmServer.address`.
        student: The model that is trained.
        longest: The most tokens that a text has, prompt included.
        group: The most samples that are asked for together.
        timeout: Seconds for an answer, in each try.
        retries: Further tries, after 1 s, 2 s, 4 s, and so on.
        concurrency: Requests at once, to each server.
        max_failed: Share of texts that may fail.

    Raises: ModelError if there is no such server, or its model's context is too short or its vocabulary another one;
        SettingError for an address that cannot be one, or that is given twice.
    """
    servers = [
        VllmServer(
            setting="sampler",
            address=address,
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            most_bytes=longest * (group + 1) * BYTES_OF_TOKEN + 2**20,
        )
        for address in addresses
    ]
    for number, server in enumerate(servers):
        if server.name in (other.name for other in servers[:number]):
            raise SettingError("sampler", server.name, "give each server once")
        server.choose_model(longest)
        _refuse_asleep(server)
        server.check_vocabulary(student.tokenizer)
    return ServedSampler(
        servers=servers, temperature=student.temperature, vocabulary=student.vocabulary, max_failed=max_failed
    )


def _refuse_asleep(server: VllmServer) -> None:
    """Refuse a server that sleeps while others use its GPU.

    Raises: SettingError.
    """
    try:
        answer = server.ask("/is_sleeping", None, retries=0)
    except ModelError:  # one that cannot sleep does not know the path
        return
    if isinstance(answer, dict) and answer.get("is_sleeping"):
        remedy = "it sleeps, and training does not share its GPU with a server; wake it, on a GPU of its own"
        raise SettingError("sampler", server.name, remedy)


def open_weights(
    student: LanguageModel, sampler: ServedSampler, *, by: By, folder: str | None, longest: int, timeout: float
) -> ServedWeights:
    """What keeps the servers' weights those of the student; arguments as of `open_transfer` and `open_sampler`."""
    transfer = open_transfer(by, sampler.servers, folder=folder, timeout=timeout)
    return ServedWeights(student, sampler.servers, transfer, longest=longest)

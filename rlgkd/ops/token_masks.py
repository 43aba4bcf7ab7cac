"""Token masks: which tokens may come next, as a function of the tokens so far.

A `TokenMask` maps rows [B, T] of token ids (prompt and completion, padded on the right with -1) to bool [B, V]. It is
evaluated again wherever a distribution is needed, so only tokens are stored, never masks, and a distribution has the
same support in training as in sampling. Any such function is a mask. Not here: masks by a model (rlgkd.lm.top_k_mask),
and masks by the policy itself, which would change after each update.

Every mask here declares how it treats the end token: `end` is its id, which stays allowed, or None, and then no
completion can end before the length limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from rlgkd.errors import SettingError

TokenMask = Callable[[Tensor], Tensor]
"""int64 [B, T], padded on the right with -1 -> bool [B, V], on the same device."""


def allowed_tokens(mask: TokenMask, tokens_BT: Tensor, vocabulary: int) -> Tensor:
    """Return the rows' mask after checking it: bool [B, V], with at least one token allowed in each row.

    Raises:
        SettingError: another shape or dtype, or a row in which nothing is allowed.

    Examples:
        >>> allowed_tokens(allowed([2], vocabulary=4, end=0), torch.tensor([[3, 1, -1]]), vocabulary=4).tolist()
        [[True, False, True, False]]
    """
    allowed_BV = mask(tokens_BT)
    shape = (len(tokens_BT), vocabulary)
    if tuple(allowed_BV.shape) != shape or allowed_BV.dtype != torch.bool:
        found = f"{allowed_BV.dtype} of shape {tuple(allowed_BV.shape)}"
        raise SettingError("mask", found, f"let it return bools of shape {shape}")
    if not bool(allowed_BV.any(-1).all()):
        row = int((~allowed_BV.any(-1)).int().argmax())
        tokens = [token for token in tokens_BT[row].tolist() if token >= 0]
        raise SettingError("mask", tokens, "it allows nothing after these tokens; let it allow the end token at least")
    return allowed_BV


def masked(logits_BV: Tensor, allowed_BV: Tensor) -> Tensor:
    """Return the logits [B, V] with -inf where a token is not allowed, whose probability the others then share."""
    return logits_BV.masked_fill(~allowed_BV, float("-inf"))


def allowed(ids: Collection[int], *, vocabulary: int, end: int | None) -> TokenMask:
    """Return the mask that always allows these tokens and no others.

    Args:
        ids: Token ids from 0 to vocabulary - 1.
        vocabulary: V.
        end: The end token, allowed too; None if no completion may end before the length limit.

    Raises:
        SettingError: no ids, or ids outside the vocabulary.

    Examples:
        >>> allowed([1, 2], vocabulary=4, end=None)(torch.tensor([[3]])).tolist()
        [[False, True, True, False]]
    """
    allowed_V = _mask_of_ids("ids", ids, vocabulary, end)
    if not ids:
        raise SettingError("ids", list(ids), "give at least one token")
    return lambda tokens_BT: allowed_V.to(tokens_BT.device).expand(len(tokens_BT), vocabulary)


def transitions(
    table: Mapping[str, Mapping[int, str]],
    *,
    start: str,
    accepting: Collection[str],
    prompt_end: int,
    vocabulary: int,
    end: int | None,
) -> TokenMask:
    """Return the mask of a finite automaton over token ids, a grammar of the completion.

    The automaton is in `start` after the last `prompt_end` token of a row, and each further token is a transition. In
    each state the tokens of its row in the table are allowed, and the end token if the state is accepting.

    Args:
        table: For each state the tokens it allows and the states they lead to.
        start: The state at the beginning of a completion.
        accepting: States in which a completion may end.
        prompt_end: The token that ends every prompt (a colon, the last token of a chat template), which the grammar
            cannot use.
        vocabulary: V.
        end: The end token; None only if no state is accepting.

    Raises:
        SettingError: states that the table does not have, tokens outside the vocabulary, a state that allows nothing,
            `prompt_end` or `end` in the table; later, a row without `prompt_end`, or with a token that was not allowed.

    Examples:
        >>> digits = {"number": {1: "number", 2: "done"}, "done": {}}
        >>> mask = transitions(digits, start="number", accepting=["done"], prompt_end=3, vocabulary=4, end=0)
        >>> mask(torch.tensor([[2, 3, -1], [3, 1, 2]])).tolist()
        [[False, True, True, False], [True, False, False, False]]
    """
    for state in (start, *accepting, *(to for row in table.values() for to in row.values())):
        if state not in table:
            raise SettingError("transitions", state, f"give a row for it; there are {', '.join(table)}")
    if bool(accepting) != (end is not None):
        raise SettingError("end", end, "give the end token's id if there are accepting states, else None")
    allowed_by_state = {}
    for state, row in table.items():
        if prompt_end in row or end in row:
            raise SettingError("transitions", state, f"leave {prompt_end} and {end} to `prompt_end` and `accepting`")
        allowed_by_state[state] = _mask_of_ids("transitions", row, vocabulary, end if state in accepting else None)
        if not allowed_by_state[state].any():
            raise SettingError("transitions", state, "it allows nothing; make it accepting, or give it tokens")

    def state_after(tokens: list[int]) -> str:
        prompt_ends = [column for column, token in enumerate(tokens) if token == prompt_end]
        if not prompt_ends:
            raise SettingError(
                "prompt_end", prompt_end, f"no such token in the row {tokens}; give one that ends every prompt"
            )
        state = start
        for token in tokens[prompt_ends[-1] + 1 :]:
            if token not in table[state]:
                raise SettingError("mask", token, f"it is not allowed in the state {state}; sample with the same mask")
            state = table[state][token]
        return state

    def mask(tokens_BT: Tensor) -> Tensor:
        rows = [[token for token in row if token >= 0] for row in tokens_BT.tolist()]
        return torch.stack([allowed_by_state[state_after(row)] for row in rows]).to(tokens_BT.device)

    return mask


def _mask_of_ids(field: str, ids: Collection[int], vocabulary: int, end: int | None) -> Tensor:
    """Return bool [V], True at the ids and at the end token."""
    tokens = list(ids) if end is None else [*ids, end]
    for token in tokens:
        if not 0 <= token < vocabulary:
            raise SettingError(field, token, f"give tokens in [0, {vocabulary - 1}]")
    allowed_V = torch.zeros(vocabulary, dtype=torch.bool, device="cpu")
    allowed_V[torch.tensor(tokens, dtype=torch.long, device="cpu")] = True
    return allowed_V

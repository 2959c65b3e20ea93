"""Scored samples as training groups: one prompt, several responses, one score a dimension for each.

In: the JSONL of sample.py, a tokenizer, names of scorers. Out: groups of token ids and scores.
A group is kept together so that one forward of a response serves every pair it is in. Beginnings of
responses are scored too (CUTS): the log-probability of a beginning is a partial sum of the whole's, so
pairs of beginnings cost nothing and say where in the text a preference was met.
Knows nothing of models or losses.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm.evaluation.scorers import WHOLE, score
from pad_vllm.training.sample import read_jsonl

CUTS = (24, 48, 72, 96)
"""Tokens after which a beginning is scored; the whole response comes last."""


@dataclass(frozen=True)
class Group:
    """prompt_ids and response_ids as token lists; scores [n, C + 1, D] in the scorers' own units."""

    prompt: str
    prompt_ids: list[int]
    response_ids: list[list[int]]
    scores: Tensor


def load_groups(
    path: Path, tokenizer: Any, dimensions: tuple[str, ...], *, max_tokens: int = 512
) -> list[Group]:
    """Groups of at least two different responses; longer prompts than fit are left out."""
    groups = []
    for record in read_jsonl(path):
        chat = [{"role": "user", "content": record["prompt"]}]
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        distinct = {tuple(r["token_ids"]): r["text"] for r in record["responses"] if r["token_ids"]}
        longest = max(map(len, distinct), default=0)
        if len(distinct) < 2 or len(prompt_ids) + longest > max_tokens:
            continue
        scores = torch.stack(
            [_scores(list(ids), text, tokenizer, dimensions) for ids, text in distinct.items()]
        )
        groups.append(Group(record["prompt"], prompt_ids, [list(ids) for ids in distinct], scores))
    return groups


def _scores(ids: list[int], text: str, tokenizer: Any, dimensions: tuple[str, ...]) -> Tensor:
    """Scores [C + 1, D] of a response's beginnings and of the whole."""
    whole = torch.tensor(score(text, dimensions))
    final = torch.tensor([name in WHOLE for name in dimensions])
    rows = []
    for cut in CUTS:
        beginning = text
        if cut < len(ids):
            beginning = tokenizer.decode(ids[:cut], skip_special_tokens=True)
        rows.append(torch.where(final, whole, torch.tensor(score(beginning, dimensions))))
    return torch.stack([*rows, whole])


def standardise(groups: list[Group]) -> list[Group]:
    """Scores divided by their usual spread within a prompt, so that one unit means as much everywhere."""
    centred = torch.cat([g.scores - g.scores.mean(0) for g in groups])
    scale = centred.pow(2).mean(0).sqrt().clamp_min(1e-6)  # [C + 1, D]: beginnings spread wider
    return [Group(g.prompt, g.prompt_ids, g.response_ids, g.scores / scale) for g in groups]


def split(groups: list[Group], held_out: float) -> tuple[list[Group], list[Group]]:
    """Training and held-out groups; a prompt's hash decides, so it stays on its side for ever."""
    train: list[Group] = []
    test: list[Group] = []
    for group in groups:
        digest = int.from_bytes(hashlib.sha256(group.prompt.encode()).digest()[:4], "big")
        (test if digest / 2**32 < held_out else train).append(group)
    return train, test

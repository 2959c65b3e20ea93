"""The PyTorch twin beside vLLM: would it, decoding greedily, have generated the same tokens?

It reads prompt and vLLM's tokens in one go (teacher forcing). As long as every token is the best
guided score of the step before it, greedy decoding by the twin would have generated the same.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from mixed_requests import share_changed
from reference_guidance import guide_row
from rule_at_engine_states import ends_of
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from pad_vllm import guidance
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.params import Guidance, parse_guidance
from pad_vllm.persrm import PersRM
from pad_vllm.serving.start.served_adapters import adapter_limits

TIE = 1e-4
BATCH = 10  # sequences read at once


@dataclass
class Comparison:
    """What was compared, and where it differed."""

    sequences: int = 0
    tokens: int = 0  # compared, those after a tie are not
    ties: int = 0  # sequences whose comparison ended where the twin's best two are within TIE
    rewards: int = 0
    reward_error: float = 0.0  # the largest |vLLM - twin|
    logit_error: float = 0.0  # the same of the candidates' base logits
    differences: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.sequences} sequences, {self.tokens} tokens, {self.ties} ended by a tie, "
            f"{len(self.differences)} differ; {self.rewards} rewards, largest error "
            f"{self.reward_error:.2e}; logits {self.logit_error:.2e}"
        )


class Twin:
    """A PersRM that judges vLLM's results."""

    def __init__(self, model: Path, adapter: Path) -> None:
        from transformers import AutoModelForCausalLM

        backbone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        loaded = load_adapter(adapter)
        config = loaded.config
        self.persrm = PersRM.from_adapter(backbone, loaded)
        self._limits = adapter_limits(config, 1e3, config.top_k + 1000)
        self._ends = ends_of(backbone)
        self._seen: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def compare(self, requests: list[dict[str, Any]], result: dict[str, Any]) -> Comparison:
        """Every request of a job against the twin; guided, unguided and mixed."""
        found, threads = Comparison(), torch.get_num_threads()
        # Thousands of small steps: on a busy machine threads would wait for each other at each.
        torch.set_num_threads(1)
        self._read([(o["prompt_token_ids"], o["token_ids"]) for o in result["outputs"]])
        for request, output, steps in zip(
            requests, result["outputs"], result["steps"], strict=True
        ):
            h_B, h_T = self._seen[_key(output["prompt_token_ids"], output["token_ids"])]
            asked = request["sampling"].get("extra_args")
            z, reward, scores = self._scores(h_B, h_T, asked, output["token_ids"])
            agreed = agreement(found, scores, output["token_ids"], str(asked))
            guided = parse_guidance(asked, self._limits)
            measure(found, z, reward, steps[:agreed], guided.top_k if guided else 0)
        torch.set_num_threads(threads)
        return found

    def _scores(
        self, h_B: Tensor, h_T: Tensor, asked: dict[str, Any] | None, said: list[int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Base logits, every token's reward, and the scores that the rule's plain twin makes."""
        z = self.persrm.base_logits(h_B)
        guided = parse_guidance(asked, self._limits)
        if guided is None:
            return z, torch.zeros_like(z), z
        w = torch.tensor(guided.weights)
        d_w = guidance.reward_direction(h_B, h_T, w, *self.persrm.heads)
        reward = d_w @ self.persrm.backbone.lm_head.weight.float().T
        return z, reward, guided_scores(z, reward, guided, said, self._ends)

    def _read(self, sequences: list[tuple[list[int], list[int]]]) -> None:
        """Keeps h_B and h_T [T, H] at the positions that decided each sequence's T tokens."""
        unread = {_key(*one): one for one in sequences if _key(*one) not in self._seen}
        keys = sorted(unread, key=len)
        for start in range(0, len(keys), BATCH):
            batch = [unread[key] for key in keys[start : start + BATCH]]
            whole = [torch.tensor([*prompt, *said[:-1]]) for prompt, said in batch]
            hidden = self.persrm.hidden_twice(pad_sequence(whole, batch_first=True))
            for i, (prompt, said) in enumerate(batch):
                first = len(prompt) - 1
                h_B, h_T = (h[i, first : first + len(said)].float().clone() for h in hidden)
                self._seen[_key(prompt, said)] = (h_B, h_T)


def _key(prompt: list[int], said: list[int]) -> tuple[int, ...]:
    return (*prompt, -1, *said)


def guided_scores(
    z: Tensor, reward: Tensor, guided: Guidance, said: list[int], ends: list[int]
) -> Tensor:
    """[T, V] scores of the rule's plain twin, from base logits and rewards of every token [T, V]."""
    rows = [
        guide_row(
            *row,
            guided.beta,
            guided.top_k,
            said[:step],
            guided.no_repeat,
            guided.min_p,
            ends,
        )
        for step, row in enumerate(zip(z, reward, strict=True))
    ]
    return torch.stack(rows)


def agreement(found: Comparison, scores: Tensor, said: list[int], what: str) -> int:
    """Counts the sequence; gives the number of steps whose inputs were the twin's own."""
    found.sequences += 1
    best = scores.topk(2)
    for step, token in enumerate(said):
        if best.indices[step, 0] == token:
            found.tokens += 1
            continue
        gap = float(best.values[step, 0] - best.values[step, 1])
        if gap <= TIE and best.indices[step, 1] == token:
            found.ties += 1
        else:
            found.differences.append(
                f"{what} step {step}: vLLM {token} ({float(scores[step, token]):.5f}), twin "
                f"{int(best.indices[step, 0])} ({float(best.values[step, 0]):.5f}), gap {gap:.5f}"
            )
        return step + 1
    return len(said)


def measure(
    found: Comparison, z: Tensor, reward: Tensor, steps: list[dict[str, Any]], top_k: int
) -> None:
    """Of the row's own candidates: vLLM asks for as many as the row that wants most."""
    for step, noted in enumerate(steps):
        ids = torch.tensor(noted["ids"][:top_k])
        errors = (torch.tensor(noted["reward"][:top_k]) - reward[step, ids]).abs()
        logits = (torch.tensor(noted["z"][:top_k]) - z[step, ids]).abs()
        found.rewards += len(ids)
        found.reward_error = max(found.reward_error, float(errors.max()))
        found.logit_error = max(found.logit_error, float(logits.max()))


def require_said(
    name: str, base: Path, adapter: Path, requests: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    """A mixed batch on a random model says what its twin says, and something else than unguided."""
    found = Twin(base, adapter).compare(requests, result)
    print(f"\n{name}: start {result['start_s']:.1f} s, {result['run_s']:.1f} s: {found}")
    assert found.differences == []
    assert found.ties <= 1
    assert found.rewards > 0
    assert found.reward_error < 1e-3
    assert share_changed(result) > 0.5

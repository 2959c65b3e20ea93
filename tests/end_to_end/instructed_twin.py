"""The PyTorch twin of answers under instructions, beside vLLM: would it have generated the same tokens?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pytorch_twin import Comparison, agreement, guided_scores, measure
from rule_at_engine_states import ends_of

from pad_vllm import guidance
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.instruction import LearnedInstruction
from pad_vllm.instruction_prefix import InstructedBackbone, InstructionPrefix
from pad_vllm.params import parse_guidance
from pad_vllm.request_limits import InstructionDefaults, RequestLimits
from pad_vllm.text.instruction_tokens import instruction_tokens


class InstructedTwin:
    """A backbone that reads instructions from a fork layer up, and an adapter's heads on its own states."""

    def __init__(
        self, model: Path, adapter: Path | None, *, fork_layer: int, block_size: int
    ) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        backbone = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._backbone, self._block_size = InstructedBackbone(backbone, fork_layer), block_size
        self._lm_head, self._ends = backbone.lm_head.weight, ends_of(backbone)
        self._heads, self._learned, dimensions = None, {}, ()
        if adapter is not None:
            loaded = load_adapter(adapter)
            self._heads, dimensions = loaded.heads, loaded.config.dimensions
            self._learned = loaded.prefixes
        defaults = InstructionDefaults()
        self._limits = RequestLimits(
            dimensions=dimensions,
            beta=defaults.beta if adapter is None else loaded.config.beta,
            top_k=defaults.top_k if adapter is None else loaded.config.top_k,
            max_beta=1e3,
            max_top_k=1000,
            instructions=defaults,
            prefixes={n: LearnedInstruction(p.digest, 32) for n, p in self._learned.items()},
        )

    @torch.no_grad()
    def compare(self, requests: list[dict[str, Any]], result: dict[str, Any]) -> Comparison:
        """Every request of a job; steps are measured where the job recorded them."""
        found = Comparison()
        for request, output, steps in zip(
            requests, result["outputs"], result.get("steps", [[]] * len(requests)), strict=True
        ):
            asked, said = request["sampling"].get("extra_args"), output["token_ids"]
            guided = parse_guidance(asked, self._limits)
            z, reward = self._rewards(output["prompt_token_ids"], said, guided)
            scores = z if guided is None else guided_scores(z, reward, guided, said, self._ends)
            agreed = agreement(found, scores, said, str(asked))
            measure(found, z, reward, steps[:agreed], guided.top_k if guided else 0)
        return found

    def _rewards(self, prompt: list[int], said: list[int], guided: Any) -> tuple[Any, Any]:
        """[T, V] base logits and rewards of every token."""
        forked = self._backbone.states_below_fork(torch.tensor([[*prompt, *said[:-1]]]))
        h_B = self._backbone.base_states(forked)[0, len(prompt) - 1 :]
        z, direction = h_B @ self._lm_head.T, torch.zeros_like(h_B)
        if guided is not None and guided.preference:
            prefix = self._prefix(guided.preference)
            h_T = self._backbone.instructed_states(forked, prefix)[0, len(prompt) - 1 :]
            direction = h_T - h_B
        if guided is not None and self._heads is not None:
            w = torch.tensor(guided.weights)
            direction = direction + guidance.reward_direction(h_B, h_B, w, *self._heads)
        return z, direction @ self._lm_head.T

    def _prefix(self, preference: str) -> InstructionPrefix:
        if (learned := self._learned.get(preference)) is not None:
            return InstructionPrefix(tuple(learned.keys), tuple(learned.values))
        tokens = instruction_tokens(self._tokenizer, preference)
        return self._backbone.read_instruction(tokens, self._block_size)


def require_twins_tokens(
    twin: InstructedTwin, requests: list[dict[str, Any]], result: dict[str, Any]
) -> None:
    """Fails unless every answer is the twin's, but for one tie."""
    found = twin.compare(requests, result)
    print(f"\ninstructions: {found}")
    assert found.differences == []
    assert found.ties <= 1
    assert all(
        output["pad"]["unguided_tokens"] == 0 for output in result["outputs"] if output["pad"]
    )

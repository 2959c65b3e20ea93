"""An answer token by token: what each earned, and what the base would have said in its place.

In: an adapter's folder, its base, a prompt, weights; an answer, or else one is drawn. Out: what each of
its tokens Earned. `tokens` alone knows no engine: its answer may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.config import PADConfig
from pad_vllm.guidance_outcome import TokenExplanation, token_explanations
from pad_vllm.params import BETA, WEIGHTS, Guidance, parse_guidance
from pad_vllm.persrm import PersRM
from pad_vllm.serving.start.served_adapters import adapter_limits
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings, draw_answers
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.training.data.conversation import Conversation


@dataclass(frozen=True)
class ExplanationRequest:
    """What is explained."""

    adapter: str  # folder
    base: str
    prompt: str
    weights: str  # as pad_weights
    beta: float | None = None  # None: the adapter's
    answer: str | None = None  # None: the guided base's own, greedy
    max_tokens: int = 80  # tokens of that
    dtype: str = "auto"  # that it is drawn in


def explain_answer(asked: ExplanationRequest) -> list[TokenExplanation]:
    """Raises ValueError for weights that the adapter does not have, and for what cannot be loaded."""
    from transformers import AutoModelForCausalLM

    adapter, folder = load_adapter(asked.adapter), Path(resolve_base(asked.base))
    require_same_backbone(adapter.config.backbone, Backbone.from_checkpoint(folder))
    guided = _guidance(asked, adapter.config)
    tokenizer = load_chat_tokenizer(folder, asked.base, adapter.config.chat_template)
    prompt = Conversation.model_validate(asked.prompt)
    if asked.answer is None:
        said = _drawn(asked, guided, adapter.config, prompt)
    else:
        said = tokenizer(asked.answer, add_special_tokens=False)["input_ids"]
    model = PersRM.from_adapter(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), adapter
    )
    w = torch.tensor(guided.weights)
    return explain_tokens(
        model, tokenizer, chat_token_ids(tokenizer, prompt.messages()), said, w, guided.top_k
    )


def _guidance(asked: ExplanationRequest, config: AdapterConfig) -> Guidance:
    limits = adapter_limits(config, PADConfig.max_beta, config.top_k)
    beta = {} if asked.beta is None else {BETA: asked.beta}
    guided = parse_guidance({WEIGHTS: asked.weights, **beta}, limits)
    assert guided is not None
    return guided


def _drawn(
    asked: ExplanationRequest, guided: Guidance, config: AdapterConfig, prompt: Conversation
) -> list[int]:
    weights = dict(zip(config.dimensions, guided.weights, strict=True))
    way = Condition("explained", weights, guided.beta)
    decoding = DecodingSettings(
        tokens=asked.max_tokens, dtype=asked.dtype, chat_template=config.chat_template
    )
    batch = AnswerBatch(asked.base, asked.adapter, [prompt], [way], [decoding])
    return list(draw_answers(batch)[0][0][0].token_ids)


@torch.no_grad()
def explain_tokens(
    model: PersRM,
    tokenizer: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    w: Tensor,
    top_k: int,
) -> list[TokenExplanation]:
    """prompt, answer: token ids; w [D]; top_k: the base's candidates."""
    if not answer:
        return []
    whole = torch.tensor([[*prompt, *answer][:-1]])
    h_B, h_T = (h[0, len(prompt) - 1 :].float() for h in model.hidden(whole))
    z, best = guidance.candidates(model.base_logits(h_B), torch.arange(len(h_B)), top_k)
    # What was said may be no candidate: it stands behind them, where it counts for no mean.
    ids = torch.cat([best, torch.tensor(answer).unsqueeze(-1)], -1)
    behind = torch.nn.functional.pad(z, (0, 1), value=guidance.NEG_INF)
    rewards = model.rewards(h_B, h_T, ids, w.expand(len(h_B), -1))
    paid = guidance.centred_rewards(behind, rewards, torch.full((len(z),), top_k))
    steps = list(zip(range(len(answer)), ids.tolist(), paid.tolist(), strict=True))
    return token_explanations(steps, answer, tokenizer)

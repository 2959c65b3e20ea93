"""Explains an answer token by token: the reward of each token, and the base's own first choice there.

In: an adapter's folder, its base, a prompt, weights; an answer, otherwise one is drawn. Out: a
TokenExplanation per token. `explain_tokens` knows no engine: its answer may come from anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pad_vllm import guidance
from pad_vllm.adapter.adapter_folder import load_adapter
from pad_vllm.adapter.backbone.backbone import Backbone, require_same_backbone
from pad_vllm.adapter.manifest import AdapterConfig
from pad_vllm.argument_names import BETA, WEIGHTS
from pad_vllm.config import PADConfig
from pad_vllm.guidance_outcome import TokenExplanation, token_explanations
from pad_vllm.opened_base import base_folder, open_model
from pad_vllm.params import Guidance, parse_guidance
from pad_vllm.persrm import PersRM
from pad_vllm.serving.start.served_adapters import adapter_limits
from pad_vllm.steering.comparison_conditions import Condition
from pad_vllm.steering.guided_answers import AnswerBatch, DecodingSettings, draw_answers
from pad_vllm.text.chat_template import chat_token_ids, load_chat_tokenizer
from pad_vllm.text.conversation import Conversation


@dataclass(frozen=True)
class ExplanationRequest:
    """The answer to explain, or how to draw it."""

    adapter: str
    """Folder."""

    base: str
    """The adapter's own backbone: a name of `pad-vllm models`, a folder or a hub name."""

    prompt: str
    """The user's turn."""

    weights: str
    """As the request argument pad_weights."""

    beta: float | None = None
    """Strength; None: the adapter's default."""

    answer: str | None = None
    """Text to explain; None: the guided base's greedy answer, which is drawn."""

    max_tokens: int = 80
    """Most tokens of an answer that is drawn."""

    dtype: str = "auto"
    """vLLM's dtype for drawing."""


def explain_answer(request: ExplanationRequest) -> list[TokenExplanation]:
    """One explanation per token of the answer.

    Raises ValueError for weights that the adapter does not have, and where base or adapter cannot be loaded.
    """
    adapter, folder = load_adapter(request.adapter), base_folder(request.base)
    require_same_backbone(adapter.config.backbone, Backbone.from_checkpoint(folder))
    guidance_arguments = _parse_guidance(request, adapter.config)
    tokenizer = load_chat_tokenizer(folder, request.base, adapter.config.chat_template)
    messages = [{"role": "user", "content": request.prompt}]
    if request.answer is None:
        answer = _draw_answer(request, guidance_arguments, adapter.config, messages)
    else:
        answer = tokenizer(request.answer, add_special_tokens=False)["input_ids"]
    backbone = open_model(folder)
    model = PersRM.from_adapter(backbone, adapter)
    return explain_tokens(
        model,
        tokenizer,
        prompt=chat_token_ids(tokenizer, messages),
        answer=answer,
        w=torch.tensor(guidance_arguments.weights),
        top_k=guidance_arguments.top_k,
    )


def _parse_guidance(request: ExplanationRequest, config: AdapterConfig) -> Guidance:
    limits = adapter_limits(config, PADConfig.max_beta, config.top_k)
    beta = {} if request.beta is None else {BETA: request.beta}
    parsed = parse_guidance({WEIGHTS: request.weights, **beta}, limits)
    assert parsed is not None
    return parsed


def _draw_answer(
    request: ExplanationRequest,
    guidance_arguments: Guidance,
    config: AdapterConfig,
    messages: list[dict[str, str]],
) -> list[int]:
    """Token ids of the guided base's greedy answer."""
    weights = dict(zip(config.dimensions, guidance_arguments.weights, strict=True))
    decoding = DecodingSettings(
        tokens=request.max_tokens, dtype=request.dtype, chat_template=config.chat_template
    )
    batch = AnswerBatch(
        base=request.base,
        adapter=request.adapter,
        prompts=[Conversation.model_validate(messages)],
        conditions=[Condition("explained", weights, guidance_arguments.beta)],
        decodings=[decoding],
    )
    (((answer,),),) = draw_answers(batch)
    return list(answer.token_ids)


@torch.no_grad()
def explain_tokens(
    model: PersRM,
    tokenizer: Any,
    prompt: Sequence[int],
    answer: Sequence[int],
    w: Tensor,
    top_k: int,
) -> list[TokenExplanation]:
    """Explains an answer with the PyTorch model, without an engine.

    Args:
        model: PersRM on its backbone, which is the base here.
        tokenizer: The base's.
        prompt: Token ids of the prompt, not empty.
        answer: Token ids of the answer.
        w: [D] weights of the dimensions.
        top_k: Number of candidates per token; rewards are relative to their mean.

    Returns:
        One explanation per token of the answer.
    """
    if not answer:
        return []
    device = model.head_A.device
    input_ids = torch.tensor([[*prompt, *answer][:-1]], device=device)
    h_B, h_T = (h[0, len(prompt) - 1 :] for h in model.hidden(input_ids))
    every_row = torch.arange(len(h_B), device=device)
    z, candidates = guidance.candidates(model.base_logits(h_B), every_row, top_k)
    # The answer's own token may not be a candidate: it is appended with logit -inf, so that the mean over
    # the candidates leaves it out.
    ids = torch.cat([candidates, torch.tensor(answer, device=device).unsqueeze(-1)], -1)
    logits = torch.nn.functional.pad(z, (0, 1), value=guidance.NEG_INF)
    rewards = model.rewards(h_B, h_T, ids, w.to(device).expand(len(h_B), -1))
    wanted = torch.full((len(z),), top_k, device=device)
    centred = guidance.centred_rewards(logits, rewards, wanted)
    steps = list(zip(range(len(answer)), ids.tolist(), centred.tolist(), strict=True))
    return token_explanations(steps, answer, tokenizer)

"""The two Transformers decoding loops that PAD in vLLM is compared with; scripts time and score them.

`paper_loop` decodes the way the paper's code does: one sequence, no KV cache, everything computed
anew at every step, and its rule for a PersRM with another tokenizer. `cached_loop` is what a careful
user of Transformers would write: a batch, and a KV cache for every stream. Both are greedy over
z_B + beta * R_w, so they differ in how they compute and not in the rule (`pad_vllm.guidance`).
In: token ids, models on one device. Out: generated token ids. Knows nothing of vLLM.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pad_vllm.persrm import PersRM


@torch.inference_mode()
def paper_loop(
    base: Any,
    base_tokenizer: Any,
    persrm: PersRM,
    persrm_tokenizer: Any,
    prompt_ids: Sequence[int],
    persrm_prompt_ids: Sequence[int] | None,
    w: Tensor,
    *,
    beta: float,
    top_k: int,
    max_new_tokens: int,
    stop_ids: Collection[int] = (),
    twice: bool = True,
    shared_backbone: bool = False,
) -> list[int]:
    """Decode one prompt as the paper's code does.

    The paper's code takes log-softmax differences of two models as reward; here it is our R_w, so
    that every way of decoding follows one rule. The caller makes the prompts' texts.

    Args:
        base: The Transformers model that generates.
        base_tokenizer: Only read where the PersRM has another one.
        persrm: The reward model.
        persrm_tokenizer: The same object as `base_tokenizer`: the PersRM reads `persrm_prompt_ids`
            and what was generated. Another one: the paper's rule, see `first_tokens`; it encodes the
            base's prompt anew, so `persrm_prompt_ids` has to be None.
        prompt_ids: The base's prompt.
        persrm_prompt_ids: The PersRM's prompt; None for the base's.
        w: [D] weights.
        beta: Strength.
        top_k: Candidates a token.
        max_new_tokens: Length of the answer, at most.
        stop_ids: Tokens that end the answer.
        twice: h_B and h_T by two full forwards, with the base's own three a step. False: the fork.
        shared_backbone: `base` is the PersRM's backbone, and h_B serves as its forward: two a step,
            which is what the paper's code runs.

    Returns:
        The generated tokens of the base; one of `stop_ids` is the last of them.
    """
    same = persrm_tokenizer is base_tokenizer
    if persrm_prompt_ids is not None and not same:
        raise ValueError("another tokenizer encodes the base's prompt anew: persrm_prompt_ids=None")
    persrm_prompt = list(prompt_ids if persrm_prompt_ids is None else persrm_prompt_ids)
    _check_shared(
        base,
        persrm,
        requested=shared_backbone,
        possible=same and persrm_prompt == list(prompt_ids),
    )
    w = w.to(persrm.head_A.device)
    answer: list[int] = []
    while len(answer) < max_new_tokens and (not answer or answer[-1] not in stop_ids):
        base_ids = [*prompt_ids, *answer]
        if same:
            persrm_ids = [*persrm_prompt, *answer]
        else:
            text = base_tokenizer.decode(base_ids, skip_special_tokens=True)
            persrm_ids = persrm_tokenizer.encode(text)
        h_B, h_T = _last_states(persrm, persrm_ids, twice=twice)
        logits = persrm.base_logits(h_B) if shared_backbone else _recomputed(base, persrm, base_ids)
        z, ids = logits.topk(min(top_k, logits.shape[-1]))
        tokens = ids.tolist()
        tokens = tokens if same else first_tokens(base_tokenizer, persrm_tokenizer, tokens)
        score = z + beta * _first_rewards(persrm, h_B, h_T, tokens, w)
        answer.append(int(ids[score.argmax()]))
    return answer


def first_tokens(
    base_tokenizer: Any, persrm_tokenizer: Any, candidates: Sequence[int]
) -> list[int | None]:
    """The paper's rule for another tokenizer: a candidate is the first PersRM token of its own text.

    Args:
        base_tokenizer: Decodes each candidate without the text before it.
        persrm_tokenizer: Encodes that text.
        candidates: Tokens of the base.

    Returns:
        Tokens of the PersRM; None where a candidate's text is empty, as a special token's is.
    """
    texts = [base_tokenizer.decode([token], skip_special_tokens=True) for token in candidates]
    encoded = [persrm_tokenizer.encode(text, add_special_tokens=False) for text in texts]
    return [tokens[0] if tokens else None for tokens in encoded]


@torch.inference_mode()
def cached_loop(
    base: Any,
    persrm: PersRM,
    prompts: Sequence[Sequence[int]],
    w: Tensor,
    *,
    beta: float,
    top_k: int,
    max_new_tokens: int,
    shared_backbone: bool = False,
) -> list[list[int]]:
    """Decode a batch with a KV cache for every stream; both models have one tokenizer.

    A step is three cached forwards: the base, the PersRM with its adapter off and on. Nothing stops a
    row early: a batch runs as long as its longest row; cut at EOS afterwards.

    Args:
        base: The Transformers model that generates.
        persrm: The reward model.
        prompts: N of one length, so that no row needs a padding mask.
        w: [D] weights, or [N, D] for a preference a row.
        beta: Strength.
        top_k: Candidates a token.
        max_new_tokens: Length of every answer.
        shared_backbone: `base` is the PersRM's backbone, and one forward serves for the first two.

    Returns:
        `max_new_tokens` generated tokens of every prompt.
    """
    if len({len(prompt) for prompt in prompts}) != 1:
        raise ValueError("prompts have to be of one length: there is no padding mask")
    _check_shared(base, persrm, requested=shared_backbone)
    device = persrm.head_A.device
    w, new_ids = w.to(device), torch.tensor(prompts, device=device)
    answers = [new_ids[:, :0]]
    base_cache = _new_cache(base)
    off_cache, on_cache = _new_cache(persrm.backbone), _new_cache(persrm.backbone)
    for _ in range(max_new_tokens):
        h_T = _cached_state(persrm, new_ids, on_cache)
        with _adapter_off(persrm):
            h_B = _cached_state(persrm, new_ids, off_cache)
            if shared_backbone:
                logits = persrm.base_logits(h_B)
            else:
                logits = _base_logits(base, new_ids, past_key_values=base_cache, use_cache=True)
        z, ids = logits.topk(min(top_k, logits.shape[-1]))
        best = (z + beta * persrm.rewards(h_B, h_T, ids, w)).argmax(-1, keepdim=True)
        new_ids = ids.gather(-1, best)
        answers.append(new_ids)
    return torch.cat(answers, dim=1).tolist()


def _check_shared(base: Any, persrm: PersRM, *, requested: bool, possible: bool = True) -> None:
    if requested and (base is not persrm.backbone or not possible):
        raise ValueError("shared_backbone: base has to be persrm.backbone and read the same tokens")


def _base_logits(base: Any, ids: Tensor, **cache: Any) -> Tensor:
    """z_B after the last of ids [N, T] -> [N, V] float32; no other position passes the lm_head."""
    return base(input_ids=ids, logits_to_keep=1, **cache).logits[:, -1].float()


def _recomputed(base: Any, persrm: PersRM, sequence: list[int]) -> Tensor:
    """z_B [V] from the whole sequence."""
    ids = torch.tensor([sequence], device=base.device)
    if base is not persrm.backbone:
        return _base_logits(base, ids, use_cache=False)[0]
    with _adapter_off(persrm):
        return _base_logits(base, ids, use_cache=False)[0]


def _last_states(persrm: PersRM, sequence: list[int], *, twice: bool) -> tuple[Tensor, Tensor]:
    """h_B and h_T [H] after the last token, from the whole sequence."""
    ids = torch.tensor([sequence], device=persrm.head_A.device)
    h_B, h_T = persrm.hidden_twice(ids) if twice else persrm.hidden(ids)
    return h_B[0, -1], h_T[0, -1]


def _first_rewards(
    persrm: PersRM, h_B: Tensor, h_T: Tensor, tokens: Sequence[int | None], w: Tensor
) -> Tensor:
    """R_w of PersRM tokens [K] -> [K]; where there is no token, 0."""
    ids = torch.tensor([token or 0 for token in tokens], device=h_B.device)
    missing = torch.tensor([token is None for token in tokens], device=h_B.device)
    return persrm.rewards(h_B, h_T, ids, w).masked_fill(missing, 0.0)


def _new_cache(model: Any) -> Any:
    from transformers import DynamicCache

    return DynamicCache(config=model.config)  # the config makes sliding layers keep a window only


def _cached_state(persrm: PersRM, ids: Tensor, cache: Any) -> Tensor:
    """The final hidden state [N, H] after the last of ids [N, T], which go into `cache`."""
    decoder = persrm.backbone.model
    return decoder(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]


@contextmanager
def _adapter_off(persrm: PersRM) -> Iterator[None]:
    """PEFT's `disable_adapter` without its report on every layer, which takes a part of a step."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = persrm.backbone.model.layers[persrm.fork_layer :]
    tuned = [module for module in layers.modules() if isinstance(module, BaseTunerLayer)]
    for module in tuned:
        module.enable_adapters(enabled=False)
    try:
        yield
    finally:
        for module in tuned:
            module.enable_adapters(enabled=True)

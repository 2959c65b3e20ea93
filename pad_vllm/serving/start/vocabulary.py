"""How many of the logits' columns are tokens.

In: vLLM's model config. Out: a number. Families round lm_head up, to a multiple of 128 or more (Qwen2.5:
151,936 rows for 151,665 tokens). A row behind the last token was never trained: nothing bounds the reward
that a random embedding gets, so such a row is never a candidate.
"""

from __future__ import annotations

import logging

from pad_vllm.serving.start import config_checks
from pad_vllm.vllm_api.vllm_names import VllmConfig

logger = logging.getLogger(__name__)


def num_token_columns(config: VllmConfig) -> int:
    """The leading columns of the base's logits up to its tokenizer's last token.

    All columns where the engine has no tokenizer, or one that Transformers cannot read, which is logged.
    """
    model = config.model_config
    num_columns = int(model.get_vocab_size())
    if model.skip_tokenizer_init:
        return num_columns
    try:
        last_token = max(config_checks.plain_base_tokenizer(config).get_vocab().values())
    except Exception as error:  # noqa: BLE001, a tokenizer of any kind, and no answer depends on it
        logger.warning(
            "PAD: all %d columns of the logits may be candidates, since the tokenizer %r, which would say "
            "which of them are tokens, cannot be read: %s: %s",
            num_columns,
            model.tokenizer,
            type(error).__name__,
            error,
        )
        return num_columns
    return min(num_columns, last_token + 1)

"""Which token ids end an answer of the base.

In: vLLM's model config. Out: ids, from the base's config and its generation config. The min-p guard
leaves them alone, `"on_failure": "stop"` ends answers with the first, and the reward model
reads them as its own end of turn.
"""

from __future__ import annotations

from collections.abc import Iterable

from pad_vllm.vllm_api.vllm_names import VllmConfig


def eos_token_ids(config: VllmConfig) -> list[int]:
    """Token ids that end an answer of the base: `eos_token_id` of its config, then of its generation config.

    May be empty.
    """
    model = config.model_config
    settings: tuple[object, ...] = (
        getattr(model.hf_text_config, "eos_token_id", None),
        model.try_get_generation_config().get("eos_token_id"),
    )
    return list(dict.fromkeys(token for setting in settings for token in _token_ids(setting)))


def _token_ids(setting: object) -> Iterable[int]:
    """The ids in an `eos_token_id`: one, a list of them, or None."""
    ids = setting if isinstance(setting, list | tuple) else [setting]
    return (token for token in ids if isinstance(token, int))


def required_eos_token_id(config: VllmConfig) -> int:
    """The token that ends a row under `"on_failure": "stop"`. Raises ValueError where the base has none."""
    ids = eos_token_ids(config)
    if not ids:
        raise ValueError(
            "on_failure is 'stop', and neither the base's config nor its generation config has an "
            "eos_token_id, so no token ends an answer. Set on_failure to 'unguided', or give the base's "
            "config its eos_token_id."
        )
    return ids[0]

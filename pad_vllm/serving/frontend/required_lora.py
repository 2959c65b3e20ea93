"""Whether a guided request is under the LoRA that the adapter's training had merged into the base.

In: what the adapter says of that LoRA, and the LoRA that a request asks for. Out: nothing, or a ValueError
that names both, and no path of this machine's. A LoRA's files are read once, and again when they have
changed.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pad_vllm.adapter.backbone.weight_fingerprint import local_checkpoint
from pad_vllm.adapter.lora_fingerprint import lora_fingerprint
from pad_vllm.adapter.peft_lora import LORA_CONFIG_FILE, LORA_TENSORS_FILE
from pad_vllm.argument_names import ADAPTER, WEIGHTS
from pad_vllm.merged_lora import MergedLoRA
from pad_vllm.vllm_api.vllm_names import LoRARequest
from pad_vllm.wording import short_repr


def require_trained_lora(trained: MergedLoRA | None, lora: LoRARequest | None, base: str) -> None:
    """Raise ValueError for a guided request whose LoRA is not the one that its adapter was trained with.

    Args:
        trained: of the adapter that guides the request; None: it was trained on the base alone.
        lora: the LoRA that the request asks for, if any.
        base: the name by which clients ask for the base.
    """
    if trained is None and lora is None:
        return
    if trained is None:
        assert lora is not None
        raise ValueError(
            f"{WEIGHTS} together with the LoRA {short_repr(lora.lora_name)}: the reward model was trained on "
            "the hidden states of the base, and a LoRA changes them; accepted: guided requests of the base, "
            f"and of an adapter ({ADAPTER}) that was trained with this LoRA. Ask for the model "
            f"{short_repr(base)}, or leave the pad_ arguments out."
        )
    expected = f"the adapter was trained with the LoRA {short_repr(trained.lora)}"
    way_out = "Ask for the model that is this LoRA, or leave the pad_ arguments out."
    if lora is None:
        raise ValueError(
            f"{WEIGHTS} without a LoRA, of the model {short_repr(base)}: {expected} of it; accepted: guided "
            f"requests under that LoRA. {way_out}"
        )
    found = _known_fingerprint(lora)
    if found != trained.lora_fingerprint:
        raise ValueError(
            f"{WEIGHTS} together with the LoRA {short_repr(lora.lora_name)} ({found}): {expected} "
            f"({trained.lora_fingerprint}); accepted: guided requests under that one. {way_out}"
        )


def _known_fingerprint(lora: LoRARequest) -> str:
    """The fingerprint of a request's LoRA, or why there is none."""
    folder = local_checkpoint(lora.lora_path, file=LORA_CONFIG_FILE)
    if folder is None:
        return "its files are not on this machine"
    try:
        states = [_state(folder / name) for name in (LORA_CONFIG_FILE, LORA_TENSORS_FILE)]
        return _fingerprint(folder, *states)
    except (OSError, ValueError):  # their messages tell paths
        return "its files cannot be compared"


def _state(file: Path) -> tuple[int, int]:
    """What changes with a file's content."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=1024)
def _fingerprint(folder: Path, *_states: tuple[int, int]) -> str:
    return lora_fingerprint(folder)

"""Small models of every served family, and random adapters for any checkpoint, made on the spot."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,  # where heads * 32 is not H, a family that ignores it shows
    "num_hidden_layers": 4,
    "vocab_size": 333,  # no multiple of 64: vLLM pads it
    "max_position_embeddings": 512,
    "initializer_range": 0.12,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
    "tie_word_embeddings": False,
}
WINDOW = 16  # shorter than the prompts of the engine tests, so that it matters
GEMMA3 = {
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 32,
    "sliding_window": WINDOW,
}
SLIDING, FULL = "sliding_attention", "full_attention"
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"num_attention_heads": 2, "num_key_value_heads": 1, "tie_word_embeddings": True},
    "qwen3": {},
    "gemma3": {
        **GEMMA3,
        "num_hidden_layers": 6,
        "layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, FULL],
    },
    "gemma3_sliding": {**GEMMA3, "layer_types": [SLIDING] * 4},
    "gemma3_full": {**GEMMA3, "layer_types": [FULL] * 4},
}
"""Name -> what its config has beyond COMMON; the layers above the middle are those to fork."""

OTHERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_embd": 64,
        "n_head": 2,
        "n_layer": 3,
        "n_positions": 512,
        "initializer_range": 0.12,
        "vocab_size": 333,
        "bos_token_id": 0,
        "eos_token_id": 1,
    },
    "granite": {**COMMON, "logits_scaling": 4.0},
    "mixtral": {**COMMON, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3_moe": {
        **COMMON,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 96,
        "norm_topk_prob": True,
    },
}
"""model_type -> its config: architectures that are not forked, whose layers are named otherwise, are mixtures
of experts, or whose logits are not lm_head times the hidden state.
"""

SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,  # four tokens an image
    "vision_use_head": False,
}
VISION_LANGUAGE: dict[str, dict[str, Any]] = {
    "gemma3": {
        "text_config": {
            **COMMON,
            **GEMMA3,
            "model_type": "gemma3_text",
            "layer_types": [SLIDING, SLIDING, SLIDING, FULL],
        },
        "vision_config": SIGLIP,
        "mm_tokens_per_image": 4,
        "boi_token_index": 326,
        "eoi_token_index": 327,
        "image_token_index": 328,
        "tie_word_embeddings": True,
    },
    "qwen2_5_vl": {
        "text_config": {
            **COMMON,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "rope_parameters": {
                "rope_type": "default",
                "mrope_section": [4, 6, 6],
                "rope_theta": 10000.0,
            },
        },
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_heads": 2,
            "out_hidden_size": 64,
        },
        "image_token_id": 328,
        "video_token_id": 329,
        "vision_start_token_id": 326,
        "vision_end_token_id": 327,
        "tie_word_embeddings": False,
    },
}
"""model_type -> its config: models that read images, whose lm_head vLLM keeps in their language model."""

IMAGE_TOKENS = {
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_token": "<image_soft_token>",
}
"""Attribute of Gemma 3's tokenizer -> token, in the order of their ids, 326 to 328."""

LINE_ENDS = ["\n", "\n\n", "\n\n\n", "\n\n\n\n"]
"""Ids 329 to 332: vLLM looks them up in Gemma 3's vocabulary."""

_CHAT = (
    "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def config(family: str, **more: Any) -> Any:
    """The Transformers config of one of FAMILIES; `more` overrides."""
    from transformers import AutoConfig

    kind = family.split("_", maxsplit=1)[0]
    return AutoConfig.for_model(
        {"gemma3": "gemma3_text"}.get(kind, kind), **{**COMMON, **FAMILIES[family], **more}
    )


def model(family: str, seed: int = 0, **more: Any) -> Any:
    """A float32 causal language model with random weights, norms and biases included."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(family, **more), dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:  # initialised to constants, which would hide a mix-up
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def persrm(
    family: str, fork: int, dimensions: tuple[str, ...], std: float = 0.1, **more: Any
) -> Any:
    """A PersRM on `model(family)` whose trained parameters are random; more: of PersRM's arguments."""
    import torch

    from pad_vllm.persrm import PersRM

    made = PersRM(model(family), fork_layer=fork, dimensions=dimensions, lora_rank=4, **more)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=std)
    return made.eval()


def other(name: str) -> Any:
    """One of OTHERS, random weights, a causal language model that can only carry heads."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(name, **OTHERS[name]), dtype=torch.float32
    )
    return made.eval()


def other_checkpoint(name: str, folder: Path) -> Path:
    """`other` and the byte-level tokenizer, as a folder that Transformers and vLLM open."""
    other(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def checkpoint(family: str, folder: Path, words: Any = None) -> Path:
    """`model` and a tokenizer, byte-level where none is given, as a folder that Transformers and vLLM
    open.
    """
    more = {} if words is None else {"vocab_size": len(words), "eos_token_id": words.eos_token_id}
    model(family, **more).save_pretrained(folder)
    (words or tokenizer()).save_pretrained(folder)
    return folder


def vision_language_model(name: str) -> Any:
    """One of VISION_LANGUAGE, float32, random weights, norms and biases included."""
    import torch
    from transformers import AutoConfig, AutoModelForImageTextToText

    torch.manual_seed(0)
    settings = AutoConfig.for_model(name, **VISION_LANGUAGE[name])
    made = AutoModelForImageTextToText.from_config(settings, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return made


def vision_language_checkpoint(folder: Path) -> Path:
    """A Gemma 3 that reads images, with tokenizer and processor, as a folder that Transformers and vLLM
    open.
    """
    from safetensors.torch import load_file, save_file
    from transformers import Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    vision_language_model("gemma3").save_pretrained(folder)
    # The tower under the names of published checkpoints, which vLLM reads and Transformers does too.
    weights = folder / "model.safetensors"
    named = {
        name.replace("vision_tower.", "vision_tower.vision_model.", 1): tensor
        for name, tensor in load_file(weights).items()
    }
    save_file(named, weights, metadata={"format": "pt"})
    size = {"height": SIGLIP["image_size"], "width": SIGLIP["image_size"]}
    words = tokenizer([*IMAGE_TOKENS.values(), *LINE_ENDS], IMAGE_TOKENS)
    # Pillow's: the other one needs torchvision.
    images = Gemma3ImageProcessorPil(size=size)
    Gemma3Processor(images, words, image_seq_length=4).save_pretrained(folder)
    return folder


def write_lora(checkpoint: Path, folder: Path, seed: int = 0) -> Path:
    """A random LoRA of the base in `checkpoint`, as PEFT writes one."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    made = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.15)
    made.save_pretrained(folder)
    return folder


def tokenizer(last: Sequence[str] = (), named: dict[str, str] | None = None) -> Any:
    """A token for every byte, and so many that no text has as `model` has rows, with a chat template.

    last: the tokens with the highest ids; named: attribute -> one of them.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<bos>", "<eos>", "<pad>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    unused = [f"{first}{second}" for first in "abcdefgh" for second in "abcdefghij"]
    tokens = [*[*special, *alphabet, *unused][: 333 - len(last)], *last]
    vocab = {token: index for index, token in enumerate(tokens)}
    bytewise = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=bytewise,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=_CHAT,
        extra_special_tokens=named or {},
    )


def with_random_prefixes(adapter, config, fork_layer: int, names: Sequence[str], seed: int = 1):
    """A heads-only adapter with learned prefixes of 32 tokens from a fork layer up; config: of its base."""
    import torch

    from pad_vllm.adapter.learned_prefix import LearnedPrefix

    generator = torch.Generator().manual_seed(seed)
    num_layers = config.num_hidden_layers - fork_layer
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = 2, num_layers, config.num_key_value_heads, 32, width
    found = {name: LearnedPrefix(*torch.randn(shape, generator=generator)) for name in names}
    return adapter.with_prefixes(fork_layer, found)


def write_adapter(
    checkpoint: Path,
    folder: Path,
    *,
    fork_layer: int,
    std: float,
    beta: float = 2.0,
    rank: int = 8,
    head_rank: int = 4,
    seed: int = 1,
    dimensions: tuple[str, ...] = ("helpful", "brief", "humor"),
    constants: bool = False,
    gates: bool = False,
    prefixes: tuple[str, ...] = (),
    prefix_fork_layer: int = 1,
) -> Path:
    """A random adapter for the model in `checkpoint`; std 0 is the zero adapter. fork_layer: its number of
    layers for heads only, which fits any architecture. prefixes: names of learned prefixes of 32 tokens.
    """
    from transformers import AutoConfig

    from benchmarks.common.random_adapter import random_adapter
    from pad_vllm.adapter.adapter_folder import save_adapter
    from pad_vllm.adapter.backbone.backbone import Backbone
    from pad_vllm.adapter.shape_checks import module_shapes

    backbone = Backbone.from_checkpoint(checkpoint)
    heads_only = fork_layer == backbone.num_layers
    made = random_adapter(
        backbone,
        fork_layer,
        dimensions,
        rank,
        head_rank,
        shapes={} if heads_only else module_shapes(AutoConfig.from_pretrained(checkpoint)),
        std=std,
        seed=seed,
        constants=constants,
        gates=gates,
    )
    made = dataclasses.replace(made, config=dataclasses.replace(made.config, beta=beta))
    if prefixes:
        config = AutoConfig.from_pretrained(checkpoint)
        made = with_random_prefixes(made, config, prefix_fork_layer, prefixes, seed)
    save_adapter(made, folder, "# Random weights, for tests\n")
    return folder

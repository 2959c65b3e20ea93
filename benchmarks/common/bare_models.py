"""Models of a known shape without weights: a config and a tokenizer, for engines with dummy weights.

In: the name of a shape, a folder. Out: the folder, which Transformers and vLLM open.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pad_vllm.catalog.name_resolution import resolve_base

SHAPES: dict[str, dict[str, Any]] = {
    "llama-8b": {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "max_position_embeddings": 8192,
        "rope_theta": 500000.0,
        "bos_token_id": 0,
        "eos_token_id": 2,
    },
}
"""Name -> fields of a LlamaConfig."""

_WORDS = 32000  # of the tokenizer


def write_bare_model(shape: str, folder: Path) -> str:
    """Write a config of this shape and a tokenizer of whole words -> the folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, PreTrainedTokenizerFast

    vocabulary = {f"w{i}": i for i in range(_WORDS)}
    unknown = next(iter(vocabulary))
    words = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token=unknown).save_pretrained(folder)
    LlamaConfig(**SHAPES[shape], dtype="bfloat16").save_pretrained(folder)
    return str(folder)


def base_of(args: argparse.Namespace, folder: str) -> str:
    """The folder or name of `args.base`; with `args.shape` a bare model of that shape in `folder`, and
    `args.load_format` is then "dummy".
    """
    if not args.shape:
        return resolve_base(args.base)
    args.load_format = "dummy"
    return write_bare_model(args.shape, Path(folder))

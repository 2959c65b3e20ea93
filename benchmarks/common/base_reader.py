"""A CandidateReader of a base in float32, for scripts that compare rewards with an engine's answers."""

from __future__ import annotations

import torch
from transformers import AutoModelForCausalLM

from pad_vllm.adapter.adapter import Adapter
from pad_vllm.catalog.name_resolution import resolve_base
from pad_vllm.choices.candidate_reader import CandidateReader
from pad_vllm.persrm import PersRM
from pad_vllm.text.chat_template import load_chat_tokenizer


def open_reader(base: str, adapter: Adapter) -> CandidateReader:
    """Loads the base; base: any of its names."""
    folder = resolve_base(base)
    backbone = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = load_chat_tokenizer(folder, base, adapter.config.chat_template)
    return CandidateReader(PersRM.from_adapter(backbone, adapter), tokenizer, adapter.config.top_k)

"""Drafters that read a tiny base's hidden states (EAGLE, EAGLE3, MTP, DFlash), made so that the base often
says what they draft, or never.

The layers of such a base add little to the residual stream: what comes next is mostly what the last token's
embedding alone says, argmax of lm_head times norm(e). That a drafter computes, to which it adds a share of
the base's hidden states and of its own attention, so that drafts depend on both.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import tiny
import torch
from torch import Tensor

H = tiny.COMMON["hidden_size"]
MLP = tiny.COMMON["intermediate_size"]
WIDTH = tiny.COMMON["head_dim"]
Q, KV = (tiny.COMMON[f"num_{heads}_heads"] * WIDTH for heads in ("attention", "key_value"))
ADDED = 0.02  # what layers write into the residual stream, as a share of what random ones would
ERNIE = {
    **tiny.COMMON,
    "moe_num_experts": 4,
    "moe_layer_start_index": tiny.COMMON["num_hidden_layers"],  # none: all layers are dense
    "moe_layer_end_index": tiny.COMMON["num_hidden_layers"],
    "num_nextn_predict_layers": 1,
}


def write_base(folder: Path) -> Path:
    """A Llama of four layers that add little."""
    return _save(tiny.model("llama"), folder)


def write_base_with_mtp(folder: Path) -> Path:
    """The same of the family that brings its MTP layer along, Ernie 4.5's."""
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    settings = AutoConfig.for_model("ernie4_5_moe", **ERNIE)
    model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32).eval()
    norm = model.model.norm.weight.detach()
    norm.add_(_random(H, std=0.2))
    _save(model, folder)
    made = {
        **_layer("model.mtp_block.0.", H),
        "model.mtp_block.0.input_layernorm.weight": torch.ones(H),
        "model.mtp_emb_norm.0.weight": norm,
        "model.mtp_hidden_norm.0.weight": torch.ones(H),
        "model.mtp_linear_proj.0.weight": torch.cat((torch.eye(H), _random(H, H, std=0.03)), 1),
    }
    _add_tensors(folder, made)
    return folder


def write_eagle(base: Path, folder: Path, sign: int = 1) -> Path:
    """A drafter with which the base often agrees; sign -1: one that drafts what the base least says."""
    norm = _weights(base)["model.norm.weight"]
    torch.manual_seed(3)
    fc = torch.cat((sign * torch.diag(norm), _random(H, H, std=0.003)), 1)
    return _write_drafter(base, folder, {"fc.weight": fc, **_layer("layers.0.", H)})


def write_eagle3(base: Path, folder: Path) -> Path:
    """Here the last token's embedding goes through attention, which looks at this token alone."""
    weights = _weights(base)
    torch.manual_seed(3)
    made = {
        **_layer("midlayer.", 2 * H),
        **_looks_back("midlayer.self_attn.", 2 * H, distance=0, sharpness=120.0),
        "midlayer.input_layernorm.weight": torch.ones(H),
        "midlayer.hidden_norm.weight": torch.ones(H),
        "fc.weight": _random(H, 3 * H, std=0.15),
        "norm.weight": weights["model.norm.weight"],
        "lm_head.weight": weights["lm_head.weight"],
    }
    return _write_drafter(
        base, folder, made, attention_bias=True, eagle_aux_hidden_state_layer_ids=[1, 2, 3]
    )


def write_dflash(base: Path, folder: Path) -> Path:
    """Here masked tokens are drafted for in one pass: each looks at the token before it, of which the last
    accepted one has an embedding, and the mask none. Hidden states are the values of the text before them.
    """
    weights = _weights(base)
    mask = tiny.COMMON["pad_token_id"]
    assert not weights["model.embed_tokens.weight"][mask].any()
    torch.manual_seed(3)
    made = {
        **_layer("layers.0.", H),
        **_looks_back("layers.0.self_attn.", H, distance=1, sharpness=1.0),
        "layers.0.self_attn.q_norm.weight": torch.full((WIDTH,), 14.0),
        "layers.0.self_attn.k_norm.weight": torch.ones(WIDTH),
        "layers.0.input_layernorm.weight": torch.ones(H),
        "fc.weight": _random(H, 3 * H),
        "hidden_norm.weight": torch.full((H,), 2.0),
        "norm.weight": weights["model.norm.weight"],
    }
    return _write_drafter(
        base,
        folder,
        made,
        model_type="qwen3",
        architectures=["DFlashDraftModel"],
        attention_bias=True,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        dflash_config={"mask_token_id": mask, "target_layer_ids": [0, 1, 2]},
    )


def _looks_back(prefix: str, width: int, *, distance: int, sharpness: float) -> dict[str, Tensor]:
    """Attention that looks at the token `distance` before its own and brings back the first H columns of its
    input: queries and keys are vectors whose product, once they are rotated, is largest there.
    """
    angles = distance * 10000.0 ** (-torch.arange(WIDTH // 2) / (WIDTH // 2))
    query = torch.cat((angles.cos(), -angles.sin()))
    key = torch.cat((torch.ones(WIDTH // 2), torch.zeros(WIDTH // 2)))
    back = torch.zeros(H, Q)
    # Half of the columns is the value of each of two KV heads; the first query of each brings it back.
    back[:WIDTH, :WIDTH] = back[WIDTH:, Q // 2 : Q // 2 + WIDTH] = torch.eye(WIDTH)
    return {
        f"{prefix}q_proj.weight": torch.zeros(Q, width),
        f"{prefix}q_proj.bias": (sharpness * query).repeat(Q // WIDTH),
        f"{prefix}k_proj.weight": torch.zeros(KV, width),
        f"{prefix}k_proj.bias": key.repeat(KV // WIDTH),
        f"{prefix}v_proj.weight": torch.eye(KV, width),
        f"{prefix}v_proj.bias": torch.zeros(KV),
        f"{prefix}o_proj.weight": back,
        f"{prefix}o_proj.bias": torch.zeros(H),
    }


def _random(*shape: int, std: float = tiny.COMMON["initializer_range"]) -> Tensor:
    return torch.randn(*shape) * std


def _layer(prefix: str, width: int) -> dict[str, Tensor]:
    """A decoder layer that adds little, of which attention reads `width` columns; without its input norm."""
    attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
    return {
        f"{attention}q_proj.weight": _random(Q, width),
        f"{attention}k_proj.weight": _random(KV, width),
        f"{attention}v_proj.weight": _random(KV, width),
        f"{attention}o_proj.weight": _random(H, Q, std=0.01),
        f"{prefix}post_attention_layernorm.weight": torch.ones(H),
        f"{mlp}gate_proj.weight": _random(MLP, H),
        f"{mlp}up_proj.weight": _random(MLP, H),
        f"{mlp}down_proj.weight": _random(H, MLP, std=0.01),
    }


def _save(model: Any, folder: Path) -> Path:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(ADDED)
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def _weights(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def _add_tensors(folder: Path, tensors: dict[str, Tensor]) -> None:
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    before = _weights(folder) if file.exists() else {}
    save_file({**before, **tensors}, file, metadata={"format": "pt"})


def _write_drafter(base: Path, folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """A drafter of one layer, with the base's sizes; it reads the base's embedding."""
    folder.mkdir()
    settings = json.loads((base / "config.json").read_text("utf-8"))
    settings |= {"num_hidden_layers": 1, **config}
    (folder / "config.json").write_text(json.dumps(settings), "utf-8")
    _add_tensors(folder, tensors)
    return folder

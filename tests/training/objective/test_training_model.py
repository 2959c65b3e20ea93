"""The model that is trained: what it keeps for the backward pass."""

from __future__ import annotations

import tiny
import torch

from pad_vllm.persrm import PersRM
from pad_vllm.training.objective.training_model import enable_checkpointing


def saved_bytes(model, ids):
    """Bytes that autograd keeps of a forward of the trunk, and the gradient of the first LoRA matrix."""
    kept = []

    def pack(tensor):
        kept.append(tensor.numel() * tensor.element_size())
        return tensor

    forked = model.states_below_fork(ids)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model.trunk_states(forked)
    states.square().mean().backward()
    gradient = next(iter(model.lora_parameters().values())).grad.clone()
    model.zero_grad()
    return sum(kept), gradient


def test_checkpointing_keeps_less_for_the_backward_pass_and_changes_no_gradient():
    torch.manual_seed(0)
    model = PersRM(tiny.model("llama"), fork_layer=1, dimensions=("kind",)).eval()
    for _, B in model.lora_weights().values():
        torch.nn.init.normal_(B, std=0.1)
    ids = torch.randint(3, 60, (4, 48))
    everything, expected = saved_bytes(model, ids)
    enable_checkpointing(model.backbone)
    kept, gradient = saved_bytes(model, ids)
    assert kept < everything / 3
    torch.testing.assert_close(gradient, expected)

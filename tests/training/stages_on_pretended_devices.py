"""Runs every stage on an accelerator that only knows shapes and devices; prints what each did, as JSON.

    python tests/training/stages_on_pretended_devices.py 1        (or 2: layers 2 and 3 on a second one)

A process of its own, started by test_device_placement.py: it registers a device with PyTorch. With two
devices nothing goes backward: PyTorch's engine knows one device of a kind that is registered from Python.
"""

from __future__ import annotations

import json
import sys
import traceback
from contextlib import nullcontext
from functools import partial

import tiny
import torch
from accelerate.utils import send_to_device

from benchmarks.common.pretended_accelerator import NAME, PretendedAccelerator, register
from benchmarks.cost import stages
from pad_vllm.persrm import PersRM

SPREAD = {"layers.2": 1, "layers.3": 1, "norm": 1, "lm_head": 1, "head_": 1}
"""Begin of a module's name -> number of its device, where there are two."""

HOOKED = ("embed_tokens", "rotary_emb", "norm", "lm_head")
"""Modules of a device map, beside the layers."""

DIMENSIONS = ("kind", "brief")


def place_of(name: str) -> int:
    """Number of the device of a tensor or module, where there are two."""
    for part in ("lora.", "backbone.", "base_model.", "model."):
        while name.startswith(part):
            name = name.removeprefix(part)
    return next((number for start, number in SPREAD.items() if name.startswith(start)), 0)


def make_model(accelerator: PretendedAccelerator, devices: int, fork_layer: int) -> PersRM:
    """A tiny bfloat16 model without numbers, with Accelerate's way of moving states where it is spread."""
    with torch.device("meta"):
        backbone = tiny.model("llama").to("meta", torch.bfloat16)
        model = PersRM(
            backbone,
            fork_layer=fork_layer,
            dimensions=DIMENSIONS,
            gates=fork_layer == 4,
            constants=fork_layer == 4,
        )
    number = place_of if devices == 2 else lambda name: 0
    accelerator.place(model, lambda name: f"{NAME}:{number(name)}")
    if devices == 2:
        for name, module in model.backbone.named_modules():
            if name.removeprefix("model.") in HOOKED or (
                name.startswith("model.layers.") and name.count(".") == 2
            ):
                module.register_forward_pre_hook(
                    partial(_send, f"{NAME}:{place_of(name)}"), with_kwargs=True
                )
    return model


def _send(device, module, args, kwargs):
    """What AlignDevicesHook does before a module's forward."""
    skipped = ["past_key_values", "shared_kv_states"]
    return send_to_device(args, device), send_to_device(kwargs, device, skip_keys=skipped)


LENGTHS = stages.Lengths(
    prompt=3, answer=4, instruction=2, prompts=2, micro_groups=2, candidates=5, rank=4
)

STAGES = {
    "pairs": (2, stages.pairs),
    "pairs, heads only": (4, stages.pairs),
    "scores": (4, stages.scores),
    "prompt": (2, stages.prompt),
    "prompt, heads only": (4, stages.prompt),
    "prefixes": (4, stages.prefixes),
    "judging": (2, stages.judging),
}
"""Name -> fork layer (4: heads only) and the stage."""


def main() -> None:
    """See the module's docstring."""
    register()
    if sys.argv[1] == "2":
        torch.Tensor.backward = lambda loss: None
    found = {}
    for name, (fork_layer, run) in STAGES.items():
        accelerator = PretendedAccelerator()
        model = make_model(accelerator, int(sys.argv[1]), fork_layer)
        error = ""
        try:
            with accelerator:
                run(model, LENGTHS, lambda name: nullcontext())
        except Exception:  # noqa: BLE001, all stages are reported
            frames = traceback.extract_tb(sys.exc_info()[2])
            lines = [
                f"{f.filename}:{f.lineno} {f.line}" for f in frames if "/torch/" not in f.filename
            ]
            error = "\n".join([*lines, str(sys.exc_info()[1])[:300]])
        found[name] = {
            "error": error,
            "products on the CPU": sorted(accelerator.products_on_cpu),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()

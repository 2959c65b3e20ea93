"""The model card of an adapter, written from its own pad_config.json and a steering result.

In: AdapterConfig and, where there is one, the JSON of benchmarks/steering.py. Out: Markdown.
"""

from __future__ import annotations

from typing import Any

from pad_vllm.manifest import AdapterConfig


def card(config: AdapterConfig, steering: dict[str, Any] | None) -> str:
    """README.md of the adapter's folder."""
    training = config.training
    accuracy = training["held_out_pair_accuracy"]
    lines = [
        f"# PAD adapter for {config.backbone.name}",
        "",
        f"Preference dimensions: {', '.join(config.dimensions)}. LoRA from layer {config.fork_layer} "
        f"of {config.backbone.num_layers}; heads of rank {config.head_rank}; default beta "
        f"{config.beta:g}, top_k {config.top_k}.",
        "",
        "## Training",
        "",
        f"    {training['command']}",
        "",
        f"Seed {training['recipe']['seed']}. Data: {training['data']['described']} "
        f"{training['data']['responses']} responses; {training['data']['prompts']} prompts to train "
        f"on, {training['data']['held_out_prompts']} held out.",
        "",
        "| held-out pairs | accuracy |",
        "| --- | --- |",
        *(f"| {name} | {value:.1%} |" for name, value in accuracy.items()),
        "",
    ]
    if steering:
        lines += ["## Steering", "", f"    {steering['command']}", "", *steering["table"], ""]
    return "\n".join(lines)

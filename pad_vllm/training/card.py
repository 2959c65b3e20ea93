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
        _summary(config),
        "",
        "## Training",
        "",
        f"    {training['command']}",
        "",
        _data(training),
        "",
        "| held-out pairs | accuracy |",
        "| --- | --- |",
        *(f"| {name} | {value:.1%} |" for name, value in accuracy.items()),
        "",
    ]
    if steering:
        lines += ["## Steering", "", f"    {steering['command']}", ""]
        lines += [*_advice(steering["records"], config.dimensions), "", *steering["table"], ""]
    return "\n".join(lines)


def _summary(config: AdapterConfig) -> str:
    return (
        f"Preference dimensions: {', '.join(config.dimensions)}. LoRA from layer "
        f"{config.fork_layer} of {config.backbone.num_layers}; heads of rank {config.head_rank}; "
        f"default beta {config.beta:g}, top_k {config.top_k}."
    )


def _data(training: dict[str, Any]) -> str:
    data = training["data"]
    return (
        f"Seed {training['recipe']['seed']}. Data: {data['described']} {data['responses']} "
        f"responses; {data['prompts']} prompts to train on, {data['held_out_prompts']} held out."
    )


def _advice(records: list[dict[str, Any]], dimensions: tuple[str, ...]) -> list[str]:
    """For each dimension the fluent row that wins most."""
    lines = []
    for name in dimensions:
        rows = [r for r in records if r["name"] == f"+{name}" and r["fluent"]]
        if rows:
            best = max(rows, key=lambda r: r["win_rate"][name])
            lines.append(
                f"- {name}: beta {best['beta']:g}, beats the unguided answer on "
                f"{best['win_rate'][name]:.0%} of the prompts"
            )
    return lines
